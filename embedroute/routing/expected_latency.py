"""Estimates how long a call takes at an endpoint, from the last calls of a similar size.

Single-flight uses the estimate to decide how long a request waits for another request's call
before it makes its own.
"""

from collections import deque
from typing import Final

from embedroute.routing.bounded_map import BoundedMap

REMEMBERED: Final = 32
"""Answered calls that are remembered for each endpoint and size class."""
PERCENTILE: Final = 90
"""Percentile of the remembered durations that is used as the estimate."""
SHORTEST: Final = 0.5
"""Lower bound of an estimate in seconds: a short wait costs less than a second call."""
FIRST: Final = 1.0
"""Estimate in seconds while no call of a size class was answered yet."""
PER_INPUT: Final = 0.01
"""Seconds that each input adds to ``FIRST``."""


class UsualLatency:
    """The durations of the last answered calls by endpoint and size class.

    A size class is a power of two: 4 to 7 inputs are one class.
    """

    def __init__(self) -> None:
        """Create an empty history."""
        self._seconds: BoundedMap[tuple[str, int], deque[float]] = BoundedMap()

    def record(self, endpoint: str, inputs: int, seconds: float) -> None:
        """Record that a call of ``inputs`` inputs was answered after ``seconds``."""
        size_class = endpoint, inputs.bit_length()
        durations = self._seconds.get(size_class)
        if durations is None:
            durations = self._seconds.get_or_insert(size_class, deque(maxlen=REMEMBERED))
        durations.append(seconds)

    def expect(self, endpoint: str, inputs: int) -> float:
        """Return the seconds within which a call of ``inputs`` inputs usually ends."""
        durations = sorted(self._seconds.get((endpoint, inputs.bit_length())) or ())
        if not durations:
            return FIRST + PER_INPUT * inputs
        return max(SHORTEST, durations[-(-PERCENTILE * len(durations) // 100) - 1])
