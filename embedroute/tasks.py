"""The one place that starts tasks and unwraps exception groups, so that no task outlives its request."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar, cast

import anyio
from anyio import CapacityLimiter

T = TypeVar("T")


def on_asyncio() -> bool:
    """Whether this runs on an asyncio event loop, and not on trio."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class ClientGone(Exception):
    """The client went away before its answer was ready."""


def within(seconds: float) -> AbstractAsyncContextManager[object]:
    """Bound what is awaited inside; past ``seconds`` it is cancelled and ``TimeoutError`` is raised.

    asyncio's own timeout costs a fifth of a cancel scope, and every request is under two.
    """
    return asyncio.timeout(seconds) if on_asyncio() else _within(seconds)


@asynccontextmanager
async def _within(seconds: float) -> AsyncGenerator[None, None]:
    with anyio.fail_after(seconds):
        yield


async def unless(gone: Callable[[], Coroutine[Any, Any, None]], work: Coroutine[Any, Any, T], *, grace: float = 0.05) -> T:
    """Await ``work``, and cancel it when ``gone`` returns first.

    The watch begins after ``grace`` seconds: most work is done by then and needs no second task.

    Raises:
        ClientGone: ``gone`` returned before the work was done.
    """
    return await (_unless_on_asyncio if on_asyncio() else _unless)(gone, work, grace)


async def _unless_on_asyncio(gone: Callable[[], Coroutine[Any, Any, None]], work: Coroutine[Any, Any, T], grace: float) -> T:
    loop, worker = asyncio.get_running_loop(), cast("asyncio.Task[Any]", asyncio.current_task())
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


async def _unless(gone: Callable[[], Coroutine[Any, Any, None]], work: Coroutine[Any, Any, T], grace: float) -> T:
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
