"""Counts the units of a rate, and describes limits in errors and headers.

A rate is a bucket of one minute's units that is full at first and refills evenly. It is kept as the
time at which it is full again (GCRA, the generic cell rate algorithm of ITU-T I.371), so it needs
no timer. Time is an argument: every method takes ``now`` in seconds of one monotonic clock.
"""

import math
from collections.abc import Sequence
from typing import Final, Protocol

from embedroute.errors import RateLimitExceeded, TooManyTokens

MINUTE: Final = 60.0
ROUNDING: Final = 1e-6
"""Seconds. A shorter wait comes from adding and subtracting numbers of seconds."""
SHORTEST_RETRY: Final = 1.0
"""Seconds after which a caller with too many concurrent requests may try again."""

Header = tuple[bytes, bytes]


class Rate:
    """A bucket of ``per_minute`` units. It is full again at the time ``full_at``."""

    __slots__ = ("full_at", "per_minute")

    def __init__(self, per_minute: int) -> None:
        """Start with a full bucket."""
        self.per_minute: int = per_minute
        self.full_at: float = -math.inf

    def wait(self, now: float, units: int) -> float:
        """Return the seconds until ``units`` are available; at most ``per_minute`` ever are."""
        full_at = max(self.full_at, now) + units * MINUTE / self.per_minute
        wait = full_at - now - MINUTE
        return wait if wait > ROUNDING else 0.0

    def take(self, now: float, units: int) -> None:
        """Take units out. A negative number puts units back."""
        self.full_at: float = max(self.full_at, now) + units * MINUTE / self.per_minute

    def reset(self, now: float) -> float:
        """Return the seconds until the bucket is full."""
        return max(self.full_at - now, 0.0)

    def remaining(self, now: float) -> int:
        """Return the units that are available."""
        left = 1.0 - self.reset(now) / MINUTE
        return max(math.floor(left * self.per_minute + ROUNDING), 0)


class Described(Protocol):
    """A rate as the headers describe it."""

    per_minute: int

    def reset(self, now: float) -> float:
        """Return the seconds until the bucket is full."""
        ...

    def remaining(self, now: float) -> int:
        """Return the units that are available."""
        ...


def refuse_concurrent(whose: str, most: int) -> RateLimitExceeded:
    """Return the error of a request beside too many others; ``whose`` begins its message."""
    return RateLimitExceeded(
        f"{whose} may have {most} requests in progress at a time. "
        "Wait for a response before you send another one.",
        retry_after=SHORTEST_RETRY,
    )


def refuse_request(whose: str, per_minute: int, wait: float) -> RateLimitExceeded:
    """Return the error of a request that must wait for ``wait`` seconds."""
    return RateLimitExceeded(
        f"{whose} may make {per_minute} requests per minute. Try again in {duration(wait)}.",
        retry_after=wait,
    )


def refuse_tokens(whose: str, per_minute: int, tokens: int, wait: float) -> RateLimitExceeded:
    """Return the error of a request whose tokens are available after ``wait`` seconds, or never."""
    message = (
        f"{whose} may use {per_minute} tokens per minute, and this request needs about {tokens}. "
    )
    if tokens > per_minute:
        return TooManyTokens(f"{message}Send fewer inputs at a time.")
    return RateLimitExceeded(f"{message}Try again in {duration(wait)}.", retry_after=wait)


def make_headers(
    requests: Sequence[Described], tokens: Sequence[Described], now: float
) -> list[Header]:
    """Return OpenAI's ``x-ratelimit-*`` headers, for the limits with the fewest units left."""
    headers: list[Header] = []
    for name, rates in ((b"requests", requests), (b"tokens", tokens)):
        if rates:
            rate = min(rates, key=lambda each: each.remaining(now))
            headers += [
                (b"x-ratelimit-limit-" + name, b"%d" % rate.per_minute),
                (b"x-ratelimit-remaining-" + name, b"%d" % rate.remaining(now)),
                (b"x-ratelimit-reset-" + name, duration(rate.reset(now)).encode()),
            ]
    return headers


def duration(seconds: float) -> str:
    """Write seconds as OpenAI does: ``20ms``, ``7.66s``, ``1m0s``."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds / 1000, 60)
    return f"{minutes:.0f}m{rest:.3g}s" if minutes else f"{rest:.3g}s"
