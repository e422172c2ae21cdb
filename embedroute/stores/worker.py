"""Runs all calls to a store on one thread, and decides whether requests wait for it.

The thread owns the connection. A request that is cancelled or times out gives up its answer and
nothing else, so no later request can receive it.
"""

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from heapq import heappop, heappush
from typing import Final, Protocol

import anyio

from embedroute.errors import ConfigError
from embedroute.log_records import LogLimit, StoreRecovered, StoreUnavailable, write
from embedroute.reasons import describe
from embedroute.runtime import time_limits
from embedroute.stores.base import Store, StoreError

FIRST_PAUSE: Final = 0.1
"""Seconds in which a store is not called after a failure; they double with each one."""
LONGEST_PAUSE: Final = 1.0
"""Maximum of these seconds, so that a store is used again within 2 s of its return."""
CLOSE_TIMEOUT: Final = 2.0
"""Seconds that closing waits for entries to be written."""


class Job(Protocol):
    """Work for the thread."""

    def run(self, store: Store) -> None:
        """Call the store."""
        ...

    def fail(self, error: BaseException) -> None:
        """Handle that the store failed, or that it was not called after a failure."""
        ...


class StoreWorker:
    """The thread that calls a store. It starts with the first job, and again after ``close``.

    After a failure the store is not called for a pause. ``place`` names the store in messages.
    ``timeout`` is how many seconds a request waits for the store at most. ``on_failure`` is called
    after each failure, from the thread.
    """

    def __init__(
        self,
        store: Store,
        place: str,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a worker without a thread."""
        self.place = place
        self.timeout = timeout
        self.on_failure: Callable[[], None] | None = None
        self._store = store
        self._clock = clock
        self._changed = threading.Condition(threading.Lock())
        self._jobs: deque[Job] = deque()
        self._later: list[tuple[float, int, Job]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._process = 0
        self._users = 0
        self._closing: _Call | None = None
        self._is_idle = False
        self._is_connected = False
        self._busy_since: float | None = None
        self._failures = 0
        self._paused_until = 0.0
        self._log = LogLimit()

    @property
    def is_available(self) -> bool:
        """Whether a request should wait for the store: it has not just failed, and is not stuck."""
        now = self._clock()
        busy_since = self._busy_since
        return now >= self._paused_until and (busy_since is None or now - busy_since < self.timeout)

    @property
    def is_closing(self) -> bool:
        """Whether the last jobs before the end of the thread are being run."""
        return self._closing is not None

    def submit(self, job: Job) -> None:
        """Run a job as soon as possible."""
        with self._changed:
            self._jobs.append(job)
            self._wake()

    def submit_later(self, job: Job, seconds: float) -> None:
        """Run a job after ``seconds``, or when closing."""
        with self._changed:
            heappush(self._later, (self._clock() + seconds, next(self._numbers), job))
            self._wake()

    async def call(self, action: Callable[[Store], None], seconds: float) -> None:
        """Wait at most ``seconds`` for an action, in the order of all jobs.

        Raises:
            StoreError: the store failed, or it did not answer in time.
        """
        job = _Call(action)
        self.submit(job)
        if not await _ends_within(seconds, job):
            raise StoreError(f"{self.place} did not answer within {seconds:g} s.")
        if job.error is not None:
            raise StoreError(f"{self.place}: {explain(job.error)}") from None

    async def call_while_available(self, action: Callable[[Store], None], seconds: float) -> None:
        """Wait for an action for ``timeout`` seconds, and up to ``seconds`` if others are answered.

        Raises:
            StoreError: the store failed or hangs, or it did not answer in time.
        """
        if not self.is_available:
            raise StoreError(f"{self.place} cannot be used at the moment.")
        job = _Call(action)
        self.submit(job)
        ends = self._clock() + seconds
        while not await _ends_within(self.timeout, job):
            if not self.is_available or self._clock() >= ends:
                raise StoreError(f"{self.place} did not answer in time.")
        if job.error is not None:
            raise StoreError(f"{self.place}: {explain(job.error)}") from None

    def check(self) -> None:
        """Connect once from this thread, before the worker's own thread starts.

        Raises:
            ConfigError: the store cannot be used.
        """
        try:
            self._store.open()
        except Exception as error:  # noqa: BLE001 - a store of a third party may raise anything
            raise ConfigError([f"[store] url: {self.place}: {explain(error)}"]) from None
        finally:
            self._store.close()

    async def connect(self) -> None:
        """Check at the start that the store can be used.

        Raises:
            StoreError: it cannot.
        """
        self._paused_until = 0.0
        await self.call(lambda _store: None, CLOSE_TIMEOUT)

    def add_user(self) -> None:
        """Count an event loop that uses the store."""
        with self._changed:
            self._users += 1

    async def remove_user(self) -> None:
        """Close the store if no event loop uses it any more."""
        with self._changed:
            self._users -= 1
            is_last = not self._users
        if is_last:
            await self.close()

    async def close(self) -> None:
        """Run all jobs, close the connection and end the thread; give up after some seconds."""
        with self._changed:
            if self._thread is None or self._process != os.getpid():
                return
            self._closing = closed = _Call(lambda _store: None)
            self._jobs.extend(job for *_, job in sorted(self._later))
            self._later.clear()
            self._changed.notify()
        with suppress(TimeoutError), time_limits.fail_after(CLOSE_TIMEOUT):
            await closed.ended.wait()

    def _wake(self) -> None:
        """Start the thread if there is none in this process; the caller has the lock."""
        if self._thread is None or self._process != os.getpid():
            self._closing = None
            self._is_connected = False
            self._busy_since = None
            self._process = os.getpid()
            self._thread = threading.Thread(target=self._work, name="embedroute-store", daemon=True)
            # An empty context: free-threaded Python copies the starter's context into a thread.
            Context().run(self._thread.start)
        elif self._is_idle:
            self._changed.notify()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._run(job)

    def _next(self) -> Job | None:
        """Wait for the next job; None ends the thread."""
        with self._changed:
            while not self._jobs:
                now = self._clock()
                ready_at = max(self._later[0][0], self._paused_until) if self._later else None
                if ready_at is not None and ready_at <= now:
                    return heappop(self._later)[-1]
                if self._closing is not None:
                    self._end(self._closing)
                    return None
                self._is_idle = True
                self._changed.wait(None if ready_at is None else ready_at - now)
                self._is_idle = False
            return self._jobs.popleft()

    def _end(self, closing: "_Call") -> None:
        """Close the connection; the caller has the lock, so that no other thread opens it."""
        self._disconnect()
        self._thread = None
        closing.end()

    def _run(self, job: Job) -> None:
        started = self._clock()
        if started < self._paused_until:
            job.fail(StoreError("The store has failed a moment ago."))
            return
        self._busy_since = started
        try:
            if not self._is_connected:
                self._store.open()
                self._is_connected = True
            job.run(self._store)
        except BaseException as error:  # noqa: BLE001 - a store of a third party may raise anything
            self._record_failure(error)
            job.fail(error)
        else:
            self._record_success()
        finally:
            self._busy_since = None

    def _record_failure(self, error: BaseException) -> None:
        self._disconnect()
        self._failures += 1
        if self.on_failure is not None:
            self.on_failure()
        pause = min(FIRST_PAUSE * 2 ** min(self._failures - 1, 8), LONGEST_PAUSE)
        now = self._clock()
        self._paused_until = now + pause
        reason = explain(error)
        if count := self._log.due(now, reason):
            write(
                StoreUnavailable(store=self.place, error=reason, count=count if count > 1 else None)
            )

    def _record_success(self) -> None:
        if self._failures:
            self._failures = 0
            self._log = LogLimit()
            write(StoreRecovered(store=self.place))

    def _disconnect(self) -> None:
        self._is_connected = False
        try:
            self._store.close()
        except Exception as error:  # noqa: BLE001 - the connection is not used again
            write(StoreUnavailable(store=self.place, error=explain(error)))


class _Call:
    """A job that a task waits for."""

    def __init__(self, action: Callable[[Store], None]) -> None:
        self._action = action
        self._call_soon = time_limits.get_call_soon_threadsafe()
        self.ended = anyio.Event()
        self.error: BaseException | None = None

    def run(self, store: Store) -> None:
        self._action(store)
        self.end()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.end()

    def end(self) -> None:
        """Wake the waiting task, unless its event loop is closed."""
        with suppress(RuntimeError):
            self._call_soon(self.ended.set)


async def _ends_within(seconds: float, job: _Call) -> bool:
    with suppress(TimeoutError), time_limits.fail_after(seconds):
        await job.ended.wait()
    return job.ended.is_set()


def explain(error: BaseException) -> str:
    """Say in one line why a store failed."""
    return " ".join(str(error).split()) or describe(error) or type(error).__name__
