"""Slices the CPU work on large requests and responses, so that the event loop stays responsive."""

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
"""Size in bytes from which decoding or encoding a body in one step would block the event loop."""
ROWS: Final = 16
"""Rows of a large response that are processed at a time. Encoding one as text takes about 30 µs."""
MIN_SLICE: Final = 0.0004
"""Minimum seconds of a time slice."""
MAX_SLICE: Final = 0.005
"""Maximum seconds of a slice. Slices grow on a busy loop, so that large work still finishes."""
MAX_HOLD: Final = 1.0
"""Seconds for which one job may make others wait. The gateway's own jobs take a tenth of it."""
MAX_THREADS: Final = 40
"""Maximum worker threads per event loop; plugin code may block some of them for long."""
_PAUSE: Final = 20e-6
"""Seconds that a thread sleeps between two slices."""


class TimeSlice:
    """Measures the time since the last pause, and pauses when the slice is over."""

    __slots__ = ("_began", "_length")

    def __init__(self, size: int = LARGE) -> None:
        """Start a slice of work on ``size`` bytes; small work is done in one slice."""
        self._began = time.perf_counter()
        self._length = MIN_SLICE if size >= LARGE else math.inf

    def yield_gil(self) -> None:
        """Sleep briefly if the slice is over, so that another thread gets the GIL."""
        if time.perf_counter() - self._began > self._length:
            time.sleep(_PAUSE)
            self._began = time.perf_counter()

    async def yield_to_loop(self) -> None:
        """Run one iteration of the event loop if the slice is over.

        The next slice is half as long as that iteration, within ``MIN_SLICE`` and ``MAX_SLICE``.
        """
        now = time.perf_counter()
        if now - self._began > self._length:
            await anyio.lowlevel.checkpoint()
            self._began = time.perf_counter()
            self._length = min(max(MIN_SLICE, (self._began - now) / 2), MAX_SLICE)


def groups(count: int, at_a_time: int = ROWS) -> Iterator[slice]:
    """Split ``count`` rows into groups."""
    return (slice(start, start + at_a_time) for start in range(0, count, at_a_time))


def chunked(count: int, size: int, at_a_time: int = ROWS) -> Iterator[slice]:
    """Split ``count`` rows of ``size`` bytes in total into groups; release the GIL between them.

    Small work is one group. Use this in a worker thread.
    """
    if size < LARGE:
        yield slice(0, count)
        return
    time_slice = TimeSlice()
    for group in groups(count, at_a_time):
        time_slice.yield_gil()
        yield group


async def run_in_worker(work: Callable[[], T]) -> T:
    """Run CPU work of milliseconds in a worker thread.

    It has its own limiter, because the host's code uses anyio's default one.
    """
    async with _get_or_make(_SEMAPHORE, _Semaphore).acquire():
        return await anyio.to_thread.run_sync(
            work, limiter=_get_or_make(_THREADS, partial(CapacityLimiter, MAX_THREADS))
        )


async def run_cooperatively(parts: Iterable[T]) -> list[T]:
    """Compute ``parts`` on the event loop, and run the loop's other work in between.

    In a worker thread this would be slower for the others: the interpreter runs one thread at a
    time, and the loop would have to wait for the GIL at every event.
    """
    results = list[T]()
    time_slice = TimeSlice()
    async with _get_or_make(_SEMAPHORE, _Semaphore).acquire():
        for part in parts:
            results.append(part)
            await time_slice.yield_to_loop()
    return results


async def run_in_turn(work: Callable[[], T]) -> T:
    """Run one step of a large job on the event loop: one step of all jobs per loop iteration."""
    async with _get_or_make(_SEMAPHORE, _Semaphore).acquire():
        await anyio.lowlevel.checkpoint()
        return work()


async def step_by_step(steps: Generator[None, None, T]) -> T:
    """Run a generator on the event loop, with other work of the loop between; return its result."""
    returned = list[T]()

    def parts() -> Iterator[None]:
        returned.append((yield from steps))

    await run_cooperatively(parts())
    return returned[0]


def finished(steps: Generator[None, None, T]) -> T:
    """Run a generator to its end without pauses, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


class _Semaphore:
    """A mutex that allows one large job at a time per event loop.

    Two jobs at once would delay each other and all other requests. Plugin code may take too long,
    so a holder loses the mutex after ``MAX_HOLD`` seconds.
    """

    __slots__ = ("_acquired_at", "_holder", "_released")

    def __init__(self) -> None:
        self._holder: object = None
        self._acquired_at = 0.0
        self._released = anyio.Event()

    @asynccontextmanager
    async def acquire(self) -> AsyncGenerator[None, None]:
        while (
            self._holder is not None
            and (remaining := self._acquired_at + MAX_HOLD - anyio.current_time()) > 0
        ):
            with anyio.move_on_after(remaining):
                await self._released.wait()
        holder = object()
        self._holder = holder
        self._acquired_at = anyio.current_time()
        try:
            yield
        finally:
            if self._holder is holder:
                released = self._released
                self._holder = None
                self._released = anyio.Event()
                released.set()


_SEMAPHORE: RunVar[_Semaphore | None] = RunVar("embedroute.semaphore")
_THREADS: RunVar[CapacityLimiter | None] = RunVar("embedroute.threads")


def _get_or_make(variable: RunVar[T | None], make: Callable[[], T]) -> T:
    value = variable.get(None)
    if value is None:
        value = make()
        variable.set(value)
    return value
