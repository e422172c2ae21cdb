"""Starts tasks, and watches the time limit and the client of a request.

No other module starts tasks. No task outlives its request, except one that ignores its cancellation
(``run_abandonable``).
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import copy_context
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeVar, cast

import anyio
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from embedroute.runtime.cancellation import innermost
from embedroute.runtime.time_limits import SECOND_CHANCE, asyncio_loop, significant_lag

T = TypeVar("T")

Disconnected = Callable[[], Coroutine[object, None, None]]
"""A coroutine function that returns when the client disconnects."""
MakeError = Callable[[float], Exception]
"""Returns the error of a time limit that has passed.

It gets the seconds by which the event loop was late, or 0 if that was insignificant.
"""

GRACE: Final = 0.05
"""Seconds in which most requests finish: until then, no task waits for a disconnect."""

CANCEL_GRACE: Final = 0.25
"""Seconds that a cancelled call gets to clean up before it is abandoned."""

_ABANDONED: Final[RunVar[set[asyncio.Task[None]] | None]] = RunVar("embedroute.abandoned")
"""The tasks of an event loop that ignored their cancellation and have not ended yet."""


class ClientDisconnected(Exception):
    """The client disconnected before its response was ready."""


class ClientTooSlow(Exception):
    """The client has read nothing of its response for too long."""


class Watch(Protocol):
    """Limits the time of one request, and cancels it when the client disconnects.

    It is an asynchronous context manager. Disconnects are ignored before ``restart`` is called.
    """

    @property
    def expired(self) -> bool:
        """Whether the time limit has cancelled the work, and the event loop was not late."""
        ...

    def restart(
        self, seconds: float, make_error: MakeError, disconnected: Disconnected | None
    ) -> None:
        """Cancel the work after ``seconds`` from now, and raise the result of ``make_error(lag)``.

        This replaces the earlier limit. Cancel the work also when ``disconnected`` returns, and
        raise ``ClientDisconnected``; if it raises an error, raise that error. It is called once:
        later restarts have no effect on it, except that None ends the watch for a disconnect.
        """
        ...

    async def __aenter__(self) -> Self:
        """Start the watch."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the started tasks, and replace the watch's own cancellation by its reason."""
        ...


