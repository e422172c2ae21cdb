"""Reads how long an upstream asks callers to wait before the next call. Pure functions."""

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

import msgspec

from embedroute.errors import LONGEST_RETRY_AFTER
from embedroute.upstream_errors.body import ErrorBody, parse_body

_AMOUNT = r"[0-9]{1,18}(?:\.[0-9]{1,9})?"
_UNIT = r"ms|milliseconds?|s|seconds?|m|minutes?|h|hours?"
_PART = re.compile(rf"({_AMOUNT}) ?({_UNIT})(?![a-z])", re.IGNORECASE)
_WAIT = rf"(?:{_AMOUNT} ?(?:{_UNIT})(?![a-z]) ?){{1,4}}"
_DURATION = re.compile(_WAIT, re.IGNORECASE)
_IN_TEXT = re.compile(
    rf"\b(?:(?:retry|try again) (?:after|in)|wait(?: for)?) ({_WAIT})", re.IGNORECASE
)
_FIELDS = {
    "retryDelay": re.compile(rf"({_AMOUNT}s)"),  # google.rpc.RetryInfo
    "estimated_time": re.compile(rf"({_AMOUNT})"),  # Hugging Face, seconds
    "retry_after": re.compile(rf"({_AMOUNT})"),  # OpenRouter, seconds
}
"""Documented field of an error body → its value."""


class Wait(msgspec.Struct, frozen=True):
    """How long to wait: ``seconds``, without a limit.

    ``text`` is the part of the upstream's message that states it, or empty for a header or a
    field.
    """

    seconds: float
    text: str = ""

    @property
    def capped(self) -> float:
        """The seconds, at most ``LONGEST_RETRY_AFTER``."""
        return min(self.seconds, LONGEST_RETRY_AFTER)


def find_wait(headers: Mapping[str, str], body: ErrorBody | None, *, now: float) -> Wait | None:
    """Return how long an upstream asks to wait, or None if nothing states it.

    These sources are read in order, and the first that has a value is used:

    1. the header ``retry-after-ms``
    2. the header ``retry-after``, in seconds or as an HTTP date
    3. the reset time of an exhausted ``x-ratelimit-*`` window
    4. a documented field of the body, such as Google's ``retryDelay``
    5. "retry after 7 seconds" or "try again in 6m0s" in the message of the body

    ``now`` is the gateway's clock in seconds since 1970. It is used for an HTTP date if the
    response has no ``date`` header.
    """
    for seconds in (
        _number(headers.get("retry-after-ms"), 0.001),
        _number(headers.get("retry-after"), 1),
        _until(headers.get("retry-after"), headers.get("date"), now),
        _reset(headers),
        _in_fields(body),
    ):
        if seconds is not None:
            return Wait(seconds)
    return find_wait_in_text(body.message) if body else None


def find_wait_in_text(message: str) -> Wait | None:
    """Return the wait that a message states in words, or None."""
    match = _IN_TEXT.search(message)
    return Wait(_seconds(match[1]), match[0].strip()) if match else None


def parse_retry_after(headers: Mapping[str, str], body: bytes = b"", *, now: float) -> float | None:
    """Return the seconds to wait, at most ``LONGEST_RETRY_AFTER``, or None if nothing states them.

    See ``find_wait`` for the sources.
    """
    wait = find_wait(headers, parse_body(body), now=now)
    return wait and wait.capped


def _number(text: str | None, unit: float) -> float | None:
    # A number of hundreds of digits is valid; the caller limits it.
    if text is None or not re.fullmatch(r"\d{1,400}(\.\d{1,400})?", text.strip(), re.ASCII):
        return None
    return float(text) * unit


def _until(date: str | None, upstream_date: str | None, now: float) -> float | None:
    # Compare with the upstream's clock if it is known: its date was computed with that clock.
    end = _timestamp(date)
    if end is None:
        return None
    upstream_now = _timestamp(upstream_date)
    return max(0.0, end - (now if upstream_now is None else upstream_now))


def _timestamp(date: str | None) -> float | None:
    try:
        parsed = parsedate_to_datetime(date or "")
        # HTTP dates are GMT, but one of their three formats does not state a zone.
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _reset(headers: Mapping[str, str]) -> float | None:
    exhausted = [
        resource
        for resource in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{resource}") == "0"
    ]
    resets = [headers.get(f"x-ratelimit-reset-{resource}", "") for resource in exhausted]
    return max((_seconds(reset) for reset in resets if _DURATION.fullmatch(reset)), default=None)


def _in_fields(body: ErrorBody | None) -> float | None:
    for name, text in body.fields if body else ():
        pattern = _FIELDS.get(name)
        if pattern and (match := pattern.fullmatch(text)):
            return float(match[1].removesuffix("s"))
    return None


def _seconds(text: str) -> float:
    """Add up a duration such as "1m12s", "350ms" or "7 seconds"."""
    return sum(float(amount) * _unit(name.lower()) for amount, name in _PART.findall(text))


def _unit(name: str) -> float:
    if name.startswith(("ms", "mil")):
        return 0.001
    return {"s": 1.0, "m": 60.0, "h": 3600.0}[name[0]]
