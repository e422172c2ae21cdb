"""Classifies an upstream's error response by status, headers and body. Pure functions.

Each provider has its own format of errors. The formats read here are documented or were observed
(OpenAI, Azure, Gemini, Mistral, Cohere, Jina, TEI, vLLM, llama.cpp). The codes and messages are in
:mod:`embedroute.upstream_errors.patterns`.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, cast

import msgspec

from embedroute.errors import (
    BatchTooLarge,
    ContextTooLong,
    Measure,
    RateLimited,
    Rejected,
    RejectedByPage,
    UpstreamAuthError,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamUnavailable,
)
from embedroute.inputs import Input, TextPart
from embedroute.upstream_errors.patterns import (
    ECHOES,
    ERROR_PATTERNS,
    KEY_CODES,
    MEASURES,
    MESSAGES,
    REQUESTED_TOKENS,
    MatchScope,
)
from embedroute.upstream_errors.retry_after import parse_retry_after

MOST_READ: Final = 20_000
"""Maximum characters of a response body that are searched."""

BY_STATUS: Final[Mapping[int, type[UpstreamError]]] = {
    400: UpstreamRejectedInput,
    401: UpstreamAuthError,
    402: UpstreamAuthError,
    404: UpstreamModelNotFound,
    408: UpstreamUnavailable,
    409: UpstreamUnavailable,
    413: UpstreamRejectedInput,
    422: UpstreamRejectedInput,
    424: UpstreamUnavailable,
    425: UpstreamUnavailable,
    429: RateLimited,
    498: UpstreamAuthError,  # Cohere
    499: UpstreamUnavailable,
}
"""Status → error class, if no pattern matches.

