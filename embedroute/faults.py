"""Reads what an upstream means by a failure: status, body and headers in, one of the upstream errors out. Pure.

Every upstream words its failures in its own way; the shapes and signals read here are those that the
providers document or were seen to send (OpenAI, Azure, Gemini, Mistral, Cohere, Jina, TEI, vLLM, llama.cpp).
"""

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

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
            r"max_tokens_per_request|tokens per request|too many inputs|too many tokens (in batch|overall)|batch size"
            r"|requests can be in one batch|split into more batches|max(imum)? allowed (batch|number of inputs)"
            r"|max number of inputs|array too long|less than or equal to \d+ items"
            r'|"3210"|(texts|inputs?) (list )?(length|size) (exceeds|must)|body is too large|payload too large',
            re.IGNORECASE,
        ),
    ),
    (ModelRefused, re.compile(r"model_not_found|INPUT_MODEL_NOT_FOUND|DeploymentNotFound|model .{1,100} (does not exist|not found)", re.IGNORECASE)),
    (
        ContextTooLong,
        re.compile(
            r"context.?length|maximum context|INPUT_TOKEN_LIMIT_EXCEEDED|exceeded max .{0,20}tokens|too long|too large to process"
            r"|must have less than \d+ tokens|input exceeds",
            re.IGNORECASE,
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
    body = content[:20_000].decode(errors="replace")
    kind = _kind(status, body)
    said = message_of(content)
    text = f"The upstream answered {status}" + (f": {said}" if said else ".")
    return kind(text, retry_after=hint_of(headers, body), upstream_status=status)


def _kind(status: int, body: str) -> type[UpstreamError]:
    plain = BY_STATUS.get(status, Unavailable)
    if status not in READ_AT:
        return plain
    for kind, signal in SIGNALS:
        if signal.search(body) and _may_say(status, kind):
            return kind
    return plain


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
    try:
        found = _drill(msgspec.json.decode(content[:1_000_000]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        text = content[: LONGEST_MESSAGE * 4].decode(errors="replace").strip()
        found = "" if text.startswith("<") else text
    return found[:LONGEST_MESSAGE]


def _drill(body: Any) -> str:
    for _ in range(8):
        if isinstance(body, str):
            return body
        if isinstance(body, list) and body:
            body = body[0]
        elif isinstance(body, dict):
            body = next((body[name] for name in ("error", "message", "detail", "errors", "msg") if body.get(name)), None)
        else:
            return ""
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
    if text is None or not re.fullmatch(r"\d{1,18}(\.\d{1,9})?", text.strip(), re.ASCII):
        return None
    return float(text) * unit


def _until(date: str | None, now: str | None) -> float | None:
    # The upstream's own clock is the right one to measure its date against.
    try:
        wait = parsedate_to_datetime(date or "") - parsedate_to_datetime(now or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, wait.total_seconds())


_GO_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _reset(headers: Mapping[str, str]) -> float | None:
    waits = [
        sum(float(amount) * _SECONDS[unit] for amount, unit in _GO_DURATION.findall(headers[f"x-ratelimit-reset-{what}"]))
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}") == "0" and f"x-ratelimit-reset-{what}" in headers
    ]
    return max(waits, default=None)


_TOLD = re.compile(r'"retryDelay"\s*:\s*"(\d{1,9}(?:\.\d{1,9})?)s"|(?:retry|try again) (?:after|in) (\d{1,9}(?:\.\d{1,9})?) ?s', re.IGNORECASE)


def _told(body: str) -> float | None:
    found = _TOLD.search(body)
    return float(found[1] or found[2]) if found else None
