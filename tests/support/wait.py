"""Waits until another thread or process has fulfilled a condition, and returns the seconds."""

import time
from collections.abc import Callable

import anyio

PATIENCE = 30.0
"""Seconds after which the condition counts as failed; enough for a busy machine."""
POLL = 0.002


def until(condition: Callable[[], object]) -> float:
    """Block this thread until ``condition()`` is true, and return the seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE
        time.sleep(POLL)
    return time.monotonic() - began


async def until_on_loop(condition: Callable[[], object]) -> float:
    """Wait without blocking the event loop until ``condition()`` is true; return the seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE
        await anyio.sleep(POLL)
    return time.monotonic() - began
