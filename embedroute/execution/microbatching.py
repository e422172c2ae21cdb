"""Merges small concurrent calls to one endpoint into one call, if the config enables that.

An idle endpoint is called at once. While it is busy, calls wait for up to the configured time. The
first waiting call is the leader: it takes the calls that fit off the queue and makes one call for
them. No task is started. A call that gets no answer (its leader was cancelled or had less time, or
the merged call was full) starts over. The error of a merged call may quote any of its inputs, so
every request in it, the leader's too, gets a neutral error.

One input may keep an upstream from responding at all. So a merged call gets only half of the time
that its requests have left. If it has no response by then, two of its requests make their own call
(``_Probes``), after half of the rest two more, and once more after half of that. As soon as one is
answered, the other requests make their own calls. If none has a response, the upstream is too slow,
and the others share that error. So a slow upstream gets six more calls, not one for each
request, and up to five inputs of that kind in one merged call fail no other request.
"""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Final

import anyio
import msgspec

from embedroute.backend import Accepts, Batch, Vectors
from embedroute.errors import (
    ConnectError,
    EmbedrouteError,
    PoolTimeout,
    RateLimited,
    UpstreamError,
    UpstreamTimeout,
)
from embedroute.inputs import estimate_size
from embedroute.routing import ENVELOPE, count_bytes, share_out
from embedroute.upstream_errors.neutral import neutral


class BatchSize(msgspec.Struct, frozen=True, gc=False):
    """The size of a batch: its inputs, and its tokens and bytes if the API limits them."""

    inputs: int
    tokens: int
    size: int


def measure(batch: Batch, accepts: Accepts) -> BatchSize:
    """Measure a batch by the limits in ``accepts``."""
    tokens = sum(map(estimate_size, batch.inputs)) if accepts.max_tokens else 0
    size = sum(map(count_bytes, batch.inputs)) if accepts.max_bytes else 0
    return BatchSize(len(batch), tokens, size)


def count_fitting(sizes: Sequence[BatchSize], accepts: Accepts) -> int:
    """Return how many batches, from the first, fit into one call; at least 1."""
    inputs = 0
    tokens = 0
    size = ENVELOPE
    for count, batch_size in enumerate(sizes):
        inputs += batch_size.inputs
        tokens += batch_size.tokens
        size += batch_size.size
        too_large = (
            inputs > (accepts.max_inputs or inputs)
            or tokens > (accepts.max_tokens or tokens)
            or size > (accepts.max_bytes or size)
        )
        if count and too_large:
            return count
    return len(sizes)


def is_full(sizes: Sequence[BatchSize], accepts: Accepts) -> bool:
    """Return whether the batches fill one call, so that waiting for more is useless."""
    if sum(size.inputs for size in sizes) == accepts.max_inputs:
        return True
    return count_fitting(sizes, accepts) < len(sizes)


def merged(batches: Sequence[Batch]) -> Batch:
    """Merge batches that differ only in their inputs."""
    return msgspec.structs.replace(
        batches[0],
        texts=[text for batch in batches for text in batch.texts],
        tokens=[ids for batch in batches for ids in batch.tokens],
        parts=[parts for batch in batches for parts in batch.parts],
    )


def split_result(whole: Vectors, batches: Sequence[Batch]) -> list[Vectors]:
    """Split a merged answer into one answer per batch.

    Tokens are shared in proportion to input length, and the shares add up exactly.
    """
    sizes = [sum(map(estimate_size, batch.inputs)) for batch in batches]
    tokens: Sequence[int | None] = [None] * len(batches)
    if whole.prompt_tokens is not None:
        tokens = share_out(whole.prompt_tokens, sizes)
    parts: list[Vectors] = []
    start = 0
    for batch, share in zip(batches, tokens, strict=True):
        parts.append(Vectors(whole.array[start : start + len(batch)], share, source=whole.source))
        start += len(batch)
    return parts


CONCERNS_ENDPOINT: Final = (ConnectError, RateLimited, PoolTimeout)
"""Errors of a merged call that no input has caused."""
SHARE: Final = 0.5
"""Share of the time left that a merged call gets. The rest is for the requests' own calls."""
ROUNDS: Final = 3
"""How often two requests make their own call to find out whether an upstream is too slow."""
LARGEST: Final = 32
"""Inputs of the largest call that is merged. A larger one would delay the small ones."""

