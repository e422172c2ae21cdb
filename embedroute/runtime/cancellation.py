"""Distinguishes cancellations of the current task from errors, and ends a cancelled task."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, cast

import anyio

from embedroute.runtime.time_limits import fail_after, on_asyncio

UVICORN_STOPS: Final = "Task cancelled, timeout graceful shutdown exceeded"
"""The message of the cancellation of a request after uvicorn's ``timeout_graceful_shutdown``."""


def is_foreign_cancellation(error: BaseException) -> bool:
    """Return whether ``error`` is a cancellation that the called code raised itself.

    Such an error must not end the task. On trio, code cannot raise a cancellation itself.
    """
    with suppress(RuntimeError):  # no loop is running: a coroutine is closed after its loop ended
        task = asyncio.current_task() if on_asyncio() else anyio.get_current_task()
        is_real = task is None or (isinstance(task, asyncio.Task) and task.cancelling() > 0)
        return isinstance(error, asyncio.CancelledError | GeneratorExit) and not is_real
    return False


def is_cancellation(error: BaseException) -> bool:
    """Return whether ``error`` is a cancellation of the current task by the code around it."""
    if on_asyncio():
        return isinstance(error, asyncio.CancelledError) and not is_foreign_cancellation(error)
    if isinstance(error, GeneratorExit):  # the coroutine is closed, maybe without an event loop
        return False
    is_plain = isinstance(error, anyio.get_cancelled_exc_class())
    return is_plain or cancellation(error) is not None


async def run_although_cancelled(work: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Run ``work`` for at most ``seconds`` in a task that is being cancelled."""
    if on_asyncio():  # where a cancellation is raised only once
        with suppress(TimeoutError), fail_after(seconds):
            await work()
    else:
        with anyio.move_on_after(seconds, shield=True):
            await work()


def end_cancelled(error: BaseException) -> None:
    """Raise ``error``, by which the current task is being cancelled, unless it is uvicorn's.

    uvicorn would log a traceback. So cancel the task again instead: its next ``await`` raises the
    cancellation, or if there is none, the task ends as cancelled.
    """
    task = asyncio.current_task() if on_asyncio() else None
    if task is None or UVICORN_STOPS not in error.args:
        raise error
    task.uncancel()
    task.cancel(*error.args)


def cancellation(error: BaseException) -> BaseException | None:
    """Return the cancellations in an exception group, or None.

    Trio raises such a group if several tasks of a call are cancelled at once.
    """
    if not isinstance(error, BaseExceptionGroup):
        return None
    return cast("BaseExceptionGroup[BaseException]", error).subgroup(
        anyio.get_cancelled_exc_class()
    )


def innermost(grouped: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception of nested groups that is not a group."""
    first = grouped.exceptions[0]
    if isinstance(first, BaseExceptionGroup):
        return innermost(cast("BaseExceptionGroup[BaseException]", first))
    return first
