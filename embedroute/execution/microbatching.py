"""Several batches as one call: how many of them it can hold, and whose is what of its answer. Pure.

Merges small concurrent calls to one endpoint into one, where its config asks for that.

An idle endpoint is called at once. Only while it is busy do calls wait, for as long as config says,
and the first that waits leads: no task is started, the leader hands the queue over before it does
I/O, and whoever is left without an answer, by a leader that was cancelled or had less time, or by a
call that was full, goes round again. An error of a merged call may quote any of its inputs, so
every request of it, the leader's too, gets a neutral one.
"""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Final

import anyio
import msgspec

from embedroute.backend import Accepts, Batch, Vectors
from embedroute.errors import EmbedrouteError, UpstreamError, UpstreamTimeout
from embedroute.inputs import estimate_size
from embedroute.routing import ENVELOPE, count_bytes, share_out
from embedroute.upstream_errors import BLAMES_INPUTS
from embedroute.upstream_errors.neutral import neutral


class BatchSize(msgspec.Struct, frozen=True, gc=False):
    """What a batch weighs: its inputs, and its tokens and bytes where the API caps them."""

    inputs: int
    tokens: int
    size: int


def measure(batch: Batch, accepts: Accepts) -> BatchSize:
    """Weigh a batch by what ``accepts`` caps."""
    tokens = sum(map(estimate_size, batch.inputs)) if accepts.max_tokens else 0
    return BatchSize(
        len(batch), tokens, sum(map(count_bytes, batch.inputs)) if accepts.max_bytes else 0
    )


def count_fitting(loads: Sequence[BatchSize], accepts: Accepts) -> int:
    """Count the batches, from the first, that one call can hold; at least 1."""
    inputs, tokens, size = 0, 0, ENVELOPE
    for count, load in enumerate(loads):
        inputs, tokens, size = inputs + load.inputs, tokens + load.tokens, size + load.size
        over = inputs > (accepts.max_inputs or inputs) or tokens > (accepts.max_tokens or tokens)
        if count and (over or size > (accepts.max_bytes or size)):
            return count
    return len(loads)


def is_full(loads: Sequence[BatchSize], accepts: Accepts) -> bool:
    """Whether the first batches fill a call; there is nothing more to wait for then."""
    return sum(load.inputs for load in loads) == accepts.max_inputs or count_fitting(
        loads, accepts
    ) < len(loads)


def merged(batches: Sequence[Batch]) -> Batch:
    """Make one batch of several that differ in nothing but their inputs."""
    return msgspec.structs.replace(
        batches[0],
        texts=[text for batch in batches for text in batch.texts],
        tokens=[ids for batch in batches for ids in batch.tokens],
        parts=[parts for batch in batches for parts in batch.parts],
    )


def split_result(whole: Vectors, batches: Sequence[Batch]) -> list[Vectors]:
    """Cut a merged answer: each batch its rows, and tokens by input length that add up exactly."""
    sizes = [sum(map(estimate_size, batch.inputs)) for batch in batches]
    tokens = (
        [None] * len(batches)
        if whole.prompt_tokens is None
        else share_out(whole.prompt_tokens, sizes)
    )
    parts: list[Vectors] = []
    start = 0
    for batch, share in zip(batches, tokens, strict=True):
        parts.append(Vectors(whole.array[start : start + len(batch)], share, source=whole.source))
        start += len(batch)
    return parts


LARGEST: Final = 32
"""Inputs of the largest call that is merged. A larger one would hold small ones up."""

Call = Callable[[Batch, float], Awaitable[Vectors]]
"""Makes one call within so many seconds."""
Caps = Callable[[], Accepts]
"""Tells what one call may hold now: an upstream may let on, while calls wait, that it takes less than it declared."""


class _Waiting:
    """One call in a queue: what it brings and weighs, how long it waits and lives, and what became of it.

    It waits for company for ``max_wait`` seconds, which is ``until`` then; its own time, whoever
    calls, ``ends`` later.
    """

    __slots__ = ("alone", "answer", "batch", "done", "ends", "error", "load", "max_wait", "until")

    def __init__(
        self, batch: Batch, accepts: Accepts, max_wait: float, until: float, ends: float
    ) -> None:
        self.batch = batch
        self.load = measure(batch, accepts)
        self.max_wait = max_wait
        self.until = until
        self.ends = ends
        self.done = anyio.Event()
        self.answer: Vectors | None = None
        self.error: UpstreamError | None = None
        self.alone = False


class _Queue:
    """The calls to one endpoint on the same terms: how many are under way, and which wait, the first of them leading."""

    __slots__ = ("queue_key", "ready", "under_way", "waiting")

    def __init__(self, queue_key: Hashable) -> None:
        self.queue_key = queue_key
        self.under_way = 0
        self.waiting: list[_Waiting] = []
        self.ready = anyio.Event()

    @property
    def loads(self) -> list[BatchSize]:
        return [waiting.load for waiting in self.waiting]


