"""Limits how often a warning about the same thing is logged."""

from collections.abc import Callable
from typing import Final

from embedroute.routing import BoundedMap

LOG_INTERVAL: Final = 60.0
"""Seconds between two log records about the same thing."""


class LogLimit:
    """Allows one log record per key and ``LOG_INTERVAL``; ``clock`` returns seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Allow every key at first."""
        self._clock = clock
        self._logged: BoundedMap[tuple[str, str], float] = BoundedMap()

    def allows(self, kind: str, name: str) -> bool:
        """Return whether a record of this kind about ``name`` may be logged now."""
        key = kind, name
        now = self._clock()
        last = self._logged.get_or_insert(key, now - LOG_INTERVAL)
        if now - last < LOG_INTERVAL:
            return False
        self._logged[key] = now
        return True
