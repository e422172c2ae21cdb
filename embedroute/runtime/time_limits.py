"""Limits the time of single calls, and finds out whether the event loop itself was late.

The deadline of a whole request is enforced by ``tasks.watch``.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Final, Protocol, Self, cast

import anyio
from anyio.lowlevel import current_token

LAG: Final = 0.25
"""Seconds by which a timer must be late before the event loop, not the work, counts as slow."""
LAG_SHARE: Final = 0.25
"""Share of a time limit by which its timer must be late for the same."""
SECOND_CHANCE: Final = 0.05
"""Seconds in which a late event loop may process what has arrived before a time limit applies."""


def on_asyncio() -> bool:
    """Return whether the running event loop is one of asyncio, not trio."""
    return asyncio_loop() is not None


def asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """Return the running asyncio event loop, or None on trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _TrioToken(Protocol):
    """The part of ``trio.lowlevel.TrioToken`` that is used here."""

    def run_sync_soon(self, call: Callable[..., object], /, *arguments: object) -> object:
        """Call ``call`` in the event loop, from any thread."""
        ...


def get_call_soon_threadsafe() -> Callable[..., object]:
    """Return a function that schedules a call on the running event loop from any thread.

    It takes the function to call and its arguments, and raises ``RuntimeError`` if the loop has
    ended.
    """
    loop = asyncio_loop()
    if loop is not None:
        return loop.call_soon_threadsafe
    return cast("_TrioToken", current_token().native_token).run_sync_soon


def significant_lag(lag: float, seconds: float) -> float:
    """Return the ``lag`` of the timer of a limit of ``seconds``, or 0 if it is insignificant.

    A timer that fires late means that the event loop was blocked. What the limit applies to may
    have happened in time without having been noticed.
    """
    return lag if lag > max(LAG, LAG_SHARE * seconds) else 0.0


class TimeLimit(Protocol):
    """A context manager that raises ``TimeoutError`` if its body takes too long.

    ``lag`` is by how many seconds the event loop was late when the limit passed, or 0 if that was
    insignificant.
    """

    lag: float

    def __enter__(self) -> Self:
        """Start the time limit."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        """End the time limit."""
        ...


def fail_after(seconds: float) -> TimeLimit:
    """Cancel the body of the ``with`` statement after ``seconds``, and raise ``TimeoutError``."""
    loop = asyncio_loop()
    return _AnyioFailAfter(seconds) if loop is None else _FailAfter(loop, seconds)


class _AnyioFailAfter:
    def __init__(self, seconds: float) -> None:
        self._scope = anyio.CancelScope()
        self._seconds = seconds
        self.lag = 0.0

    def __enter__(self) -> Self:
        self._scope.deadline = anyio.current_time() + self._seconds
        self._scope.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        handled = self._scope.__exit__(kind, error, trace)
        if self._scope.cancelled_caught:
            self.lag = significant_lag(anyio.current_time() - self._scope.deadline, self._seconds)
            raise TimeoutError
        return handled


class _FailAfter:
    """A synchronous ``asyncio.timeout`` that cannot be rescheduled; it costs a third as much."""

    __slots__ = ("_before", "_due", "_expired", "_loop", "_seconds", "_task", "_timer", "lag")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._task = cast("asyncio.Task[object]", asyncio.current_task(loop))
        self._expired = False
        self._before = self._task.cancelling()
        self._due = monotonic() + seconds
        self._timer = loop.call_later(seconds, self._expire)
        self.lag = 0.0

    def _expire(self) -> None:
        if not self.lag:
            self.lag = significant_lag(monotonic() - self._due, self._seconds)
            if self.lag:
                self._timer = self._loop.call_later(SECOND_CHANCE, self._expire)
                return
        self._expired = True
        self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        # A cancellation from anyone else must propagate.
        if (
            self._expired
            and self._task.uncancel() <= self._before
            and kind is asyncio.CancelledError
        ):
            raise TimeoutError from error
