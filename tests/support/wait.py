"""Waits until another thread or process has fulfilled a condition, and returns the seconds.

The seconds are counted in sleeps of this thread or event loop, not by the clock, so that the result
has an upper bound on a busy machine too: there, fewer sleeps complete.
"""

import time
from collections.abc import Callable

import anyio

PATIENCE = 30.0
"""Seconds of the clock after which the condition counts as failed; enough for a busy machine."""
POLL = 0.002


def until(condition: Callable[[], object]) -> float:
    """Block this thread until ``condition()`` is true, and return the seconds that it slept."""
    began, slept = time.monotonic(), 0.0
    while not condition():
        assert time.monotonic() - began < PATIENCE
        time.sleep(POLL)
        slept += POLL
    return slept


async def until_on_loop(condition: Callable[[], object], longest: float = PATIENCE) -> float:
    """Wait without blocking the event loop until ``condition()`` is true; return the seconds."""
    began, slept = time.monotonic(), 0.0
    while not condition():
        assert time.monotonic() - began < longest
        await anyio.sleep(POLL)
        slept += POLL
    return slept
