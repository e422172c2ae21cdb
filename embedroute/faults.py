"""Reads what an upstream means by a failure: status, body and headers in, one of the upstream errors out. Pure.

Every upstream words its failures in its own way; the shapes and signals read here are those that the
providers document or were seen to send (OpenAI, Azure, Gemini, Mistral, Cohere, Jina, TEI, vLLM, llama.cpp).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Final, cast

import msgspec

from embedroute.errors import (
    LONGEST_HINT,
    BatchTooLarge,
    ContextTooLong,
    InputRefused,
    KeyRefused,
    ModelRefused,
    RateLimited,
    Unavailable,
    UpstreamError,
)

LONGEST_MESSAGE = 300
"""Characters of an upstream's text that a client may see."""

MOST_READ: Final = 20_000  # bytes of an upstream's body that are searched
MESSAGES: Final = ("error", "message", "detail", "errors", "msg")  # where a body's message is, outermost first
ECHOES: Final = frozenset({"input", "inputs", "texts", "loc", "ctx"})  # what a client sent, repeated (FastAPI's 422)

BY_STATUS: Final[Mapping[int, type[UpstreamError]]] = {
    400: InputRefused,
    401: KeyRefused,
    402: KeyRefused,
    403: KeyRefused,
    404: ModelRefused,
    413: InputRefused,
    422: InputRefused,
    429: RateLimited,
}
"""Status → error; every other status is the upstream's own trouble."""


SIGNALS: Final[tuple[tuple[type[UpstreamError], re.Pattern[str]], ...]] = (
    (KeyRefused, re.compile(r"insufficient_quota|INSUFFICIENT_BALANCE|Arrearage|API_KEY_INVALID|invalid_api_key|PerDay")),
    (
        BatchTooLarge,
        re.compile(
            r"(?im)max_tokens_per_request|tokens per request|too many inputs|too many tokens (in batch|overall)|batch size"
            r"|requests can be in one batch|split into more batches|max(imum)? allowed (batch|number of inputs)"
            r"|max number of inputs|array too long|less than or equal to \d+ items|^3210$"
            r"|(texts|inputs|input list) (list )?(length|size) (exceeds|must)|body is too large|payload too large"
        ),
    ),
    (
        ModelRefused,
        re.compile(
            r"(?i)model_not_found|INPUT_MODEL_NOT_FOUND|DeploymentNotFound"
            r"|model .{1,100} (does not exist|not found|is not supported)"
        ),
    ),
    (
        ContextTooLong,
        re.compile(
            r"(?i)context.?length|maximum context|INPUT_TOKEN_LIMIT_EXCEEDED|exceeded max .{0,20}tokens|too long"
            r"|too large to process|must have less than \d+ tokens|input exceeds"
        ),
    ),
)
"""What a body says outweighs its status; the first that is found decides."""

READ_AT: Final = frozenset({400, 402, 403, 413, 422, 429, 500})
"""Statuses whose body is looked at for a signal (llama.cpp answers 500 to a long input)."""


def fault_of(status: int, headers: Mapping[str, str], content: bytes) -> UpstreamError:
    """Judge an answer that is not a 200; the error says how long to wait, if the upstream did.

    The message is the upstream's own, cut at ``LONGEST_MESSAGE`` characters; the caller scrubs secrets from it.
    """
    kind = _kind(status, content)
    said = message_of(content)
    text = f"The upstream answered {status}" + (f": {said}" if said else ".")
    hint = hint_of(headers, content[:MOST_READ].decode(errors="replace"))
    return kind(text, retry_after=hint, upstream_status=status)


def _kind(status: int, content: bytes) -> type[UpstreamError]:
    plain = BY_STATUS.get(status, Unavailable)
    if status not in READ_AT:
        return plain
    text = "\n".join(_words(_read(content)))[:MOST_READ]
    return next((kind for kind, signal in SIGNALS if _may_say(status, kind) and signal.search(text)), plain)