class MicroBatcher:
    """The queues of one event loop."""

    def __init__(self) -> None:
        """Begin with none."""
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
    ) -> tuple[Vectors, bool]:
        """Embed ``batch``, in one call with others of equal ``queue_key`` if the endpoint is busy.

        It waits ``max_wait`` seconds at most for company and ``timeout`` in all. A merged call keeps
        ``caps``. Returns its own rows with their tokens, and whether this request made the call.

        Raises:
            EmbedrouteError: neutral if the call was merged, ``counted`` if another request made it.
        """
        if batch.parts or len(batch) > LARGEST:  # tokens by modality could not be shared out
            return await call(batch, timeout), True
        if queue_key not in self._queues:
            return await self._call(self._queue(queue_key), call(batch, timeout)), True
        now, alone = anyio.current_time(), False
        ends = now + timeout
        while True:
            queue = self._queue(queue_key)
            if alone or not (queue.under_way or queue.waiting):
                return await self._call(queue, call(batch, ends - anyio.current_time())), True
            waiting = _Waiting(batch, caps(), max_wait, now + max_wait, ends)
            queue.waiting.append(waiting)
            if queue.waiting[0] is waiting:
                return await self._lead(queue, call, caps), True
            if is_full(queue.loads, caps()):
                queue.ready.set()
            if (answer := await _follow(queue, waiting)) is not None:
                return answer, False
            alone = waiting.alone

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
            self._tidy(queue)

    def _tidy(self, queue: _Queue) -> None:
        if not (queue.under_way or queue.waiting) and self._queues.get(queue.queue_key) is queue:
            del self._queues[queue.queue_key]

    async def _lead(self, queue: _Queue, call: Call, caps: Caps) -> Vectors:
        queue.ready = anyio.Event()
        batch: Sequence[_Waiting] = ()
        left: Sequence[_Waiting] = ()
        try:
            with anyio.move_on_after(queue.waiting[0].until - anyio.current_time()):
                await queue.ready.wait()
            count = count_fitting(queue.loads, caps())
            batch, left, queue.waiting = queue.waiting[:count], queue.waiting[count:], []
            _release(left)
            leader = batch[0]
            if len(batch) > 1:
                await self._serve(queue, batch, call)
                if (answer := _outcome(leader)) is not None:
                    return answer
                _release(batch)
            return await self._call(queue, call(leader.batch, leader.ends - anyio.current_time()))
        finally:
            if not batch:  # cancelled while it waited
                batch, queue.waiting = queue.waiting, []
            _release(batch)
            self._tidy(queue)

    async def _serve(self, queue: _Queue, batch: Sequence[_Waiting], call: Call) -> None:
        """Make one call for a party and give each its part or its error.

        Neither is given where each must make its own call. Nothing is raised from here: the frame
        of this function holds the inputs of all.
        """
        batches = [waiting.batch for waiting in batch]
        try:
            seconds = batch[0].ends - anyio.current_time()
            whole = await self._call(queue, call(merged(batches), seconds))
        except EmbedrouteError as error:
            if isinstance(error, UpstreamError) and not isinstance(error, BLAMES_INPUTS):
                _share(error, batch[0], batch[1:])
                return
            # One bad input, or a cap that nobody declared, must harm nobody else, so each goes alone.
            for waiting in batch:
                waiting.alone = True
            return
        for waiting, part in zip(batch, split_result(whole, batches), strict=True):
            waiting.answer = part


def _share(error: UpstreamError, leader: _Waiting, followers: Sequence[_Waiting]) -> None:
    """Give each of a party the call's error, without its words.

    A timeout is given only to those who have no more time than their leader; others go round again.
    Equal time that began some patience later is no more: else each of a party would call an
    upstream anew that has just been too slow for all of them.
    """
    leader.error = neutral(error)
    for waiting in followers:
        if not isinstance(error, UpstreamTimeout) or waiting.ends - leader.ends <= waiting.max_wait:
            waiting.error = neutral(error)
            waiting.error.already_recorded = True


def _outcome(waiting: _Waiting) -> Vectors | None:
    """What became of a merged call: a part of the answer, an error that is raised, or nothing."""
    if waiting.error is not None:
        raise waiting.error
    return waiting.answer


async def _follow(queue: _Queue, waiting: _Waiting) -> Vectors | None:
    """Wait for what another makes of it; None if that is nothing, and there is time for another round."""
    try:
        with anyio.move_on_after(waiting.ends - anyio.current_time()):
            await waiting.done.wait()
    finally:
        if waiting in queue.waiting:
            queue.waiting.remove(waiting)
    answer = _outcome(waiting)
    left = waiting.ends - anyio.current_time()
    if answer is None and not waiting.alone and left <= waiting.max_wait:
        raise _timed_out()
    return answer


def _timed_out() -> UpstreamTimeout:
    error = UpstreamTimeout("The upstream did not answer in time.")
    error.already_recorded = True  # by whoever makes the call
    return error


def _release(waiting: Sequence[_Waiting]) -> None:
    for one in waiting:
        one.done.set()
