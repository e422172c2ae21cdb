"""Times that hardly ever come: what is due some seconds after it began, and nearly always over before.

A timer of its own for each would cost a request more than most of its checks do.
"""

import asyncio
from contextvars import Context
from itertools import takewhile
from typing import Final, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

TICK: Final = 0.001
"""Seconds by which a time may be early: uvloop counts whole ones, and would be asked again and again for a part of one."""


class Due(Protocol):
    """What something is due for."""

    def come(self) -> None:
        """Its time has come."""
        ...


class Line:
    """Those of one event loop that are due equally many seconds after they began, in the order in which they did.

    One timer serves them all: it is set for the first, and anew, when it rings, for who is the first by then. Neither it
    nor the loop is held here, and a line only by its timer and by who waits in it, so that a loop can go.
    """

    __slots__ = ("__weakref__", "_is_set", "_seconds", "_waiting")

    def __init__(self, seconds: float) -> None:
        """Begin with nobody."""
        self._seconds = seconds
        self._is_set = False
        self._waiting: dict[Due, float] = {}

    def join(self, loop: asyncio.AbstractEventLoop, due: Due) -> None:
        """Begin to wait."""
        at = self._waiting[due] = loop.time() + self._seconds
        if not self._is_set:
            self._set(loop, at)

    def leave(self, due: Due) -> None:
        """It is over, whether or not its time has come."""
        self._waiting.pop(due, None)

    def _set(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        self._is_set = True
        loop.call_at(at, self._ring, loop, context=Context())  # that of whoever came first would live on

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_set = False
        now = loop.time()
        try:
            # Looked up in one go: to begin anew for each would pass all the places that those before it have left.
            for due in [*takewhile(lambda it: self._waiting[it] <= now + TICK, self._waiting)]:
                if self._waiting.pop(due, None) is not None:
                    due.come()
        finally:
            if self._waiting:
                self._set(loop, next(iter(self._waiting.values())))


class Alone:
    """One that is due after a time of its own; it has a timer of its own."""

    __slots__ = ("_seconds", "_timer")

    def __init__(self, seconds: float) -> None:
        """Begin with nobody."""
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def join(self, loop: asyncio.AbstractEventLoop, due: Due) -> None:
        """Begin to wait."""
        self._timer = loop.call_later(self._seconds, due.come)

    def leave(self, due: Due) -> None:
        """It is over, whether or not its time has come."""
        del due
        if self._timer is not None:
            self._timer.cancel()


_LINES: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[float, Line]] = WeakKeyDictionary()


def line_of(loop: asyncio.AbstractEventLoop, seconds: float) -> Line:
    """Find the line of a loop for a number of seconds that many wait for: a timer is set for as long."""
    try:
        return _LINES[loop][seconds]
    except KeyError:
        return _LINES.setdefault(loop, WeakValueDictionary()).setdefault(seconds, Line(seconds))