def _read(content: bytes) -> object:
    try:
        return msgspec.json.decode(content[:1_000_000])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return content[:MOST_READ].decode(errors="replace").strip()


def _words(body: object, depth: int = 8) -> Iterator[str]:
    if isinstance(body, str | int):
        yield str(body)
    for part in _parts(body) if depth else ():
        yield from _words(part, depth - 1)


def _parts(body: object) -> Iterable[object]:
    if isinstance(body, dict):
        # A client must not be able to blame the provider's key by what it sends, so echoes are not read.
        return [part for name, part in cast("dict[str, object]", body).items() if name not in ECHOES]
    return cast("list[object]", body) if isinstance(body, list) else ()


def _may_say(status: int, kind: type[UpstreamError]) -> bool:
    # A 500 is read for llama.cpp's long input alone, a 429 for a spent quota alone: anything else
    # that happens to use these words is a rate limit or an outage, and heals.
    if status == 500:
        return kind is ContextTooLong
    if status in {402, 403, 429}:
        return kind is KeyRefused
    return True


def message_of(content: bytes) -> str:
    """Find the human message in an error body: OpenAI's, flat, FastAPI's, nested, or plain text; HTML says nothing."""
    body = _read(content)
    for _ in range(8):
        if isinstance(body, str):
            return "" if body.startswith("<") else body[:LONGEST_MESSAGE]
        if isinstance(body, dict):
            named = cast("dict[str, object]", body)
            body = next((named[name] for name in MESSAGES if named.get(name) and named[name] is not True), None)
        else:
            body = next(iter(_parts(body)), None)
    return ""


def hint_of(headers: Mapping[str, str], body: str = "") -> float | None:
    """Find how many seconds the upstream asks to wait, at most ``LONGEST_HINT``; None if it does not say.

    Order: ``retry-after-ms``, ``retry-after`` (seconds or HTTP date), the reset of an exhausted
    ``x-ratelimit-*`` window, Google's ``RetryInfo``, and "retry after N seconds" in the text.
    """
    for seconds in (
        _number(headers.get("retry-after-ms"), 0.001),
        _number(headers.get("retry-after"), 1),
        _until(headers.get("retry-after"), headers.get("date")),
        _reset(headers),
        _told(body),
    ):
        if seconds is not None:
            return min(seconds, LONGEST_HINT)
    return None


def _number(text: str | None, unit: float) -> float | None:
    # An absurdly long number is still a number: it ends at the cap.
    if text is None or not re.fullmatch(r"\d{1,400}(\.\d{1,400})?", text.strip(), re.ASCII):
        return None
    return float(text) * unit


def _until(date: str | None, now: str | None) -> float | None:
    # The upstream's own clock is the right one to measure its date against.
    try:
        wait = parsedate_to_datetime(date or "") - parsedate_to_datetime(now or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, wait.total_seconds())


_GO_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)")
_GO_DURATION = re.compile(rf"(?:{_GO_PART.pattern}){{1,4}}")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _reset(headers: Mapping[str, str]) -> float | None:
    spent = [what for what in ("requests", "tokens") if headers.get(f"x-ratelimit-remaining-{what}") == "0"]
    resets = [headers.get(f"x-ratelimit-reset-{what}", "") for what in spent]
    return max((_duration(reset) for reset in resets if _GO_DURATION.fullmatch(reset)), default=None)


def _duration(text: str) -> float:
    return sum(float(amount) * _SECONDS[unit] for amount, unit in _GO_PART.findall(text))


_TOLD = re.compile(
    r'(?i)"retryDelay"\s*:\s*"(\d{1,18}(?:\.\d{1,9})?)s"'
    r"|(?:retry|try again) (?:after|in) (\d{1,18}(?:\.\d{1,9})?) ?s"
)


def _told(body: str) -> float | None:
    found = _TOLD.search(body)
    return float(found[1] or found[2]) if found else None
