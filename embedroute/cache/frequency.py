"""Estimates how often keys were requested lately, in a fixed amount of memory (TinyLFU).

It is a count-min sketch whose counters are halved from time to time (Einziger, Friedman and Manes,
"TinyLFU: A Highly Efficient Cache Admission Policy", 2017).
"""

from collections.abc import Iterable
from typing import Final

MOST: Final = 15
"""Highest count; more would only take longer to forget."""
_HALVED: Final = bytes(count // 2 for count in range(256))


class FrequencySketch:
    """Counts of keys. Keys whose hashes collide share counts, so a count may be too high."""

    __slots__ = ("_counted", "_counts", "_mask", "_shift")

    def __init__(self, slots: int) -> None:
        """Create a sketch with at least ``slots`` counters, of one byte each."""
        bits = max(slots - 1, 1).bit_length()
        self._mask = (1 << bits) - 1
        self._shift = bits
        self._counts = bytearray(1 << bits)
        self._counted = 0

    def count(self, keys: Iterable[bytes], period: int) -> None:
        """Count one request for each key; after ``period`` requests, all counts are halved."""
        counts = self._counts
        mask = self._mask
        shift = self._shift
        counted = self._counted
        for key in keys:
            first = hash(key)
            second = first >> shift & mask
            first &= mask
            lowest = min(counts[first], counts[second])
            if lowest < MOST:
                # Only the lower counter grows, so that collisions falsify it less.
                if counts[first] == lowest:
                    counts[first] = lowest + 1
                if counts[second] == lowest:
                    counts[second] = lowest + 1
            counted += 1
        if counted >= period:
            self._counts = counts.translate(_HALVED)
            counted //= 2
        self._counted = counted

    def estimate(self, key: bytes) -> int:
        """Return how often a key was counted lately, at most ``MOST``."""
        first = hash(key)
        return min(
            self._counts[first & self._mask], self._counts[first >> self._shift & self._mask]
        )
