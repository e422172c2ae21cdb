"""Large answers: from which size on they are worked on in turns, and how that lets others have theirs."""

import math
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import anyio.lowlevel
import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

T = TypeVar("T")

LARGE: Final = 3 * 512 * 1024
"""Bytes of an answer from which on reading or writing it would hold an event loop up."""
ROWS: Final = 16
"""Rows of a large answer that are worked on at a time; writing one as text takes about 30 µs."""
TURN: Final = 0.0004
"""Seconds after which others have their turn."""
LONGEST: Final = 0.005
"""Seconds that a turn may take where others take longer ones: with many others at work, nobody would get on otherwise."""
PATIENCE: Final = 1.0
"""Seconds for which one such work may keep the others waiting; ours take a tenth of that."""
THREADS: Final = 40
"""Works that may be stuck in a thread of their own before the next waits for one of them."""
_REST: Final = 20e-6
"""Seconds that a thread sleeps between two turns."""


class TimeSlice:
    """How long somebody has been at work while others wait."""

    __slots__ = ("_began", "_length")

    def __init__(self, size: int = LARGE) -> None:
        """Begin now to work on ``size`` bytes; a small answer is one turn, for it is worked on in the loop's own thread."""
        self._began = time.perf_counter()
        self._length = TURN if size >= LARGE else math.inf

    def yield_gil(self) -> None:
        """Sleep a little once the turn of a thread is over: on one core only who sleeps is not the next to go on."""
        if time.perf_counter() - self._began > self._length:
            time.sleep(_REST)
            self._began = time.perf_counter()

    async def yield_to_loop(self) -> None:
        """Let the event loop go round once a turn on it is over; the next may be half as long as that took."""
        over = time.perf_counter()
        if over - self._began > self._length:
            await anyio.lowlevel.checkpoint()
            self._began = time.perf_counter()
            self._length = min(max(TURN, (self._began - over) / 2), LONGEST)


def groups(count: int, at_a_time: int = ROWS) -> Iterator[slice]:
    """Cut the rows of a large answer into groups."""
    return (slice(start, start + at_a_time) for start in range(0, count, at_a_time))


def chunked(count: int, size: int, at_a_time: int = ROWS) -> Iterator[slice]:
    """Cut ``count`` rows of ``size`` bytes in all into groups for a thread that rests between two; small work is one group."""
    if size < LARGE:
        yield slice(0, count)
        return
    turn = TimeSlice()
    for group in groups(count, at_a_time):
        turn.yield_gil()
        yield group


async def run_in_worker(work: Callable[[], T]) -> T:
    """Do CPU work of milliseconds that knows no pauses in a worker thread, which is none of those that the host counts on."""
    async with _get_or_make(_SEMAPHORE, _Semaphore).acquire():
        return await anyio.to_thread.run_sync(
            work, limiter=_get_or_make(_THREADS, partial(CapacityLimiter, THREADS))
        )


async def run_cooperatively(parts: Iterable[T]) -> list[T]:
    """Do CPU work of milliseconds part by part, and let the event loop go round in between.

    The interpreter runs one thread at a time, so another one would have the loop wait for it at every event.
    """
    done, turn = list[T](), TimeSlice()
    async with _get_or_make(_SEMAPHORE, _Semaphore).acquire():
        for part in parts:
            done.append(part)
            await turn.yield_to_loop()
    return done


async def step_by_step(steps: Generator[None, None, T]) -> T:
    """Run a generator on the loop, let the loop go round between its steps, and give back what it returns."""
    returned = list[T]()

    def parts() -> Iterator[None]:
        returned.append((yield from steps))

    await run_cooperatively(parts())
    return returned[0]


def finished(steps: Generator[None, None, T]) -> T:
    """Run a generator to its end at once, and give back what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


class _Semaphore:
    """Room for one such work at a time: of two each would wait for the other, and everybody else for both.

    A plugin's code may take far longer than it should: who keeps the place for longer than ``PATIENCE`` loses it.
    """

    __slots__ = ("_holder", "_left", "_since")

    def __init__(self) -> None:
        self._holder: object = None
        self._since = 0.0
        self._left = anyio.Event()

    @asynccontextmanager
    async def acquire(self) -> AsyncGenerator[None, None]:
        while (
            self._holder is not None
            and (patience := self._since + PATIENCE - anyio.current_time()) > 0
        ):
            with anyio.move_on_after(patience):
                await self._left.wait()
        mine = self._holder = object()
        self._since = anyio.current_time()
        try:
            yield
        finally:
            if self._holder is mine:
                left, self._holder, self._left = self._left, None, anyio.Event()
                left.set()


_SEMAPHORE: RunVar[_Semaphore | None] = RunVar("embedroute.place")
_THREADS: RunVar[CapacityLimiter | None] = RunVar("embedroute.threads")


def _get_or_make(held: RunVar[T | None], make: Callable[[], T]) -> T:
    made = held.get(None)
    if made is None:
        made = make()
        held.set(made)
    return made


_KEPT: Final = 31 * 1024 * 1024
"""Bytes just under the largest block by which glibc adapts."""


def raise_malloc_trim_threshold() -> None:
    """Have the C library keep what large answers take, instead of giving it back and fetching it anew page by page.

    glibc adapts to the largest block of up to 32 MiB that it has freed: it maps no smaller one apart, and gives back
    only what exceeds twice that (mallopt(3), "dynamic mmap threshold"). Nothing touches the block, so it costs nothing,
    and other C libraries take no notice of it.
    """
    bytes(_KEPT)
