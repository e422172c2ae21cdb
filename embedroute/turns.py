"""Large answers: from which size on they are worked on in a worker thread, and how that lets others have their turn."""

import time
from collections.abc import Iterator
from typing import Final

LARGE: Final = 3 * 512 * 1024
"""Bytes of an answer from which on reading or writing it would hold an event loop up."""
TURN: Final = 32
"""Rows that are worked on at a time."""


def in_turns(count: int) -> Iterator[slice]:
    """Cut ``count`` rows into groups, and let other threads have the interpreter between two of them."""
    for start in range(0, count, TURN):
        if start:
            time.sleep(0)
        yield slice(start, start + TURN)
