"""Runs jobs slice by slice in worker threads, in fair order, for callers on any event loop."""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Final

import anyio

from embedroute.runtime import time_limits

Step = Callable[[], bool]
"""Runs the next slice of a job, and returns whether the job is finished."""

IDLE_SECONDS: Final = 2.0
"""Seconds that a thread waits for work before it ends."""


class Workers:
    """At most ``limit`` threads that run jobs slice by slice.

    A thread counts until its slice really ends: cancelling a caller does not free its thread early,
    so there are never more than ``limit`` threads. A job whose caller was cancelled gets no further
    slice, and none at all if it was still queued.

    There are two queues, one for new jobs and one for started jobs, and threads take from them in
    turn. A job that is not finished goes to the end of the queue of started jobs. A short job
    therefore does not wait for all started jobs, and many short jobs do not starve a long one.
    """

    def __init__(self, name: str, limit: int) -> None:
        """Create a pool without threads; the first job starts one. ``name`` names the threads."""
        self._name = name
        self._limit = limit
        self._changed = threading.Condition(threading.Lock())
        self._new: deque[_Job] = deque()
        self._started: deque[_Job] = deque()
        self._took_new = False
        self._threads = 0
        self._idle = 0

    async def run(self, step: Step) -> None:
        """Call ``step`` in worker threads until it returns True, and raise what it raises.

        ``step`` runs in a copy of the caller's context, in one thread at a time.
        """
        request = _Job(step)
        self._add(request)
        try:
            await request.ended.wait()
        except BaseException:
            self._give_up(request)
            raise
        error, request.error = request.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame

    def _add(self, request: "_Job") -> None:
        with self._changed:
            self._new.append(request)
            if len(self._new) + len(self._started) > self._idle and self._threads < self._limit:
                self._start_thread()
            self._changed.notify()

    def _start_thread(self) -> None:
        # A daemon thread: a model that hangs must not prevent the process from exiting.
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        try:
            # An empty context: free-threaded Python copies the starter's context into a thread.
            Context().run(thread.start)
        except RuntimeError:  # the system has no thread left
            if not self._threads:
                self._new.pop()
                raise
        else:
            self._threads += 1

    def _give_up(self, request: "_Job") -> None:
        """Give a job no further slice, and free its inputs.

        It takes no lock, because the garbage collector may close a coroutine at any time in any
        thread.
        """
        request.step = None
        for queue in (self._new, self._started):
            with suppress(ValueError):
                queue.remove(request)

    def _work(self) -> None:
        while self._run_slice():
            pass

    def _run_slice(self) -> bool:
        """Run one slice of the next job; return False if the thread must end."""
        request = self._next()
        if request is None:
            return False
        try:
            step = request.step
            finished = step is None or request.context.run(step)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's task
            request.error = error
            finished = True
        if finished:
            request.end()
        else:
            with self._changed:
                self._started.append(request)
        return True

    def _next(self) -> "_Job | None":
        with self._changed:
            request = self._pop()
            if request is None:
                self._idle += 1
                self._changed.wait_for(lambda: self._new or self._started, IDLE_SECONDS)
                self._idle -= 1
                request = self._pop()
            if request is None:
                self._threads -= 1
            return request

    def _pop(self) -> "_Job | None":
        """Take a job, from the other queue than last time if there is one in it."""
        for queue in (self._started, self._new) if self._took_new else (self._new, self._started):
            with suppress(IndexError):
                request = queue.popleft()
                self._took_new = queue is self._new
                return request
        return None


class _Job:
    """A job, with its next step and the means to wake the task that waits for it."""

    __slots__ = ("_call_soon", "context", "ended", "error", "step")

    def __init__(self, step: Step) -> None:
        self.step: Step | None = step
        self.context = copy_context()
        self.error: BaseException | None = None
        self.ended = anyio.Event()
        self._call_soon = time_limits.get_call_soon_threadsafe()

    def end(self) -> None:
        """Wake the waiting task, unless its event loop is closed."""
        with suppress(RuntimeError):
            self._call_soon(self.ended.set)
