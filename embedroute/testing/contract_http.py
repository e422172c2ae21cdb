"""What a backend builds: a whole request, the same each time, that hears all of its batch and shows no secret.

What a backend reads: vectors of an answer, in the order of their inputs, and errors of whatever is none.
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
from embedroute.testing.contract_class import MARK, marked
from embedroute.testing.samples import attempt, changed, reversed_batch

ADVICE: Final = "It must write a request for whatever accepts lets through; UpstreamRejectedInput is for what the API cannot do."
DEAF: Final = "build writes the same request"


def request_mistakes(backend: HTTPBackend, samples: Sequence[Batch]) -> Iterator[str]:
    """Look at the request for each sample."""
    shown = cast("HTTPBackend", marked(backend))
    requests = [attempt("build", ADVICE, lambda: shown.build(samples[0]))]
    requests += [
        built for batch in samples[1:] if (built := build_or_refuse(shown, batch)) is not None
    ]
    shapes = [mistake for request in requests for mistake in _shape_mistakes(request)]
    yield from shapes
    if not shapes:
        yield from (mistake for request in requests for mistake in _show_mistakes(request))
        if attempt("build", ADVICE, lambda: shown.build(samples[0])) != requests[0]:
            yield "build gave two requests for one batch: leave time, chance and state out of it."
        else:
            yield from _deaf_mistakes(shown, samples, requests[0])


def build_or_refuse(backend: HTTPBackend, batch: Batch) -> UpstreamRequest | None:
    """Build a request; None where the backend says that its API cannot do this."""

    def build() -> UpstreamRequest | None:
        try:
            return backend.build(batch)
        except UpstreamError:
            return None

    return attempt("build", ADVICE, build)


def _shape_mistakes(request: object) -> Iterator[str]:
    if not isinstance(request, UpstreamRequest):
        yield f"build gave {type(request).__name__}: return UpstreamRequest.json(url, body, bearer=…)."
        return
    content, headers = (
        cast("object", request.content),
        cast("dict[object, object]", dict(request.headers)),
    )
    if not isinstance(content, bytes):
        yield f"build gave content as {type(content).__name__}: encode it, or use UpstreamRequest.json(…)."
    if not _has_host(request.url):
        yield f"build gave the URL {request.url!r}: begin it with https:// and a host."
    if any(str(name) != str(name).lower() for name in headers):
        yield "build gave header names in upper case: write them in lower case."
    for value in headers.values():
        if not isinstance(value, str | Secret):
            yield f"build gave a header as {type(value).__name__}: write a str or a Secret."


def _has_host(url: str) -> bool:
    with suppress(ValueError):
        return urlsplit(url).scheme in {"http", "https"} and bool(urlsplit(url).hostname)
    return False


def _show_mistakes(request: UpstreamRequest) -> Iterator[str]:
    if MARK in request.url:
        yield "build put a secret into the URL, which shows in logs: send it in a header."
    elif MARK in repr((request.headers, request.content, request.method)):
        yield "build put a secret where it shows: pass it as bearer=, or as a Secret in headers."


def _deaf_mistakes(
    backend: HTTPBackend, samples: Sequence[Batch], plain: UpstreamRequest
) -> Iterator[str]:
    first = samples[0]
    # Two input types may be one to an API, so it is enough that one of them changes the request.
    for name in ("dimensions", "input_type", "dtype"):
        changed = [batch for batch in samples if getattr(batch, name) != getattr(first, name)]
        if changed and all(build_or_refuse(backend, batch) == plain for batch in changed):
            yield f"accepts lists {name}, but {DEAF} whatever batch.{name} says: send it."
    if (
        type(backend).accepts.user
        and build_or_refuse(backend, replace(first, user="somebody")) == plain
    ):
        yield f"accepts says user, but {DEAF} whatever batch.user says: send it."
    for batch in samples:
        yield from _unheard_inputs(backend, batch)
    # A backend may know the names of its API's models, and this is none of them.
    with suppress(Exception):
        if backend.build(replace(first, model=f"{first.model}-2")) == plain:
            yield f"{DEAF} for another model: send batch.model."


def _unheard_inputs(backend: HTTPBackend, batch: Batch) -> Iterator[str]:
    plain = build_or_refuse(backend, batch)
    if plain is None:
        return
    unheard = [place for place, other in changed(batch) if build_or_refuse(backend, other) == plain]
    if unheard:
        yield f"{DEAF} whatever batch.{unheard[0]} says: send every input."
    elif (
        reversed_batch(batch) != batch and build_or_refuse(backend, reversed_batch(batch)) == plain
    ):
        yield f"{DEAF} for the same inputs in reverse: send them in their order."


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
COUNTED: Final = (UpstreamError, KeyError, TypeError, ValueError, IndexError, AttributeError)
"""What ``parse`` may raise; the host counts all but the first as ``InvalidUpstreamResponse``."""
STATUSES: Final = (400, 401, 404, 413, 429, 500, 503)

READ: Final = "Read the body with response.json(), or raise InvalidUpstreamResponse."
PLAY: Final = "Give the JSON that the API would answer, one vector per batch.inputs."


def parse_mistakes(
    backend: HTTPBackend, reply: Reply | None, samples: Sequence[Batch]
) -> Iterator[str]:
    """Hand a backend answers: sound ones where ``reply`` plays the API, and always what is none."""
    first, cut_short = samples[0], ()
    if reply is not None:
        found = list(
            _reply_mistakes(
                backend, reply, [first, *(it for it in samples[1:] if build_or_refuse(backend, it))]
            )
        )
        yield from found
        if found:
            return
        good = _reply_to(first, reply).content
        cut_short = (good[: len(good) // 2],)
    for content in (*GARBAGE, *cut_short):
        yield from _garbage_mistakes(backend, first, content)
    for status in STATUSES:
        for content in GARBAGE:
            yield from _fault_mistakes(
                backend, UpstreamResponse(status, {"retry-after": "7"}, content)
            )


def _reply_mistakes(backend: HTTPBackend, reply: Reply, samples: Sequence[Batch]) -> Iterator[str]:
    if not callable(reply):
        yield f"reply= is a {type(reply).__name__}: pass a function of a batch. {PLAY}"
        return
    pairs = ((_parsed(backend, batch, _reply_to(batch, reply)), batch) for batch in samples)
    mistakes = [
        mistake for found, batch in pairs for mistake in answer_mistakes(found, batch, None)
    ]
    yield from mistakes
    good, other = _reply_to(samples[0], reply), _reply_to(reversed_batch(samples[0]), reply)
    if good.content != other.content and not mistakes:
        yield from order_mistakes(
            _parsed(backend, samples[0], good), _parsed(backend, reversed_batch(samples[0]), other)
        )


def _parsed(backend: HTTPBackend, batch: Batch, reply: UpstreamResponse) -> Vectors:
    return attempt(
        "parse",
        f"It must read what reply= gives: {reply.content[:200]!r}.",
        lambda: backend.parse(batch, reply),
    )


def _reply_to(batch: Batch, reply: Reply) -> UpstreamResponse:
    body = attempt("reply=", PLAY, lambda: reply(batch))
    try:
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    except TypeError:
        raise AssertionError(
            f"reply= gave {type(body).__name__}: give what JSON can say, or bytes."
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
        except COUNTED:
            return False
        return True

    if attempt("parse", f"That was for {content!r}. {READ}", parse):
        yield f"parse made vectors of {content!r}: raise InvalidUpstreamResponse for a body that holds none."


def _fault_mistakes(backend: HTTPBackend, reply: UpstreamResponse) -> Iterator[str]:
    advice = f"That was for a {reply.status} with {reply.content!r}: an error may have any body."
    found = cast("object", attempt("map_error", advice, lambda: backend.map_error(reply)))
    if not isinstance(found, UpstreamError):
        yield f"map_error gave {type(found).__name__} for a {reply.status}: return one of embedroute.errors."


def answer_mistakes(found: object, batch: Batch, width: int | None) -> Iterator[str]:
    """Look at the answer to a batch."""
    if not isinstance(found, Vectors):
        yield f"{type(found).__name__} came back where Vectors are due: return Vectors.from_lists(…)."
        return
    try:
        vectors.check(found.array, len(batch), width, batch.dtype)
    except COUNTED as error:
        yield f"For {len(batch)} inputs of kind {batch.kind}, dtype {batch.dtype}: {error}"
    if (
        found.prompt_tokens is not None
        and found.prompt_tokens != 0
        and parse_token_count(found.prompt_tokens) is None
    ):
        yield f"prompt_tokens is {found.prompt_tokens!r}: give an int, or None if the API does not say."
    if parse_token_counts(found.modality_tokens) != found.modality_tokens:
        yield f"modality_tokens is {found.modality_tokens!r}: give an int over 0 for each modality, or nothing."


def order_mistakes(found: Vectors, other: Vectors) -> Iterator[str]:
    """Compare the vectors of the same inputs in reverse."""
    if not close(found.array, other.array[::-1]):
        yield "The same inputs in reverse do not give the same vectors in reverse: give row i for input i."


def close(left: vectors.Array, right: vectors.Array) -> bool:
    """Tell whether two arrays are of one shape and the same numbers, but for what float32 arithmetic may differ by."""
    return left.shape == right.shape and bool((abs(left - right) <= 1e-5 + 1e-4 * abs(right)).all())
