"""Names the backends that block the event loop or ignore a cancellation.

Both are bugs of a backend that delay other requests. A blocked loop cannot be interrupted: the time
is measured, and a warning names the backend. A call that ignores its cancellation is abandoned.
"""

import time
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, Final, Generic, TypeVar

from embedroute.backend import BackendBase
from embedroute.log_records import BackendBlocked, CancellationIgnored, LogLimit, write

T = TypeVar("T")

BLOCKING: Final = 1.0
"""Seconds from which one step of a backend counts as blocking the event loop."""


class Watchdog:
    """Logs what backends do wrong, at most once a minute for each provider and kind of mistake."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Create a watchdog that has logged nothing."""
        self._clock = clock
        self._limit = LogLimit()

    def report_blocking(
        self, provider: str, backend: BackendBase, method: str, seconds: float
    ) -> None:
        """Log that ``method`` of a backend did not yield to the event loop for ``seconds``."""
        name = type(backend).__name__
        if self._may_log(BackendBlocked.event, provider or name):
            seconds = round(seconds, 1)
            write(BackendBlocked(provider=provider, backend=name, method=method, seconds=seconds))

    def report_ignored(self, provider: str, backend: BackendBase) -> None:
        """Log that ``embed`` of a backend continued after it was cancelled."""
        name = type(backend).__name__
        if self._may_log(CancellationIgnored.event, provider or name):
            write(CancellationIgnored(provider=provider, backend=name, method="embed"))

    def watch(
        self, provider: str, backend: BackendBase, call: Callable[[], Coroutine[Any, Any, T]]
    ) -> "Steps[T]":
        """Return an awaitable for ``call()``, of which each step is measured."""
        return Steps(call(), partial(self.report_blocking, provider, backend, "embed"))

    def _may_log(self, event: str, name: str) -> bool:
        return self._limit.due(self._clock(), event, name) > 0


class Steps(Generic[T]):
    """Awaits a coroutine step by step, and reports each step of ``BLOCKING`` seconds or more.

    A step is what runs between two pauses. Nothing else runs on the event loop meanwhile.
    """

    __slots__ = ("_call", "_report")

    def __init__(self, call: Coroutine[Any, Any, T], report: Callable[[float], None]) -> None:
        """``report`` gets the seconds of a step that is too long."""
        self._call = call
        self._report = report

    def __await__(self) -> Generator[Any, Any, T]:
        """Pass everything on between the event loop and the coroutine, as ``await`` does."""
        call = self._call
        step: Callable[[], Any] = partial(call.send, None)
        while True:
            began = time.perf_counter()
            try:
                pause = step()
            except StopIteration as stop:
                return stop.value
            finally:
                seconds = time.perf_counter() - began
                if seconds >= BLOCKING:
                    self._report(seconds)
            try:
                sent = yield pause
            except GeneratorExit:
                call.close()
                raise
            except BaseException as error:  # noqa: BLE001 - the coroutine must get it
                step = partial(call.throw, error)
            else:
                step = partial(call.send, sent)
