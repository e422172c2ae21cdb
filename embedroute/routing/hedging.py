"""Decides when a call is slow enough for a second one beside it, and how many there may be.

Of the calls that usually take the same time, only the slowest are hedged, so the load grows by a
few per cent (Dean and Barroso, "The Tail at Scale", 2013).
"""

from collections import deque
from typing import Final

SHARE: Final = 0.05
"""Further calls for each first call."""
AT_FIRST: Final = 2.0
"""Further calls that are allowed at first."""
SAVED: Final = 10.0
"""Further calls that can be saved up."""
REMEMBERED: Final = 128
"""Calls of a size class whose times are remembered."""
ENOUGH: Final = 16
"""Calls that must be remembered before a percentile of them is used."""
PERCENTILE: Final = 95
"""Percentile of the times after which a call is slow."""
MEDIANS: Final = 2.0
"""How many times as long as the median a slow call takes at least."""
SHORTEST: Final = 0.01
"""Seconds that a slow call takes at least."""
UNKNOWN_FACTOR: Final = 3.0
"""How many times as long as the shortest call a slow one takes, while few are remembered.

The first calls include the time to connect.
"""
SAVING_FACTOR: Final = 2.0
"""How many times longer the delay is while less than half of ``SAVED`` is left."""


class HedgeBudget:
    """Limits further calls to a share of the first calls: a bucket of tokens."""

    __slots__ = ("_tokens",)

    def __init__(self) -> None:
        """Allow ``AT_FIRST`` further calls at first."""
        self._tokens = AT_FIRST

    @property
    def is_low(self) -> bool:
        """Whether less than half of the calls that can be saved up is left."""
        return self._tokens < SAVED / 2

    def record_call(self) -> None:
        """Count a first call."""
        self._tokens = min(SAVED, self._tokens + SHARE)

    def allow(self) -> bool:
        """Take one further call out of the budget; return False if it is spent."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class CallTimes:
    """The times of the last first calls to one endpoint, by size class.

    A call that was cancelled because another answered first counts with its time until then.
    Without these, the slowest calls would be missing.
    """

    __slots__ = ("_by_size",)

    def __init__(self) -> None:
        """Create an empty history."""
        self._by_size: dict[int, deque[float]] = {}

    def record(self, inputs: int, seconds: float) -> None:
        """Record a call of ``inputs`` inputs."""
        size_class = inputs.bit_length()
        times = self._by_size.get(size_class)
        if times is None:
            times = self._by_size[size_class] = deque(maxlen=REMEMBERED)
        times.append(seconds)

    def slow_after(self, inputs: int) -> float | None:
        """Return the seconds after which a call of this size is slow; None without any call."""
        times = sorted(self._by_size.get(inputs.bit_length(), ()))
        if not times:
            return None
        if len(times) < ENOUGH:
            return max(SHORTEST, UNKNOWN_FACTOR * times[0])
        rank = -(-PERCENTILE * len(times) // 100)
        return max(SHORTEST, times[rank - 1], MEDIANS * times[len(times) // 2])


def hedge_delay(times: CallTimes, budget: HedgeBudget, inputs: int) -> float | None:
    """Return the seconds after which a call is hedged; None if its usual time is not known.

    While the budget is low, only the slowest calls are hedged.
    """
    seconds = times.slow_after(inputs)
    return SAVING_FACTOR * seconds if seconds is not None and budget.is_low else seconds
