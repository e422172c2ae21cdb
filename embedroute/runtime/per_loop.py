"""Provides resources that belong to one event loop.

A resource is made at its first use. The lifespan closes it; without a lifespan it is closed when
the loop ends. Nothing is opened at import or in ``__init__``, so forking and preloading are safe.
"""

from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from typing import Generic, TypeVar
from weakref import ReferenceType, ref

import anyio
from anyio.lowlevel import RunVar, current_token

T = TypeVar("T")


def is_loop_running() -> bool:
    """Return whether this thread runs an event loop, of asyncio or trio."""
    try:
        current_token()
    except RuntimeError:
        return False
    return True


class PerLoop(Generic[T]):
    """One value of type ``T`` per event loop.

    ``make`` creates the value. It registers what must be closed on the exit stack that it receives.
    """

    def __init__(self, name: str, make: Callable[[AsyncExitStack], T]) -> None:
        """Store ``make``; call it when a loop first needs the value."""
        self._entry: RunVar[_Entry[T] | None] = RunVar(name, None)
        self._make = make
        self._latest: tuple[ReferenceType[AbstractEventLoop], _Entry[T]] | None = None

    async def get(self) -> T:
        """Return the value of the running event loop."""
        # Most processes have one loop. Comparing it to the latest one costs a tenth of a RunVar.
        try:
            loop = get_running_loop()
        except RuntimeError:  # trio
            loop = None
        latest = self._latest
        if loop is not None and latest is not None and latest[0]() is loop:
            return latest[1].value
        entry = self._entry.get()
        if entry is None:
            entry = _Entry(self._make)
            self._entry.set(entry)  # before the first await, so that no second entry is made
            # When an event loop ends, it closes the async generators that are still open.
            entry.at_loop_end = self._close_at_loop_end(entry)
            await anext(entry.at_loop_end)
        self._latest = None if loop is None else (ref(loop), entry)
        return entry.value

    async def _close_at_loop_end(self, entry: "_Entry[T]") -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            # Clear the variable, which would keep the loop alive. The shield is for trio, which
            # closes generators in a cancelled scope.
            self._forget(entry)
            with anyio.CancelScope(shield=True):
                await entry.stack.aclose()

    async def close(self, value: T) -> None:
        """Close ``value`` if it is this loop's and still open; the next ``get`` makes another."""
        try:
            entry = self._entry.get()
        except RuntimeError:  # no loop is running: the value was closed when its loop ended
            return
        if entry is not None and entry.value is value and entry.at_loop_end is not None:
            self._forget(entry)
            # Close the stack before the generator: if the loop ends meanwhile and closes the
            # generator too, nothing is closed twice.
            with anyio.CancelScope(shield=True):
                await entry.stack.aclose()
                await entry.at_loop_end.aclose()

    def _forget(self, entry: "_Entry[T]") -> None:
        """Remove ``entry``, unless a later request has already replaced it."""
        if self._entry.get() is entry:
            self._entry.set(None)
            self._latest = None


class _Entry(Generic[T]):
    def __init__(self, make: Callable[[AsyncExitStack], T]) -> None:
        self.stack = AsyncExitStack()
        self.value = make(self.stack)
        self.at_loop_end: AsyncGenerator[None, None] | None = None