Call = Callable[[Batch, float], Awaitable[Vectors]]
"""Makes one call with a timeout in seconds."""
Caps = Callable[[], Accepts]
"""Returns the current limits of one call: they can become smaller while calls wait."""


class _Waiting:
    """One call in a queue.

    It waits for other calls for ``max_wait`` seconds, until the time ``until``. It must be answered
    before the time ``ends``. ``alone``: it must make its own call instead of a merged one.
    ``is_companion``: it must do so because a merged call with its inputs has failed.
    ``probes``: the outcome of its own call decides about other requests too. ``next_probes``: it
    makes such a call if the others are not decided when ``scope`` ends its wait. ``has_left``: it
    was cancelled, or ``ends`` has passed.
    """

    __slots__ = (
        "alone",
        "answer",
        "batch",
        "done",
        "ends",
        "error",
        "has_left",
        "is_companion",
        "max_wait",
        "next_probes",
        "probes",
        "scope",
        "size",
        "until",
    )

    def __init__(
        self, batch: Batch, accepts: Accepts, max_wait: float, until: float, ends: float
    ) -> None:
        self.batch = batch
        self.size = measure(batch, accepts)
        self.max_wait = max_wait
        self.until = until
        self.ends = ends
        self.done = anyio.Event()
        self.answer: Vectors | None = None
        self.error: UpstreamError | None = None
        self.alone = False
        self.has_left = False
        self.is_companion = False
        self.probes: _Probes | None = None
        self.next_probes: _Probes | None = None
        self.scope = anyio.CancelScope()


