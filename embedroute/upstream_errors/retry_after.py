"""Reads how long an upstream asks to be left alone: in headers, in Google's details, in words. Pure."""

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from embedroute.errors import LONGEST_RETRY_AFTER

_AMOUNT = r"[0-9]{1,18}(?:\.[0-9]{1,9})?"
_UNIT = r"ms|milliseconds?|s|seconds?|m|minutes?|h|hours?"
_PART = re.compile(rf"({_AMOUNT}) ?({_UNIT})(?![a-z])", re.IGNORECASE)
_WAIT = rf"(?:{_AMOUNT} ?(?:{_UNIT})(?![a-z]) ?){{1,4}}"
_DURATION = re.compile(_WAIT, re.IGNORECASE)
_TOLD = re.compile(
    rf'"retryDelay"\s*:\s*"{_AMOUNT}s"|(?:retry|try again) (?:after|in) {_WAIT}', re.IGNORECASE
)


def parse_retry_after(headers: Mapping[str, str], body: str = "", *, now: float) -> float | None:
    """Find how many seconds the upstream asks to wait, at most ``LONGEST_RETRY_AFTER``; None if it does not say.

    Order: ``retry-after-ms``, ``retry-after`` (seconds or HTTP date), the reset of an exhausted ``x-ratelimit-*``
    window, Google's ``RetryInfo``, and "retry after 7 seconds" or "try again in 6m0s" in the text. ``now`` is our own
    clock in seconds since 1970, for a date from an upstream that does not tell the time.
    """
    for seconds in (
        _number(headers.get("retry-after-ms"), 0.001),
        _number(headers.get("retry-after"), 1),
        _until(headers.get("retry-after"), headers.get("date"), now),
        _reset(headers),
        _told(body),
    ):
        if seconds is not None:
            return min(seconds, LONGEST_RETRY_AFTER)
    return None


def _number(text: str | None, unit: float) -> float | None:
    # An absurdly long number is still a number: it ends at the cap.
    if text is None or not re.fullmatch(r"\d{1,400}(\.\d{1,400})?", text.strip(), re.ASCII):
        return None
    return float(text) * unit


def _until(date: str | None, theirs: str | None, ours: float) -> float | None:
    # The upstream's own clock is the right one to measure its date against.
    until, now = _moment(date), _moment(theirs)
    return None if until is None else max(0.0, until - (ours if now is None else now))


def _moment(date: str | None) -> float | None:
    try:
        said = parsedate_to_datetime(date or "")
        # An HTTP date is GMT, and one of its three forms does not say so.
        return (said if said.tzinfo else said.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _reset(headers: Mapping[str, str]) -> float | None:
    spent = [
        what
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}") == "0"
    ]
    resets = [headers.get(f"x-ratelimit-reset-{what}", "") for what in spent]
    return max((_seconds(reset) for reset in resets if _DURATION.fullmatch(reset)), default=None)


def _told(body: str) -> float | None:
    found = _TOLD.search(body)
    return _seconds(found[0]) if found else None


def _seconds(text: str) -> float:
    """Add up "1m12s", "350ms", "7 seconds"."""
    return sum(float(amount) * _unit(name.lower()) for amount, name in _PART.findall(text))


def _unit(name: str) -> float:
    if name.startswith(("ms", "mil")):
        return 0.001
    return {"s": 1.0, "m": 60.0, "h": 3600.0}[name[0]]
