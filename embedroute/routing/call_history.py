"""Counts the outcomes of the recent calls to one endpoint.

Time is an argument: every method takes ``now`` in seconds of one monotonic clock.
"""

import math
from collections import deque
from typing import Final

PERIOD: Final = 30
"""Seconds over which calls are counted."""
LAST: Final = 100
"""Calls at most that decide whether a breaker opens, so that a busy endpoint is judged quickly."""
FEW: Final = 5
"""Retries up to which it is unknown whether they help."""
HELPFUL: Final = 0.1
"""Share of retries that must have been answered for further ones."""

UNKNOWN: Final = 0.01
"""Share of calls that is assumed to fail at random if no such failure is known."""
LEAST_RANDOM: Final = 0.5
"""Random failures, halved over time, from which their share is estimated."""
HALF_LIFE: Final = 300.0
"""Seconds after which a random failure counts half."""
LARGEST_SHARE: Final = 0.9
"""Largest estimate of that share."""


class _Second:
    """The calls of one second: all, the failed ones, the retries, and the answered retries.

    ``counted`` is how many of the calls, and of the last ones, are in the decaying counts.
    """

    __slots__ = ("at", "calls", "counted", "failed", "helped", "retries")

    def __init__(self, at: int) -> None:
        self.at = at
        self.calls = 0
        self.failed = 0
        self.retries = 0
        self.helped = 0
        self.counted: tuple[int, int] = (0, 0)


class CallHistory:
    """The calls of the last ``PERIOD`` seconds, and the last ones that count for the breaker."""

    def __init__(self) -> None:
        """Create an empty history."""
        self._seconds: deque[_Second] = deque()
        self._last: deque[tuple[float, bool]] = deque(maxlen=LAST)
        self._last_failed = 0
        self._latest = _Second(0)
        self._calls = 0.0
        self._helped = 0.0
        self._counted_until = 0.0

    def record(self, now: float, *, failed: bool) -> None:
        """Count one call, also among the last ones."""
        self.count(now, failed=failed)
        last = self._last
        if len(last) == LAST:
            self._last_failed -= last[0][1]
        last.append((now, failed))
        self._last_failed += failed

    def count(self, now: float, *, failed: bool) -> None:
        """Count one call that does not decide about the breaker.

        An input may have caused its failure, or it began before the breaker opened or closed.
        """
        seconds = self._seconds
        second = seconds[-1] if seconds and seconds[-1].at == int(now) else self._begin(now)
        second.calls += 1
        second.failed += failed

    def record_retry(self, now: float, *, answered: bool) -> None:
        """Count a retry: a call that is equal to one that has failed."""
        seconds = self._seconds
        second = seconds[-1] if seconds and seconds[-1].at == int(now) else self._begin(now)
        second.retries += 1
        second.helped += answered

    def last(self, now: float) -> tuple[int, int]:
        """Return how many of the last calls there were, at most ``LAST``, and how many failed."""
        last = self._last
        while last and now - last[0][0] > PERIOD:
            self._last_failed -= last.popleft()[1]
        return len(last), self._last_failed

    def forget_last(self) -> None:
        """Discard the last calls."""
        self._last.clear()
        self._last_failed = 0

    def counts(self, now: float) -> tuple[int, int]:
        """Return the number of calls in the last ``PERIOD`` seconds, and of the failed ones."""
        self._forget(now)
        return sum(each.calls for each in self._seconds), sum(each.failed for each in self._seconds)

    def retries_help(self, now: float) -> bool:
        """Return whether enough of the recent retries were answered to make another one.

        It is assumed after only a few retries.
        """
        self._forget(now)
        retries = sum(each.retries for each in self._seconds)
        helped = sum(each.helped for each in self._seconds)
        return retries < FEW or helped >= HELPFUL * retries

    def random_share(self, now: float) -> float:
        """Return an upper estimate of the share of calls that fail at random.

        A failure was random if its retry was answered. ``UNKNOWN`` is assumed before the first one.
        A retry may fail at random as well, so twice the number of the answered ones is taken, and a
        standard deviation is added for the small number of calls. The counts are halved every
        ``HALF_LIFE`` seconds.
        """
        self._count_latest(now)
        if self._helped < LEAST_RANDOM:
            return UNKNOWN
        random = 2 * self._helped + 1
        return min(LARGEST_SHARE, (random + math.sqrt(random)) / (self._calls + 2))

    def _begin(self, now: float) -> _Second:
        self._count_latest(now)
        self._forget(now)
        second = self._latest = _Second(int(now))
        self._seconds.append(second)
        return second

    def _count_latest(self, now: float) -> None:
        """Add what the latest second has got since the last time to the decaying counts."""
        latest = self._latest
        calls, helped = latest.counted
        remaining = 0.5 ** ((now - self._counted_until) / HALF_LIFE)
        self._calls = self._calls * remaining + latest.calls - calls
        self._helped = self._helped * remaining + latest.helped - helped
        latest.counted = latest.calls, latest.helped
        self._counted_until = now

    def _forget(self, now: float) -> None:
        while self._seconds and now - self._seconds[0].at > PERIOD:
            self._seconds.popleft()
