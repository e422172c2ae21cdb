"""Things that belong to one event loop: made at first use, closed by the lifespan or, without one, at the loop's end.

Invariant: no task outlives its request, and nothing needs a lifespan to start. Nothing is opened at import or in
``__init__``, so forking and preloading are safe.
"""

from asyncio import AbstractEventLoop
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from typing import Generic, TypeVar
from weakref import ReferenceType, ref

import anyio
from anyio.lowlevel import RunVar

from embedroute.runtime import tasks

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One ``T`` per event loop; ``make`` builds it and puts what must be closed on the stack it is given."""

    def __init__(self, name: str, make: Callable[[AsyncExitStack], T]) -> None:
        """Make nothing yet."""
        self._held: RunVar[_Held[T] | None] = RunVar(name, None)
        self._make = make
        self._latest: tuple[ReferenceType[AbstractEventLoop], _Held[T]] | None = None

    async def get(self) -> T:
        """Give this loop's ``T``."""
        # A process mostly has one loop, and knowing it again costs a tenth of looking it up.
        loop, latest = tasks.asyncio_loop(), self._latest
        if loop is not None and latest is not None and latest[0]() is loop:
            return latest[1].made
        held = self._held.get()
        if held is None:
            held = _Held(self._make)
            self._held.set(held)  # before any await, so that no second one is made
            # Event loops close the async generators that are still open when they end.
            held.at_loop_end = self._close_at_loop_end(held)
            await anext(held.at_loop_end)
        self._latest = None if loop is None else (ref(loop), held)
        return held.made

    async def _close_at_loop_end(self, held: "_Held[T]") -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            # The variable would keep its loop alive; trio ends generators cancelled, so close under a shield.
            self._forget(held)
            with anyio.CancelScope(shield=True):
                await held.stack.aclose()

    async def close(self, made: T) -> None:
        """Close ``made``, if it is this loop's and not closed yet; the next ``get`` makes another."""
        try:
            held = self._held.get()
        except (
            RuntimeError
        ):  # no loop runs: who is collected after its loop's end has nothing left to close
            return
        if held is not None and held.made is made and held.at_loop_end is not None:
            self._forget(held)
            # Before the generator, which the loop may come to close meanwhile: that finds nothing left to do then.
            with anyio.CancelScope(shield=True):
                await held.stack.aclose()
                await held.at_loop_end.aclose()

    def _forget(self, held: "_Held[T]") -> None:
        """Make room for another; one that a late request has made meanwhile is not forgotten."""
        if self._held.get() is held:
            self._held.set(None)
            self._latest = None


class _Held(Generic[T]):
    def __init__(self, make: Callable[[AsyncExitStack], T]) -> None:
        self.stack = AsyncExitStack()
        self.made = make(self.stack)
        self.at_loop_end: AsyncGenerator[None, None] | None = None
