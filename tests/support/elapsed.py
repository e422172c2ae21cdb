"""Measures durations on an event loop so that their bounds also hold on a busy machine."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

TICK = 0.05
"""Seconds between two ticks: much longer than the delay of a sleep on a busy machine."""


class Elapsed:
    """How long the body of ``measured()`` took.

    ``seconds`` are those of the wall clock. Use them for lower bounds: a timer never fires early.

    ``ticks`` are seconds as the event loop saw them: a task of the same loop sleeps for ``TICK``
    again and again, and each sleep counts as ``TICK``. If other processes keep this one from
    running, fewer sleeps complete. Use them for upper bounds.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.ticks = 0.0

    async def count(self) -> None:
        """Count ticks until this task is cancelled."""
        while True:
            await anyio.sleep(TICK)
            self.ticks += TICK


@asynccontextmanager
async def measured() -> AsyncIterator[Elapsed]:
    """Measure the body of ``async with``; an exception of the body propagates unchanged."""
    elapsed = Elapsed()
    raised = None
    began = time.monotonic()
    async with anyio.create_task_group() as group:
        group.start_soon(elapsed.count)
        try:
            yield elapsed
        except Exception as error:  # noqa: BLE001 - raised again outside of the task group
            raised = error
        elapsed.seconds = time.monotonic() - began
        group.cancel_scope.cancel()
    if raised is not None:
        raise raised
