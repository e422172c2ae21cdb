"""The one place that starts tasks and unwraps exception groups, so that no task outlives its request."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, suppress
from contextvars import copy_context
from types import TracebackType
from typing import TypeVar, cast

import anyio
from anyio import CapacityLimiter

from embedroute.due import Alone, Line, line_of

T = TypeVar("T")

Gone = Callable[[], Coroutine[object, None, None]]
"""Returns when a client leaves."""


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


def within(seconds: float, *, alone: bool = False) -> AbstractContextManager[object]:
    """Bound what is awaited inside; past ``seconds`` it is cancelled and ``TimeoutError`` is raised.

    Bounds of equally many seconds share a timer; ``alone`` tells one that is like no other.
    """
    loop = asyncio_loop()
    return anyio.fail_after(seconds) if loop is None else _Within(loop, Alone(seconds) if alone else line_of(loop, seconds))


class _Within:
    """asyncio's own timeout without its means to be moved: every request is under two, and this is a third of the cost."""

    __slots__ = ("_before", "_expired", "_line", "_task")

    def __init__(self, loop: asyncio.AbstractEventLoop, line: Line | Alone) -> None:
        self._task = cast("asyncio.Task[object]", asyncio.current_task(loop))
        self._expired = False
        self._before = self._task.cancelling()
        self._line = line
        line.join(loop, self)

    def come(self) -> None:
        """Its time is over."""
        self._expired = True
        self._task.cancel()

    def __enter__(self) -> object:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._line.leave(self)
        # Whoever else cancelled this task as well is to have its way.
        if self._expired and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error


def unless(gone: Gone, work: Awaitable[T], *, grace: float = 0.05) -> Awaitable[T]:
    """Await ``work``, and cancel it when ``gone`` returns first.

    The watch begins after ``grace`` seconds: most work is done by then and needs no second task.

    Raises:
        ClientGone: ``gone`` returned before the work was done.
    """
    loop = asyncio_loop()
    return _unless(gone, work, grace) if loop is None else _unless_on_asyncio(loop, gone, work, grace)


class _Watch:
    """Awaits ``gone`` beside the task that makes it, which is cancelled when ``gone`` returns."""

    __slots__ = ("_context", "_gone", "_loop", "_task", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop, gone: Gone) -> None:
        self._loop = loop
        self._context = copy_context()
        self._gone = gone
        self._task = cast("asyncio.Task[object]", asyncio.current_task(loop))
        self.task: asyncio.Task[None] | None = None

    def come(self) -> None:
        """Begin to watch."""
        self.task = self._context.run(self._loop.create_task, self._gone())
        self.task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and self.task is not None:
            self._task.cancel()

    def cancelled_it(self) -> bool:
        """Whether the cancellation that has just come is the watch's own; whoever else wants one is to have its way."""
        return self.task is not None and self.task.done() and self._task.uncancel() == 0

    async def end(self) -> None:
        task, self.task = self.task, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])


async def _unless_on_asyncio(loop: asyncio.AbstractEventLoop, gone: Gone, work: Awaitable[T], grace: float) -> T:
    watch, line = _Watch(loop, gone), line_of(loop, grace)
    line.join(loop, watch)
    try:
        return await work
    except asyncio.CancelledError:
        if not watch.cancelled_it():
            raise
        raise (watch.task and watch.task.exception()) or ClientGone() from None
    except BaseExceptionGroup as grouped:
        raise innermost(grouped) from None
    finally:
        line.leave(watch)
        if watch.task is not None:
            await watch.end()


async def _unless(gone: Gone, work: Awaitable[T], grace: float) -> T:
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


def is_stray(error: BaseException) -> bool:
    """Whether what would end this task came out of what it calls, and nobody sent it; trio's cannot be raised by hand."""
    with suppress(RuntimeError):  # no loop runs: a coroutine is closed after it
        task = asyncio.current_task() if on_asyncio() else anyio.get_current_task()
        sent = task is None or (isinstance(task, asyncio.Task) and task.cancelling() > 0)
        return isinstance(error, asyncio.CancelledError | GeneratorExit) and not sent
    return False


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


def cancellation(error: BaseException) -> BaseException | None:
    """Take the cancellations out of a group: trio gives out one where several tasks of a call were cancelled at once."""
    if not isinstance(error, BaseExceptionGroup):
        return None
    return cast("BaseExceptionGroup[BaseException]", error).subgroup(anyio.get_cancelled_exc_class())


def innermost(grouped: BaseExceptionGroup[BaseException]) -> BaseException:
    """Take the first plain exception out of nested groups."""
    first = grouped.exceptions[0]
    return innermost(cast("BaseExceptionGroup[BaseException]", first)) if isinstance(first, BaseExceptionGroup) else first
