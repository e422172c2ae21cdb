"""How long a call of so many inputs usually takes at each endpoint.

So a request knows when its own call is better than waiting for another's.
"""

from collections import deque
from typing import Final

from embedroute.routing.bounded_map import BoundedMap

REMEMBERED: Final = 32
"""Answered calls that are remembered for each endpoint and size."""
PERCENTILE: Final = 90
"""Per cent of the remembered calls that took no longer than what is expected."""
SHORTEST: Final = 0.5
"""Seconds that are expected at least: a short wait costs less than a second call."""
FIRST: Final = 1.0
"""Seconds that a call is expected to take while none of its size was answered."""
PER_INPUT: Final = 0.01
"""Seconds for each input on top of ``FIRST``."""


class UsualLatency:
    """Endpoint and size → seconds of its last answered calls; 4 to 7 inputs are one size."""

    def __init__(self) -> None:
        """Remember no call yet."""
        self._seconds: BoundedMap[tuple[str, int], deque[float]] = BoundedMap()

    def record(self, endpoint: str, inputs: int, seconds: float) -> None:
        """Remember that a call of so many inputs was answered after ``seconds``."""
        size = endpoint, inputs.bit_length()
        known = self._seconds.get(size)
        if known is None:
            known = self._seconds.get_or_insert(size, deque(maxlen=REMEMBERED))
        known.append(seconds)

    def expect(self, endpoint: str, inputs: int) -> float:
        """Return the seconds within which a call of so many inputs usually ends."""
        known = sorted(self._seconds.get((endpoint, inputs.bit_length())) or ())
        if not known:
            return FIRST + PER_INPUT * inputs
        return max(SHORTEST, known[-(-PERCENTILE * len(known) // 100) - 1])