Any other 4xx is ``Rejected``, or ``RejectedByPage`` if it has no message. All other statuses are
``UpstreamUnavailable``.
"""


def classify_response(
    status: int, headers: Mapping[str, str], content: bytes, *, now: float | None = None
) -> UpstreamError:
    """Make the error for a response whose status is not a success.

    Its message is the upstream's own; the caller must redact secrets and shorten it. ``now`` is the
    time in seconds since 1970 (default: the system clock). Call ``refine_with_inputs`` with the
    error when the inputs of the call are known.
    """
    body = _parse(content)
    kind, matched_text, measure = _match_patterns(status, body)
    message = _find_message(body)
    if kind is None:
        if status == 403 and _names_key(headers):
            kind = UpstreamAuthError
        else:
            kind = _classify_status(status, message)
    error = kind(
        f"The upstream answered {status}" + (f": {message}" if message else "."),
        retry_after=parse_retry_after(
            headers,
            content[:MOST_READ].decode(errors="replace"),
            now=time.time() if now is None else now,
        ),
        upstream_status=status,
    )
    error.matched_text = matched_text
    if isinstance(error, BatchTooLarge):
        error.measure = measure
    return error


def refine_with_inputs(error: UpstreamError, inputs: Sequence[Input]) -> UpstreamError:
    """Correct the class of an error, given the ``inputs`` of the failed call.

    If the text by which the error was classified occurs in an input, the upstream may have quoted
    it. Such an error counts against neither the key, the model nor the size of the call. A call of
    several inputs that is too large is halved; one input that is too large by itself is rejected.
    """
    refined = error
    kind = _corrected_class(error, inputs)
    if kind is not None:
        refined = kind(
            error.message,
            param=error.param,
            retry_after=error.retry_after,
            upstream_status=error.upstream_status,
        )
        refined.matched_text = error.matched_text
    if isinstance(refined, BatchTooLarge):
        refined.measure = _find_measure(error, inputs)
    return refined


def _find_measure(error: UpstreamError, inputs: Sequence[Input]) -> Measure | None:
    """Return the unit of the limit that a call of several inputs exceeds."""
    measure = error.measure if isinstance(error, BatchTooLarge) else None
    if measure is not None and not _occurs_in(inputs, error.matched_text):
        return measure
    if isinstance(error, ContextTooLong):
        # _corrected_class has found that the message states the number of inputs.
        return Measure.INPUTS
    if error.upstream_status == 413:
        return Measure.BYTES
    return _measure_in(error.message) if error.upstream_status is None else None


def _measure_in(text: str) -> Measure | None:
    return next((measure for measure, pattern in MEASURES if pattern.search(text)), None)


def _corrected_class(error: UpstreamError, inputs: Sequence[Input]) -> type[UpstreamError] | None:
    """Return the class that the error should have, or None if it has the right one."""
    several = len(inputs) > 1
    if isinstance(error, ContextTooLong):
        return BatchTooLarge if several and _states_count(error.message, inputs) else None
    if (
        isinstance(error, UpstreamRejectedInput | BatchTooLarge)
        and error.upstream_status == 413
        and several
    ):
        return BatchTooLarge
    by_text = isinstance(error, BatchTooLarge | UpstreamModelNotFound | UpstreamAuthError)
    if by_text and _occurs_in(inputs, error.matched_text):
        status = error.upstream_status
        return UpstreamRejectedInput if status is None else _classify_status(status, error.message)
    if isinstance(error, BatchTooLarge) and not several:
        return ContextTooLong if "token" in error.message.lower() else UpstreamRejectedInput
    return None


def _states_count(message: str, inputs: Sequence[Input]) -> bool:
    """Whether the number of tokens in the message is in fact the number of inputs (Volcengine)."""
    match = REQUESTED_TOKENS.search(message)
    return match is not None and int(match[1]) == len(inputs) and not _occurs_in(inputs, match[0])


def _occurs_in(inputs: Sequence[Input], matched_text: str) -> bool:
    folded = matched_text.casefold()
    return bool(folded) and any(
        folded in text.casefold() for item in inputs for text in _texts(item)
    )


def _texts(item: Input) -> Iterable[str]:
    if isinstance(item, str):
        return (item,)
    return [part.text for part in item if isinstance(part, TextPart)]


def _classify_status(status: int, message: str) -> type[UpstreamError]:
    """Return the class for a status; ``message`` is the one in the body, or empty."""
    if (kind := BY_STATUS.get(status)) is not None:
        return kind
    if 400 <= status < 500:
        return Rejected if message else RejectedByPage
    return UpstreamUnavailable


def _names_key(headers: Mapping[str, str]) -> bool:
    """Whether the headers of a 403, which a client cannot influence, concern the API key."""
    amazon = headers.get("x-amzn-errortype", "").partition(":")[0]
    return "www-authenticate" in headers or KEY_CODES.fullmatch(amazon) is not None


def _match_patterns(
    status: int, body: object
) -> tuple[type[UpstreamError] | None, str, Measure | None]:
    """Return the class of the first pattern that matches, the matched text and its measure.

    The text is empty if it is a code, since a client cannot influence codes.
    """
    fields = list(_limit(MOST_READ, _iter_fields(body)))
    for pattern in ERROR_PATTERNS:
        if status in pattern.statuses:
            matched_text = next(
                (match for name, text in fields if (match := pattern.search(name, text))), ""
            )
            if matched_text:
                return (
                    pattern.means,
                    "" if pattern.where is MatchScope.CODE else matched_text,
                    _measure_in(matched_text),
                )
    return None, "", None


def _parse(content: bytes) -> object:
    """Parse a body as JSON, or decode it as text."""
    try:
        return msgspec.json.decode(content[:1_000_000])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return content[:MOST_READ].decode(errors="replace").strip()


def _iter_fields(body: object, field: str = "", depth: int = 8) -> Iterator[tuple[str, str]]:
    """Yield the field name and text of each string and integer, except those of ``ECHOES``."""
    if isinstance(body, str | int):
        yield field, str(body)
    elif depth and isinstance(body, dict):
        for name, value in cast("dict[str, object]", body).items():
            if name not in ECHOES:
                yield from _iter_fields(value, name, depth - 1)
    elif depth and isinstance(body, list):
        for item in cast("list[object]", body):
            yield from _iter_fields(item, field, depth - 1)


def _limit(characters: int, fields: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for name, text in fields:
        yield name, text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


def _find_message(body: object) -> str:
    """Return the message of an error body, or an empty string.

    Known shapes are OpenAI's, FastAPI's, flat and nested objects, and plain text. HTML is ignored.
    """
    for _ in range(8):
        if isinstance(body, str):
            return "" if body.startswith("<") else body[:MOST_READ]
        if isinstance(body, dict):
            fields = cast("dict[str, object]", body)
            body = next(
                (
                    fields[name]
                    for name in MESSAGES
                    if fields.get(name) and fields[name] is not True
                ),
                None,
            )
        elif isinstance(body, list):
            body = next(iter(cast("list[object]", body)), None)
        else:
            body = None
    return ""
