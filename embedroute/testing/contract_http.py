"""Checks the ``build``, ``parse`` and ``map_error`` methods of an HTTP backend.

``build`` must be deterministic, send all parts of a batch, and show no secret. ``parse`` must
return the vectors in the order of the inputs, and reject invalid responses. ``map_error`` must
accept any error response.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, cast
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from embedroute import vectors
from embedroute.backend import (
    Batch,
    HTTPBackend,
    Secret,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
    parse_token_count,
    parse_token_counts,
)
from embedroute.errors import UpstreamError
from embedroute.testing.contract_class import MARK, with_marked_secrets
from embedroute.testing.samples import attempt, changed, cut, reversed_batch

ADVICE: Final = (
    "It must build a request for all inputs that its accepts allows."
    " Raise UpstreamRejectedInput for inputs that the API does not support."
)
SAME_REQUEST: Final = "build returns the same request"
ONE_MODEL: Final = (
    "or if the API has one model, raise UpstreamModelNotFound for other names and pass its name as"
    " model= of check_backend, see docs/backends.md#model-names."
)


def request_mistakes(backend: HTTPBackend, samples: Sequence[Batch]) -> Iterator[str]:
    """Check the request for each sample."""
    marked = cast("HTTPBackend", with_marked_secrets(backend))
    requests = [attempt("build", ADVICE, lambda: marked.build(samples[0]))]
    requests += [
        request for batch in samples[1:] if (request := build_or_none(marked, batch)) is not None
    ]
    type_mistakes = [mistake for request in requests for mistake in _type_mistakes(request)]
    yield from type_mistakes
    if not type_mistakes:
        yield from (mistake for request in requests for mistake in _leak_mistakes(request))
        if attempt("build", ADVICE, lambda: marked.build(samples[0])) != requests[0]:
            yield (
                "build returned two requests for one batch:"
                " it must not depend on time, randomness or state."
            )
        else:
            yield from _ignored_field_mistakes(marked, samples, requests[0])


def build_or_none(backend: HTTPBackend, batch: Batch) -> UpstreamRequest | None:
    """Build a request, or return None if the API does not support the batch."""

    def build() -> UpstreamRequest | None:
        try:
            return backend.build(batch)
        except UpstreamError:
            return None

    return attempt("build", ADVICE, build)


def _type_mistakes(request: object) -> Iterator[str]:
    if not isinstance(request, UpstreamRequest):
        yield (
            f"build returned {type(request).__name__}:"
            " return UpstreamRequest.json(url, body, bearer=…)."
        )
        return
    content = cast("object", request.content)
    headers = cast("dict[object, object]", dict(request.headers))
    if not isinstance(content, bytes):
        yield (
            f"build returned content as {type(content).__name__}:"
            " encode it, or use UpstreamRequest.json(…)."
        )
    if not _has_host(request.url):
        yield f"build returned the URL {request.url!r}: begin it with https:// and a host."
    if any(str(name) != str(name).lower() for name in headers):
        yield "build returned header names in upper case: write them in lower case."
    for value in headers.values():
        if not isinstance(value, str | Secret):
            yield f"build returned a header as {type(value).__name__}: use a str or a Secret."


def _has_host(url: str) -> bool:
    with suppress(ValueError):
        return urlsplit(url).scheme in {"http", "https"} and bool(urlsplit(url).hostname)
    return False


def _leak_mistakes(request: UpstreamRequest) -> Iterator[str]:
    if MARK in request.url:
        yield "build put a secret into the URL, which is logged: send it in a header."
    elif MARK in repr((request.headers, request.content, request.method)):
        yield (
            "build put a secret where repr shows it: pass it as bearer=, or as a Secret in headers."
        )


def _ignored_field_mistakes(
    backend: HTTPBackend, samples: Sequence[Batch], request: UpstreamRequest
) -> Iterator[str]:
    first = samples[0]
    # An API may treat two input types equally, so it is enough that one changes the request.
    for name in ("dimensions", "input_type", "dtype"):
        others = [batch for batch in samples if getattr(batch, name) != getattr(first, name)]
        if others and all(build_or_none(backend, batch) == request for batch in others):
            yield f"accepts lists {name}, but {SAME_REQUEST} for any batch.{name}: send it."
    if (
        type(backend).accepts.user
        and build_or_none(backend, replace(first, user="somebody")) == request
    ):
        yield f"accepts lists user, but {SAME_REQUEST} for any batch.user: send it."
    for batch in samples:
        yield from _ignored_input_mistakes(backend, batch)
    if type(backend).serves_one_model:
        return
    # A backend may reject model names that its API does not have.
    with suppress(Exception):
        if backend.build(replace(first, model=f"{first.model}-2")) == request:
            yield f"{SAME_REQUEST} for another model: send batch.model, {ONE_MODEL}"


def _ignored_input_mistakes(backend: HTTPBackend, batch: Batch) -> Iterator[str]:
    request = build_or_none(backend, batch)
    if request is None:
        return
    ignored = [place for place, other in changed(batch) if build_or_none(backend, other) == request]
    backwards = reversed_batch(batch)
    if ignored:
        yield f"{SAME_REQUEST} for any batch.{ignored[0]}: send every input."
    elif backwards != batch and build_or_none(backend, backwards) == request:
        yield f"{SAME_REQUEST} for the same inputs in reverse: send them in their order."


Reply = Callable[[Batch], object]

GARBAGE: Final = (
    b"",
    b"<html>502</html>",
    b"{}",
    b"[]",
    b"null",
    b'"ok"',
    b"1",
    b'{"error":{"message":"no"}}',
    b"\xff\xfe",
)
PARSE_ERRORS: Final = (UpstreamError, KeyError, TypeError, ValueError, IndexError, AttributeError)
"""What ``parse`` may raise. The host treats all but the first as ``InvalidUpstreamResponse``."""
STATUSES: Final = (400, 401, 404, 413, 429, 500, 503)

PARSE_ADVICE: Final = "Read the body with response.json(), or raise InvalidUpstreamResponse."
REPLY_ADVICE: Final = "Return the JSON of the API's response, with one vector per input."


def parse_mistakes(
    backend: HTTPBackend, reply: Reply | None, samples: Sequence[Batch]
) -> Iterator[str]:
    """Check how a backend reads invalid responses, and valid ones of ``reply`` if it is given."""
    first = samples[0]
    truncated: tuple[bytes, ...] = ()
    if reply is not None:
        supported = [batch for batch in samples[1:] if build_or_none(backend, batch)]
        mistakes = list(_reply_mistakes(backend, reply, [first, *supported]))
        yield from mistakes
        if mistakes:
            return
        valid = _reply_to(first, reply).content
        truncated = (valid[: len(valid) // 2],)
    for content in (*GARBAGE, *truncated):
        yield from _garbage_mistakes(backend, first, content)
    for status in STATUSES:
        for content in GARBAGE:
            yield from _map_error_mistakes(
                backend, UpstreamResponse(status, {"retry-after": "7"}, content)
            )


def _reply_mistakes(backend: HTTPBackend, reply: Reply, samples: Sequence[Batch]) -> Iterator[str]:
    if not callable(reply):
        yield f"reply= is a {type(reply).__name__}: pass a function of a batch. {REPLY_ADVICE}"
        return
    pairs = ((_parse(backend, batch, _reply_to(batch, reply)), batch) for batch in samples)
    mistakes = [
        mistake for result, batch in pairs for mistake in answer_mistakes(result, batch, None)
    ]
    yield from mistakes
    backwards = reversed_batch(samples[0])
    response = _reply_to(samples[0], reply)
    reversed_response = _reply_to(backwards, reply)
    if response.content != reversed_response.content and not mistakes:
        result = _parse(backend, samples[0], response)
        yield from order_mistakes(result, _parse(backend, backwards, reversed_response))
        # A parse that reverses all rows gives reversed vectors for reversed inputs too.
        alone = cut(samples[0], len(samples[0]) - 1, None)
        if not close(result.array[-1:], _parse(backend, alone, _reply_to(alone, reply)).array):
            yield (
                "An input gets another vector alone than in a batch of several:"
                " return row i for input i, and let reply= compute a vector from its input."
            )


def _parse(backend: HTTPBackend, batch: Batch, response: UpstreamResponse) -> Vectors:
    return attempt(
        "parse",
        f"It must read the response of reply=: {response.content[:200]!r}.",
        lambda: backend.parse(batch, response),
    )


def _reply_to(batch: Batch, reply: Reply) -> UpstreamResponse:
    body = attempt("reply=", REPLY_ADVICE, lambda: reply(batch))
    try:
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    except TypeError:
        raise AssertionError(
            f"reply= returned {type(body).__name__}: return values that JSON supports, or bytes."
        ) from None
    return UpstreamResponse(200, {"content-type": "application/json"}, content)


def _garbage_mistakes(backend: HTTPBackend, batch: Batch, content: bytes) -> Iterator[str]:
    def parse() -> bool:
        try:
            vectors.check(
                backend.parse(batch, UpstreamResponse(200, {}, content)).array,
                len(batch),
                None,
                batch.dtype,
            )
        except PARSE_ERRORS:
            return False
        return True

    if attempt("parse", f"The body was {content!r}. {PARSE_ADVICE}", parse):
        yield (
            f"parse returned vectors for the body {content!r}:"
            " raise InvalidUpstreamResponse for a body without vectors."
        )


ExpectedError = tuple[int, object, type[UpstreamError]]
"""The status and the body of an error response, and the class of the error that it means."""


def error_mistakes(backend: HTTPBackend, errors: Sequence[ExpectedError]) -> Iterator[str]:
    """Check that ``map_error`` returns the expected class for each of ``errors``."""
    for status, body, expected in errors:
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        response = UpstreamResponse(status, {}, content)
        mistakes = list(_map_error_mistakes(backend, response))
        yield from mistakes
        if mistakes:
            continue
        error = backend.map_error(response)
        if type(error) is not expected:
            yield (
                f"map_error returned {type(error).__name__} ({error.message}) for a {status} with"
                f" the body {content[:200]!r}: return {expected.__name__}, or correct errors=."
            )


def _map_error_mistakes(backend: HTTPBackend, response: UpstreamResponse) -> Iterator[str]:
    status = response.status
    advice = f"The response was a {status} with the body {response.content!r}. Accept any body."
    error = cast("object", attempt("map_error", advice, lambda: backend.map_error(response)))
    if not isinstance(error, UpstreamError):
        yield (
            f"map_error returned {type(error).__name__} for a {status}:"
            " return one of embedroute.errors."
        )


def answer_mistakes(result: object, batch: Batch, width: int | None) -> Iterator[str]:
    """Check the result for a batch."""
    if not isinstance(result, Vectors):
        yield (
            f"The result is a {type(result).__name__}, not Vectors: return Vectors.from_lists(…)."
        )
        return
    try:
        vectors.check(result.array, len(batch), width, batch.dtype)
    except PARSE_ERRORS as error:
        yield f"For {len(batch)} inputs of kind {batch.kind}, dtype {batch.dtype}: {error}"
    tokens = result.prompt_tokens
    if tokens is not None and tokens != 0 and parse_token_count(tokens) is None:
        yield (
            f"prompt_tokens is {tokens!r}: return an int, or None if the API does not report one."
        )
    if parse_token_counts(result.modality_tokens) != result.modality_tokens:
        yield (
            f"modality_tokens is {result.modality_tokens!r}:"
            " return an int above 0 for each modality, or nothing."
        )


def order_mistakes(result: Vectors, of_reversed: Vectors) -> Iterator[str]:
    """Compare the vectors of a batch with those of the same inputs in reverse."""
    if not close(result.array, of_reversed.array[::-1]):
        yield (
            "The same inputs in reverse do not give the same vectors in reverse:"
            " return row i for input i."
        )


def close(left: vectors.Array, right: vectors.Array) -> bool:
    """Return whether two arrays have equal shapes and numbers, within float32 rounding errors."""
    return left.shape == right.shape and bool((abs(left - right) <= 1e-5 + 1e-4 * abs(right)).all())
