"""Large answers: from which size on they are worked on in a worker thread, and how that lets others have their turn."""

import time
from collections.abc import Iterator
from typing import Final

LARGE: Final = 3 * 512 * 1024
"""Bytes of an answer from which on reading or writing it would hold an event loop up."""
TURN: Final = 16
"""Rows of a large answer that are worked on at a time; writing one as text takes about 30 µs."""
_REST: Final = 20e-6
"""Seconds of rest between two turns: on one core, only who sleeps is not the next to have the interpreter again."""


_KEPT: Final = 31 * 1024 * 1024
"""Bytes just under the largest block by which glibc adapts."""


def keep_memory() -> None:
    """Have the C library keep what large answers take, instead of giving it back and fetching it anew page by page.

    glibc adapts to the largest block of up to 32 MiB that it has freed: it maps no smaller one apart, and gives back
    only what exceeds twice that (mallopt(3), "dynamic mmap threshold"). Nothing touches the block, so it costs nothing,
    and other C libraries take no notice of it.
    """
    bytes(_KEPT)


def in_turns(count: int, size: int) -> Iterator[slice]:
    """Cut ``count`` rows of ``size`` bytes in all into groups, and rest between two; small work is one group."""
    if size < LARGE:
        yield slice(0, count)
        return
    for start in range(0, count, TURN):
        if start:
            time.sleep(_REST)
        yield slice(start, start + TURN)
