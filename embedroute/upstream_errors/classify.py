"""Reads what an upstream means by a failure: status, body and headers in, one of the upstream errors out. Pure.

Every upstream words its failures in its own way; the shapes read here are those that the providers document or were
seen to send (OpenAI, Azure, Gemini, Mistral, Cohere, Jina, TEI, vLLM, llama.cpp), the words stand in ``signals``.
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
"""Characters of an upstream's body that are searched."""

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
"""Status → error. Any other 4xx rejects the call without saying why.

Any other status is the upstream's own trouble.
"""


def classify_response(
    status: int, headers: Mapping[str, str], content: bytes, *, now: float | None = None
) -> UpstreamError:
    """Judge an answer that is not a 200; the error says how long to wait, if the upstream did.

    The message is the upstream's own: the host takes secrets out of it, and cuts it. ``now`` is the time in seconds
    since 1970, the wall clock's unless given. What it means for the call's inputs is for ``settled`` to say.
    """
    body = _read(content)
    kind, told, measure = _meaning(status, body)
    said = _message_in(body)
    if kind is None:
        kind = (
            UpstreamAuthError if status == 403 and _names_key(headers) else _by_status(status, said)
        )
    text = f"The upstream answered {status}" + (f": {said}" if said else ".")
    words = content[:MOST_READ].decode(errors="replace")
    hint = parse_retry_after(headers, words, now=time.time() if now is None else now)
    fault = kind(text, retry_after=hint, upstream_status=status)
    fault.matched_text = told
    if isinstance(fault, BatchTooLarge):
        fault.measure = measure
    return fault


def refine_with_inputs(fault: UpstreamError, inputs: Sequence[Input]) -> UpstreamError:
    """Judge a failure to the end, now that the ``inputs`` of its call are known.

    Words that stand in an input may be a quote of it, so they blame neither key, model nor the size
    of the call. A call that is too large is halved; but one input that is too large by itself is at fault.
    """
    kind, other = _kind_for(fault, inputs), fault
    if kind is not None:
        other = kind(
            fault.message,
            param=fault.param,
            retry_after=fault.retry_after,
            upstream_status=fault.upstream_status,
        )
        other.matched_text = fault.matched_text
    if isinstance(other, BatchTooLarge):
        other.measure = _find_measure(fault, inputs)
    return other


def _find_measure(fault: UpstreamError, inputs: Sequence[Input]) -> Measure | None:
    """What the upstream counts that finds a call of several inputs too large."""
    named = fault.measure if isinstance(fault, BatchTooLarge) else None
    if named is not None and not _stands_in(inputs, fault.matched_text):
        return named
    if isinstance(fault, ContextTooLong):
        return Measure.INPUTS  # these words count as a size refusal for the number of inputs alone
    if fault.upstream_status == 413:
        return Measure.BYTES
    return _measure_in(fault.message) if fault.upstream_status is None else None


def _measure_in(words: str) -> Measure | None:
    return next((measure for measure, pattern in MEASURES if pattern.search(words)), None)


def _kind_for(fault: UpstreamError, inputs: Sequence[Input]) -> type[UpstreamError] | None:
    """The kind that a failure rather is; None if it is what it seems."""
    several = len(inputs) > 1
    if isinstance(fault, ContextTooLong):
        return BatchTooLarge if several and _counts(fault.message, inputs) else None
    if (
        isinstance(fault, UpstreamRejectedInput | BatchTooLarge)
        and fault.upstream_status == 413
        and several
    ):
        return BatchTooLarge
    by_words = isinstance(fault, BatchTooLarge | UpstreamModelNotFound | UpstreamAuthError)
    if by_words and _stands_in(inputs, fault.matched_text):
        status = fault.upstream_status
        return UpstreamRejectedInput if status is None else _by_status(status, fault.message)
    if isinstance(fault, BatchTooLarge) and not several:
        return ContextTooLong if "token" in fault.message.lower() else UpstreamRejectedInput
    return None


def _counts(message: str, inputs: Sequence[Input]) -> bool:
    held = REQUESTED_TOKENS.search(message)
    return held is not None and int(held[1]) == len(inputs) and not _stands_in(inputs, held[0])


def _stands_in(inputs: Sequence[Input], told: str) -> bool:
    sought = told.casefold()
    return bool(sought) and any(
        sought in text.casefold() for item in inputs for text in _texts(item)
    )


def _texts(item: Input) -> Iterable[str]:
    return (
        (item,)
        if isinstance(item, str)
        else [part.text for part in item if isinstance(part, TextPart)]
    )


def _by_status(status: int, said: str) -> type[UpstreamError]:
    """The kind of a failure by its status alone; ``said`` is the message that a client could see."""
    if (kind := BY_STATUS.get(status)) is not None:
        return kind
    if 400 <= status < 500:
        return Rejected if said else RejectedByPage
    return UpstreamUnavailable


def _names_key(headers: Mapping[str, str]) -> bool:
    """Whether headers say that a 403 is about our key; a client cannot write these."""
    amazon = headers.get("x-amzn-errortype", "").partition(":")[0]
    return "www-authenticate" in headers or KEY_CODES.fullmatch(amazon) is not None


def _meaning(status: int, body: object) -> tuple[type[UpstreamError] | None, str, Measure | None]:
    """What a failure's words mean, those words if a client could write them, and what they count."""
    said = list(_within(MOST_READ, _said(body)))
    for signal in ERROR_PATTERNS:
        if status in signal.statuses:
            heard = next(
                (found for field, text in said if (found := signal.search(field, text))), ""
            )
            if heard:
                return (
                    signal.means,
                    "" if signal.where is MatchScope.CODE else heard,
                    _measure_in(heard),
                )
    return None, "", None


def _read(content: bytes) -> object:
    try:
        return msgspec.json.decode(content[:1_000_000])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return content[:MOST_READ].decode(errors="replace").strip()


def _said(body: object, field: str = "", depth: int = 8) -> Iterator[tuple[str, str]]:
    """Every text and whole number in a body, with the name of its field; what a client sent is left out."""
    if isinstance(body, str | int):
        yield field, str(body)
    elif depth and isinstance(body, dict):
        for name, part in cast("dict[str, object]", body).items():
            if name not in ECHOES:
                yield from _said(part, name, depth - 1)
    elif depth and isinstance(body, list):
        for part in cast("list[object]", body):
            yield from _said(part, field, depth - 1)


def _within(room: int, said: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for field, text in said:
        yield field, text[:room]
        room -= len(text)
        if room <= 0:
            return


def _message_in(body: object) -> str:
    """Find the human message in an error body: OpenAI's, flat, FastAPI's, nested, or plain text; HTML says nothing."""
    for _ in range(8):
        if isinstance(body, str):
            return "" if body.startswith("<") else body[:MOST_READ]
        if isinstance(body, dict):
            named = cast("dict[str, object]", body)
            body = next(
                (named[name] for name in MESSAGES if named.get(name) and named[name] is not True),
                None,
            )
        else:
            body = next(iter(cast("list[object]", body)), None) if isinstance(body, list) else None
    return ""