def watch(
    seconds: float,
    make_error: MakeError,
    grace: float = GRACE,
    on_cancelled: Callable[[], Awaitable[None]] | None = None,
) -> Watch:
    """Create a watch for one request.

    It cancels the work after ``seconds`` from now, and raises ``make_error(lag)``. It has one
    timer, first for ``grace``, then for the limit. The task that waits for a disconnect is started
    only after ``grace`` seconds.

    On asyncio ``on_cancelled`` is awaited as soon as other code has cancelled the work, before the
    watch ends. uvicorn may end the process a few iterations of the event loop later.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _AnyioWatch(seconds, make_error, grace)
    return _AsyncioWatch(loop, seconds, make_error, grace, on_cancelled)


class _AsyncioWatch:
    __slots__ = (
        "_at",
        "_before",
        "_context",
        "_grace",
        "_has_expired",
        "_has_set_up",
        "_lag",
        "_loop",
        "_make_error",
        "_on_cancelled",
        "_on_disconnect",
        "_own_cancels",
        "_seconds",
        "_task",
        "_timer",
        "_watcher",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        make_error: MakeError,
        grace: float,
        on_cancelled: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._loop = loop
        self._on_cancelled = on_cancelled
        self._context = copy_context()
        self._task = cast("asyncio.Task[object]", asyncio.current_task(loop))
        self._before = self._task.cancelling()
        self._own_cancels = 0
        self._make_error = make_error
        self._on_disconnect: Disconnected | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._has_set_up = seconds < grace
        self._seconds = seconds
        self._lag = 0.0
        self._has_expired = False
        self._grace = grace
        now = loop.time()
        self._at = now + seconds
        if self._has_set_up:
            self._timer = loop.call_at(self._at, self._expire)
        else:
            self._timer = loop.call_at(now + grace, self._after_grace)

    def restart(
        self, seconds: float, make_error: MakeError, disconnected: Disconnected | None
    ) -> None:
        self._at = self._loop.time() + seconds
        self._seconds = seconds
        self._lag = 0.0
        self._make_error = make_error
        self._on_disconnect = disconnected
        if self._has_set_up or seconds < self._grace:
            self._timer.cancel()
            self._after_grace()

    def _after_grace(self) -> None:
        self._has_set_up = True
        if self._at < math.inf:
            self._timer = self._loop.call_at(self._at, self._expire)
        if self._on_disconnect is not None and self._watcher is None:
            # In the request's context: a host may keep its request id in a context variable.
            self._watcher = self._context.run(self._loop.create_task, self._on_disconnect())
            self._watcher.add_done_callback(self._disconnected)

    def _disconnected(self, watcher: asyncio.Task[None]) -> None:
        if not watcher.cancelled() and self._watcher is not None and self._on_disconnect:
            self._own_cancels += 1
            self._task.cancel()

    def _expire(self) -> None:
        if not self._lag:
            self._lag = significant_lag(self._loop.time() - self._at, self._seconds)
            if self._lag:
                self._timer = self._loop.call_later(SECOND_CHANCE, self._expire)
                return
        self._has_expired = True
        self._own_cancels += 1
        self._task.cancel()

    @property
    def expired(self) -> bool:
        return self._has_expired and not self._lag

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        reason = self._reason(kind) if self._own_cancels else None
        try:
            if kind is asyncio.CancelledError and reason is None and self._on_cancelled is not None:
                await self._on_cancelled()
        finally:
            if self._watcher is not None:
                await self._end_watcher()
        if reason is not None:
            raise reason from None
        if isinstance(error, BaseExceptionGroup):
            raise innermost(cast("BaseExceptionGroup[BaseException]", error)) from None

    def _reason(self, kind: type[BaseException] | None) -> BaseException | None:
        """Undo our cancellations. Return the error to raise, or None if others cancelled too."""
        remaining = min([self._task.uncancel() for _ in range(self._own_cancels)])
        if kind is not asyncio.CancelledError or remaining > self._before:
            return None
        if self._has_expired:
            return self._make_error(self._lag)
        return (self._watcher and self._watcher.exception()) or ClientDisconnected()

    async def _end_watcher(self) -> None:
        watcher = self._watcher
        self._watcher = None
        if watcher is not None and not watcher.done():
            watcher.cancel()
            await asyncio.wait([watcher])


class _AnyioWatch:
    def __init__(self, seconds: float, make_error: MakeError, grace: float) -> None:
        self._grace = grace
        self._group = anyio.create_task_group()
        self._scope = anyio.CancelScope(deadline=anyio.current_time() + seconds)
        self._make_error = make_error
        self._on_disconnect: Disconnected | None = None
        self._is_watched = False
        self._seconds = seconds
        self._lag: float | None = None
        self._has_disconnected = False

    @property
    def expired(self) -> bool:
        return self._scope.cancel_called and not self._has_disconnected and not self._find_lag()

    def _find_lag(self) -> float:
        """Return the lag of the event loop when the work was cancelled."""
        if self._lag is None:
            lag = anyio.current_time() - self._scope.deadline
            self._lag = significant_lag(lag, self._seconds)
        return self._lag

    def restart(
        self, seconds: float, make_error: MakeError, disconnected: Disconnected | None
    ) -> None:
        self._scope.deadline = anyio.current_time() + seconds
        self._seconds = seconds
        self._make_error = make_error
        self._on_disconnect = disconnected
        if disconnected is not None and not self._is_watched:
            self._is_watched = True
            self._group.start_soon(self._wait_for, disconnected)

    async def _wait_for(self, disconnected: Disconnected) -> None:
        await anyio.sleep(self._grace)
        await disconnected()
        if self._on_disconnect is not None:
            self._has_disconnected = True
            self._scope.cancel()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._scope.__enter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        original = error
        try:
            self._scope.__exit__(kind, error, trace)
            is_ours = self._scope.cancelled_caught
        except BaseException as remainder:  # noqa: BLE001 - of a group, without its cancellations
            kind = type(remainder)
            error = remainder
            trace = remainder.__traceback__
            is_ours = False
        self._group.cancel_scope.cancel()
        plain = None
        try:
            await self._group.__aexit__(*((None, None, None) if is_ours else (kind, error, trace)))
        except BaseExceptionGroup as grouped:
            plain = innermost(grouped)
        if plain is original:
            return  # it propagates as it was raised, without the group as its context
        if plain is not None:
            raise plain from None
        if is_ours:
            raise (
                ClientDisconnected if self._has_disconnected else self._make_error(self._find_lag())
            )


class ConditionMet(Exception):
    """The condition of ``cancel_when`` was met before the work was done."""


async def cancel_when(
    work: Awaitable[T], condition: Callable[[], Coroutine[object, None, None]]
) -> T:
    """Await ``work``, and cancel it if ``condition`` returns first. The errors of both are raised.

    Raises:
        ConditionMet: ``condition`` returned before ``work``.
    """
    try:
        async with watch(math.inf, TimeoutError, grace=0.0) as watching:
            watching.restart(math.inf, TimeoutError, condition)
            return await work
    except ClientDisconnected:  # so a watch reports that what it waits for has happened
        raise ConditionMet from None


class _Outcome(Generic[T]):
    """What a call returned or raised. A task would keep its error, and with it all frames."""

    __slots__ = ("_error", "_values")

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._values: list[T] = []

    @property
    def returned(self) -> bool:
        return bool(self._values)

    async def record(self, work: Callable[[], Awaitable[T]]) -> None:
        # A task must not raise: asyncio logs an error that is not read, and SystemExit ends the
        # event loop.
        try:
            self._values.append(await work())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's task
            self._error = error

    def get(self) -> T:
        error = self._error
        self._error = None
        if error is None and self._values:
            return self._values.pop()
        try:
            raise error or asyncio.CancelledError  # it was cancelled before it began
        finally:
            del error  # its traceback holds this frame


async def run_abandonable(
    work: Callable[[], Awaitable[T]], seconds: float, on_ignored: Callable[[], None]
) -> T:
    """Await ``work()`` in a task of its own, and cancel it when the caller is cancelled.

    If it has not ended ``CANCEL_GRACE`` seconds later, it is abandoned: the caller continues, and
    the task is kept until it ends by itself. ``on_ignored`` is called then, and also if ``work``
    returned a value although it was cancelled.

    On trio a task cannot be abandoned, so the caller waits. But trio cancels again at each
    checkpoint, so only a shielded or endless call continues. ``on_ignored`` is called if it ends
    later than the caller's limit of ``seconds`` and ``CANCEL_GRACE``.
    """
    loop = asyncio_loop()
    if loop is None:
        return await _run_in_place(work, seconds, on_ignored)
    outcome = _Outcome[T]()
    task = loop.create_task(outcome.record(work))
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        await _cancel(task, outcome, on_ignored)
        raise
    return outcome.get()


async def _cancel(
    task: asyncio.Task[None], outcome: _Outcome[Any], on_ignored: Callable[[], None]
) -> None:
    """Cancel a task, and abandon it if it continues."""
    if not task.cancel():
        return
    try:
        # Anyio cancels the tasks of a cancelled scope again and again; the shield stops that.
        with anyio.CancelScope(shield=True):
            await asyncio.wait([task], timeout=CANCEL_GRACE)
    finally:
        if not task.done():
            _abandon(task)
            on_ignored()
        elif outcome.returned:
            on_ignored()


def _abandon(task: asyncio.Task[None]) -> None:
    """Keep a task until it ends: asyncio holds only a weak reference to it."""
    tasks = _ABANDONED.get(None)
    if tasks is None:
        tasks = set[asyncio.Task[None]]()
        _ABANDONED.set(tasks)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _run_in_place(
    work: Callable[[], Awaitable[T]], seconds: float, on_ignored: Callable[[], None]
) -> T:
    end = anyio.current_time() + seconds
    try:
        return await work()
    finally:
        if anyio.current_time() > end + CANCEL_GRACE:
            on_ignored()


async def stagger(
    attempts: Sequence[Callable[[], Coroutine[Any, Any, None]]],
    delay: float,
    changed: Callable[[], Awaitable[object]],
    is_decided: Callable[[], bool],
) -> None:
    """Run ``attempts`` concurrently, each ``delay`` seconds after the one before it, at the latest.

    The next one starts earlier when ``changed`` returns, and none after ``is_decided`` is true. An
    attempt handles its own errors.
    """
    async with anyio.create_task_group() as group:
        for attempt in attempts:
            group.start_soon(attempt)
            with anyio.move_on_after(delay):
                await changed()
            if is_decided():
                return


async def race(
    first: Callable[[], Awaitable[T]],
    delay: float,
    begin_next: Callable[[], Callable[[], Awaitable[T]] | None],
    wins: Callable[[T], bool],
) -> T:
    """Await ``first()`` and, beside it, further work; return the first result that ``wins``.

    ``begin_next`` returns more work, or None if there is none. It is called every ``delay`` seconds
    until ``first()`` ends or a result wins, which cancels all other work. If none wins, the result
    of ``first()`` is returned when all work has ended.
    """
    results: list[T] = []
    winners: list[T] = []
    beginning = anyio.CancelScope()

    async def run(work: Callable[[], Awaitable[T]]) -> None:
        result = await work()
        if wins(result):
            winners.append(result)
            group.cancel_scope.cancel()

    async def begin_more() -> None:
        with beginning:
            await anyio.sleep(delay)
            while work := begin_next():
                group.start_soon(run, work)
                await anyio.sleep(delay)

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(begin_more)
            results.append(await first())
            beginning.cancel()
            if wins(results[0]):
                group.cancel_scope.cancel()
    except BaseExceptionGroup as grouped:
        raise innermost(grouped) from None
    return results[0] if results and wins(results[0]) else (winners or results)[0]


async def gather(work: Sequence[Callable[[], Awaitable[None]]], at_once: int) -> None:
    """Run all of ``work``, at most ``at_once`` at a time. The first error cancels the others."""
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
