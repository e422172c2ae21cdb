"""The one place that starts tasks and unwraps exception groups, so that no task outlives its request."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TypeVar, cast

import anyio
import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

T = TypeVar("T")

_THREADS: RunVar[CapacityLimiter] = RunVar("embedroute.threads")


async def in_thread(work: Callable[[], T]) -> T:
    """Do CPU work of milliseconds in a worker thread; two at a time, which are not of those that the host counts on."""
    limiter = _THREADS.get(None)
    if limiter is None:
        limiter = CapacityLimiter(2)
        _THREADS.set(limiter)
    return await anyio.to_thread.run_sync(work, limiter=limiter)


def on_asyncio() -> bool:
    """Whether this runs on an asyncio event loop, and not on trio."""
    return asyncio_loop() is not None


class ClientGone(Exception):
    """The client went away before its answer was ready."""


def asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """The running event loop of asyncio, None on trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def within(seconds: float) -> AbstractContextManager[object]:
    """Bound what is awaited inside; past ``seconds`` it is cancelled and ``TimeoutError`` is raised."""
    loop = asyncio_loop()
    return anyio.fail_after(seconds) if loop is None else _Within(loop, seconds)


class _Within:
    """asyncio's own timeout without its means to be moved: every request is under two, and this is a third of the cost."""

    __slots__ = ("_before", "_expired", "_task", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._task = cast("asyncio.Task[object]", asyncio.current_task())
        self._expired = False
        self._before = self._task.cancelling()
        self._timer = loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def __enter__(self) -> object:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._timer.cancel()
        # Whoever else cancelled this task as well is to have its way.
        if self._expired and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error


async def unless(gone: Callable[[], Coroutine[object, None, None]], work: Awaitable[T], *, grace: float = 0.05) -> T:
    """Await ``work``, and cancel it when ``gone`` returns first.

    The watch begins after ``grace`` seconds: most work is done by then and needs no second task.

    Raises:
        ClientGone: ``gone`` returned before the work was done.
    """
    return await (_unless_on_asyncio if on_asyncio() else _unless)(gone, work, grace)


async def _unless_on_asyncio(gone: Callable[[], Coroutine[object, None, None]], work: Awaitable[T], grace: float) -> T:
    loop, worker = asyncio.get_running_loop(), cast("asyncio.Task[object]", asyncio.current_task())
    watches: list[asyncio.Task[None]] = []

    def left(watch: asyncio.Task[None]) -> None:
        if not watch.cancelled() and watches:
            worker.cancel()

    def begin() -> None:
        watches.append(loop.create_task(gone()))
        watches[0].add_done_callback(left)

    timer = loop.call_later(grace, begin)
    try:
        return await work
    except asyncio.CancelledError:
        # Ours if the watch is over; but whoever else cancelled this task as well is to have its way.
        if not watches or not watches[0].done() or worker.uncancel() > 0:
            raise
        raise watches[0].exception() or ClientGone() from None
    except BaseExceptionGroup as grouped:
        raise innermost(grouped) from None
    finally:
        timer.cancel()
        await _end(watches)


async def _end(watches: list[asyncio.Task[None]]) -> None:
    ended, watches[:] = list(watches), []
    if ended and not ended[0].done():
        ended[0].cancel()
        await asyncio.wait(ended)


async def _unless(gone: Callable[[], Coroutine[object, None, None]], work: Awaitable[T], grace: float) -> T:
    scope = anyio.CancelScope()

    async def watch() -> None:
        await anyio.sleep(grace)
        await gone()
        scope.cancel()

    outcome: list[T] = []
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            with scope:
                outcome.append(await work)
            group.cancel_scope.cancel()
    except BaseExceptionGroup as grouped:
        raise innermost(grouped) from None
    if not outcome:
        raise ClientGone
    return outcome[0]


async def gather(work: Sequence[Callable[[], Awaitable[None]]], at_once: int) -> None:
    """Run all of ``work``, at most ``at_once`` at a time; the first failure cancels the rest and is raised."""
    if len(work) == 1:
        await work[0]()
        return
    limiter = CapacityLimiter(at_once)

    async def run(item: Callable[[], Awaitable[None]]) -> None:
        async with limiter:
            await item()

    try:
        async with anyio.create_task_group() as group:
            for item in work:
                group.start_soon(run, item)
    except BaseExceptionGroup as grouped:
        raise innermost(grouped) from None


def innermost(grouped: BaseExceptionGroup[BaseException]) -> BaseException:
    """Take the first plain exception out of nested groups."""
    first = grouped.exceptions[0]
    return innermost(cast("BaseExceptionGroup[BaseException]", first)) if isinstance(first, BaseExceptionGroup) else first