class _Probes:
    """The own calls of some ``requests`` of a merged call without a response, two at a time.

    The first two begin now, and two more whenever half of the time left has passed. ``others`` are
    the requests that have no own call yet.
    """

    __slots__ = ("others", "under_way")

    def __init__(self, requests: Sequence[_Waiting], now: float) -> None:
        self.under_way = 0
        self.others = list(requests)
        left = min(waiting.ends for waiting in requests) - now
        for number, waiting in enumerate(requests[: 2 * ROUNDS]):
            if number < 2:
                self.begin(waiting)
            else:
                waiting.next_probes = self
                waiting.scope.deadline = now + left * (1 - SHARE ** (number // 2))

    def begin(self, waiting: _Waiting) -> None:
        """Let ``waiting`` make its own call."""
        self.others.remove(waiting)
        self.under_way += 1
        _separate([waiting])
        waiting.probes = self

    def end(self, waiting: _Waiting, error: EmbedrouteError | None, *, cancelled: bool) -> None:
        """Decide about the others after the own call of ``waiting`` has ended.

        The first response decides, also an error that an input may have caused; without one, the
        end of the last such call.
        """
        waiting.probes = None
        self.under_way -= 1
        is_slow = isinstance(error, (*CONCERNS_ENDPOINT, UpstreamTimeout))
        if (is_slow or cancelled) and self.under_way:
            return
        others = self.others
        self.others = []
        if isinstance(error, UpstreamError) and is_slow:
            _share(error, waiting, others)
        elif not cancelled:  # otherwise they start over
            _separate(others)
        _release(others)


class _Queue:
    """The calls with one queue key: the number in progress, and those that wait.

    The first waiting call is the leader. ``ready`` ends its wait.
    """

    __slots__ = ("queue_key", "ready", "under_way", "waiting")

    def __init__(self, queue_key: Hashable) -> None:
        self.queue_key = queue_key
        self.under_way = 0
        self.waiting: list[_Waiting] = []
        self.ready = anyio.Event()

    @property
    def sizes(self) -> list[BatchSize]:
        return [waiting.size for waiting in self.waiting]


class MicroBatcher:
    """The micro-batch queues of one event loop."""

    def __init__(self) -> None:
        """Create a micro-batcher without queues."""
        self._queues: dict[Hashable, _Queue] = {}

    async def embed(
        self,
        batch: Batch,
        queue_key: Hashable,
        call: Call,
        *,
        max_wait: float,
        timeout: float,
        caps: Caps,
        own_call: Call | None = None,
    ) -> tuple[Vectors, bool]:
        """Embed ``batch``; while the endpoint is busy, merge it with calls of equal ``queue_key``.

        It waits at most ``max_wait`` seconds for other calls, and ``timeout`` seconds in all. A
        merged call stays within ``caps``. ``own_call`` replaces ``call`` after a merged call with
        ``batch`` has failed. Returns the answer to ``batch``, and whether this request made the
        call.

        Raises:
            EmbedrouteError: the error of the call. It is neutral if the call was merged, and
                ``already_recorded`` if another request made it.
        """
        # Content parts are not merged: tokens by modality could not be split between requests.
        if batch.parts or len(batch) > LARGEST:
            return await call(batch, timeout), True
        if queue_key not in self._queues:
            return await self._call(self._queue(queue_key), call(batch, timeout)), True
        now = anyio.current_time()
        ends = now + timeout
        waiting: _Waiting | None = None
        while True:
            queue = self._queue(queue_key)
            if waiting is not None and waiting.alone:
                return await self._call_alone(queue, waiting, call, own_call), True
            if not (queue.under_way or queue.waiting):
                return await self._call(queue, call(batch, ends - anyio.current_time())), True
            waiting = _Waiting(batch, caps(), max_wait, now + max_wait, ends)
            queue.waiting.append(waiting)
            if queue.waiting[0] is waiting:
                return await self._lead(queue, call, caps, own_call), True
            if is_full(queue.sizes, caps()):
                queue.ready.set()
            if (answer := await _follow(queue, waiting)) is not None:
                return answer, False

    def _queue(self, queue_key: Hashable) -> _Queue:
        queue = self._queues.get(queue_key)
        if queue is None:
            queue = self._queues[queue_key] = _Queue(queue_key)
        return queue

    async def _call(self, queue: _Queue, call: Awaitable[Vectors]) -> Vectors:
        queue.under_way += 1
        try:
            return await call
        finally:
            queue.under_way -= 1
            if queue.under_way == 0:
                queue.ready.set()
            self._delete_if_empty(queue)

    async def _call_alone(
        self, queue: _Queue, waiting: _Waiting, call: Call, own_call: Call | None
    ) -> Vectors:
        """Make the own call of one request in its remaining time."""
        if waiting.is_companion:
            call = own_call or call
        error: EmbedrouteError | None = None
        cancelled = True
        try:
            seconds = waiting.ends - anyio.current_time()
            answer = await self._call(queue, call(waiting.batch, seconds))
            cancelled = False
        except EmbedrouteError as failure:
            error = neutral(failure) if isinstance(failure, UpstreamError) else failure
            cancelled = False
            raise
        finally:
            if waiting.probes is not None:
                waiting.probes.end(waiting, error, cancelled=cancelled)
        return answer

    def _delete_if_empty(self, queue: _Queue) -> None:
        if not (queue.under_way or queue.waiting) and self._queues.get(queue.queue_key) is queue:
            del self._queues[queue.queue_key]

    async def _lead(self, queue: _Queue, call: Call, caps: Caps, own_call: Call | None) -> Vectors:
        """Wait until the call is due, and make it for the leader and the calls that fit.

        The other calls are released: they queue again, with a new leader.
        """
        queue.ready = anyio.Event()
        batch: Sequence[_Waiting] = ()
        try:
            with anyio.move_on_after(queue.waiting[0].until - anyio.current_time()):
                await queue.ready.wait()
            count = count_fitting(queue.sizes, caps())
            batch, hurried = _split_by_time_left(queue.waiting[:count])
            remaining = queue.waiting[count:]
            queue.waiting = []
            _release(remaining)
            _release(hurried)
            leader = batch[0]
            if len(batch) > 1:
                batch = await self._serve(queue, batch, call)
                if (answer := _outcome(leader)) is not None:
                    return answer
                _release(batch)
            return await self._call_alone(queue, leader, call, own_call)
        finally:
            if not batch:  # the leader was cancelled while it waited
                batch = queue.waiting
                queue.waiting = []
            _release(batch)
            self._delete_if_empty(queue)

    async def _serve(
        self, queue: _Queue, batch: Sequence[_Waiting], call: Call
    ) -> Sequence[_Waiting]:
        """Make one merged call, and give each request its part of the answer or its error.

        Return the requests whose wait is over. Those without an answer or error make their own
        call. No error is raised from here, because the frame of this function holds the inputs of
        all requests.
        """
        batches = [waiting.batch for waiting in batch]
        seconds = SHARE * (min(waiting.ends for waiting in batch) - anyio.current_time())
        try:
            whole = await self._call(queue, call(merged(batches), seconds))
        except EmbedrouteError as error:
            if isinstance(error, CONCERNS_ENDPOINT):
                _share(error, batch[0], batch[1:])
                return batch
            if isinstance(error, UpstreamTimeout):
                present = [waiting for waiting in batch if not waiting.has_left]
                _Probes(present, anyio.current_time())
                return present[:2]
            # One input, or the merged size, may be the cause of any status. So each request makes
            # its own call, and only that one counts for the endpoint's health.
            _separate(batch)
            return batch
        for waiting, part in zip(batch, split_result(whole, batches), strict=True):
            waiting.answer = part
        return batch


def _split_by_time_left(
    calls: Sequence[_Waiting],
) -> tuple[Sequence[_Waiting], Sequence[_Waiting]]:
    """Return the calls to merge, and those that must be made alone.

    A merged call gets ``SHARE`` of the shortest time left. So a call with less than that share of
    the leader's time is not merged, because it would end the merged call early.
    """
    now = anyio.current_time()
    least = SHARE * (calls[0].ends - now)
    hurried = [waiting for waiting in calls[1:] if waiting.ends - now < least]
    for waiting in hurried:
        waiting.alone = True
    return [waiting for waiting in calls if not waiting.alone], hurried


def _separate(calls: Sequence[_Waiting]) -> None:
    """Let each of ``calls``, whose merged call has failed, make its own call."""
    for waiting in calls:
        waiting.alone = True
        waiting.is_companion = True


def _share(error: UpstreamError, leader: _Waiting, followers: Sequence[_Waiting]) -> None:
    """Give the leader and its followers neutral copies of the error of the leader's call.

    A follower gets a timeout only if it has no more time than the leader; otherwise it starts over.
    A difference of up to ``max_wait`` does not count, because it only comes from the follower's
    later start. If it counted, every follower would call the slow upstream again.
    """
    leader.error = neutral(error)
    leader.error.was_merged = True
    for waiting in followers:
        if not isinstance(error, UpstreamTimeout) or waiting.ends - leader.ends <= waiting.max_wait:
            waiting.error = neutral(error)
            waiting.error.already_recorded = True
            waiting.error.was_merged = True


def _outcome(waiting: _Waiting) -> Vectors | None:
    """Return the request's part of a merged answer, raise its error, or return None."""
    if waiting.error is not None:
        raise waiting.error
    return waiting.answer


async def _follow(queue: _Queue, waiting: _Waiting) -> Vectors | None:
    """Wait for the leader's call; return None if it has no answer and there is time to start over.

    Raises:
        UpstreamTimeout: there is no answer and too little time is left.
    """
    try:
        waiting.scope.deadline = waiting.ends
        with waiting.scope:
            await waiting.done.wait()
    except BaseException:
        _leave(waiting)
        raise
    finally:
        if waiting in queue.waiting:
            queue.waiting.remove(waiting)
    if not waiting.done.is_set():
        if waiting.next_probes is not None:
            waiting.next_probes.begin(waiting)
            return None
        _leave(waiting)
    answer = _outcome(waiting)
    time_left = waiting.ends - anyio.current_time()
    if answer is None and not waiting.alone and time_left <= waiting.max_wait:
        raise _timed_out()
    return answer


def _leave(waiting: _Waiting) -> None:
    """Record that a request waits no longer. It makes no call of its own."""
    waiting.has_left = True
    if waiting.probes is not None:
        waiting.probes.end(waiting, None, cancelled=True)


def _timed_out() -> UpstreamTimeout:
    error = UpstreamTimeout("The upstream did not answer in time.", reason="timed out")
    error.already_recorded = True  # the request that made the call records it
    return error


def _release(calls: Sequence[_Waiting]) -> None:
    for waiting in calls:
        waiting.done.set()
