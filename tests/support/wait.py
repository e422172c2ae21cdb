"""Waits for what another thread or process brings about, however busy the machine is, and tells how long that took."""

import time
from collections.abc import Callable

import anyio

PATIENCE = 30.0
"""Seconds after which it never comes."""
POLL = 0.002


def until(true: Callable[[], object]) -> float:
    """Wait in this thread, and give the seconds that it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < PATIENCE
        time.sleep(POLL)
    return time.monotonic() - began


async def until_on_loop(true: Callable[[], object]) -> float:
    """Wait and let the event loop go on, and give the seconds that it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < PATIENCE
        await anyio.sleep(POLL)
    return time.monotonic() - began
