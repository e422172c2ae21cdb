"""Merges small concurrent calls to one endpoint into one, where its config asks for that.

An idle endpoint is called at once. Only while it is busy do calls wait, for as long as config says, and the first
that waits leads: no task is started, the leader hands the queue over before it does I/O, and whoever is left
without an answer, by a leader that was cancelled or a call that was full, goes round again.
"""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from copy import copy

import anyio
import msgspec

from embedroute.backend import Accepts, Batch, Vectors
from embedroute.errors import BatchTooLarge, EmbedrouteError, InputRefused, UpstreamError
from embedroute.inputs import size_of
from embedroute.routing.plan import bytes_of, share_out

Call = Callable[[Batch], Awaitable[Vectors]]


class _Waiting:
    """One call in a queue: what it brings and weighs, and what became of it."""

    __slots__ = ("alone", "answer", "batch", "error", "inputs", "size", "tokens", "turn")

    def __init__(self, batch: Batch, accepts: Accepts) -> None:
        self.batch = batch
        self.inputs = len(batch)
        self.tokens = sum(map(size_of, batch.inputs)) if accepts.max_tokens else 0
        self.size = sum(map(bytes_of, batch.inputs)) if accepts.max_bytes else 0
        self.turn = anyio.Event()
        self.answer: Vectors | None = None
        self.error: EmbedrouteError | None = None
        self.alone = False


class _Queue:
    """The calls to one endpoint on the same terms: how many are under way, and which wait, the first of them leading."""

    __slots__ = ("go", "under_way", "waiting")

    def __init__(self) -> None:
        self.under_way = 0
        self.waiting: list[_Waiting] = []
        self.go = anyio.Event()


class Merger:
    """The queues of one event loop."""

    def __init__(self) -> None:
        """Begin with none."""
        self._queues: dict[Hashable, _Queue] = {}

    async def embed(
        self, batch: Batch, terms: Hashable, call: Call, *, patience: float, accepts: Accepts
    ) -> tuple[Vectors, bool]:
        """Embed ``batch``, in one call with others of equal ``terms`` if the endpoint is busy.

        It waits ``patience`` seconds at the most before its call begins, and a merged call keeps the caps of
        ``accepts``. Returns the batch's own rows and its exact share of the tokens, and whether it was this request
        that made the call. Items of parts go alone: tokens by modality could not be shared out.

        Raises:
            EmbedrouteError: the call failed; an error of a call that another made is marked ``counted``.
        """
        if batch.parts:
            return await call(batch), True
        until = anyio.current_time() + patience
        alone = False
        while True:
            queue = self._queues.setdefault(terms, _Queue())
            if alone or not (queue.under_way or queue.waiting):
                return await self._call(queue, terms, batch, call), True
            waiting = _Waiting(batch, accepts)
            queue.waiting.append(waiting)
            if queue.waiting[0] is waiting:
                return await self._lead(queue, terms, call, until, accepts), True
            if _full(queue.waiting, accepts):
                queue.go.set()
            if (answer := await _follow(queue, waiting)) is not None:
                return answer, False
            alone = waiting.alone

    async def _call(self, queue: _Queue, terms: Hashable, batch: Batch, call: Call) -> Vectors:
        queue.under_way += 1
        try:
            return await call(batch)
        finally:
            queue.under_way -= 1
            if queue.under_way == 0:
                queue.go.set()
            self._tidy(queue, terms)

    def _tidy(self, queue: _Queue, terms: Hashable) -> None:
        if not (queue.under_way or queue.waiting) and self._queues.get(terms) is queue:
            del self._queues[terms]

    async def _lead(self, queue: _Queue, terms: Hashable, call: Call, until: float, accepts: Accepts) -> Vectors:
        queue.go = anyio.Event()
        party: Sequence[_Waiting] = ()
        left: Sequence[_Waiting] = ()
        try:
            with anyio.move_on_after(until - anyio.current_time()):
                await queue.go.wait()
            fitting = _fitting(queue.waiting, accepts)
            party, left, queue.waiting = queue.waiting[:fitting], queue.waiting[fitting:], []
            _release(left)
            return await self._serve(queue, terms, party, call)
        finally:
            if not party:  # cancelled while it waited
                party, queue.waiting = queue.waiting, []
            _release(party)
            self._tidy(queue, terms)

    async def _serve(self, queue: _Queue, terms: Hashable, party: Sequence[_Waiting], call: Call) -> Vectors:
        """Make one call for a party, and give every follower its part; the leader's is returned."""
        if len(party) == 1:
            return await self._call(queue, terms, party[0].batch, call)
        try:
            whole = await self._call(queue, terms, _merged([waiting.batch for waiting in party]), call)
        except (InputRefused, BatchTooLarge):
            # One bad input, or a cap that nobody declared, must harm nobody else, so each goes alone.
            for waiting in party[1:]:
                waiting.alone = True
            _release(party[1:])
            return await self._call(queue, terms, party[0].batch, call)
        except UpstreamError as error:
            for waiting in party[1:]:
                waiting.error = copy(error)
                waiting.error.counted = True
            raise
        parts = _parts(whole, [waiting.batch for waiting in party])
        for waiting, part in zip(party, parts, strict=True):
            waiting.answer = part
        return parts[0]


async def _follow(queue: _Queue, waiting: _Waiting) -> Vectors | None:
    """Wait for what another makes of it; None if that is nothing."""
    try:
        await waiting.turn.wait()
    finally:
        if waiting in queue.waiting:
            queue.waiting.remove(waiting)
    if waiting.error is not None:
        raise waiting.error
    return waiting.answer


def _release(waiting: Sequence[_Waiting]) -> None:
    for one in waiting:
        one.turn.set()


def _fitting(waiting: Sequence[_Waiting], accepts: Accepts) -> int:
    """Count the calls, from the first, that one call can hold; at least 1."""
    inputs = tokens = size = 0
    for count, one in enumerate(waiting):
        inputs, tokens, size = inputs + one.inputs, tokens + one.tokens, size + one.size
        over = inputs > (accepts.max_inputs or inputs) or tokens > (accepts.max_tokens or tokens)
        if count and (over or size > (accepts.max_bytes or size)):
            return count
    return len(waiting)


def _full(waiting: Sequence[_Waiting], accepts: Accepts) -> bool:
    """Whether the first calls fill one; there is nothing more to wait for then."""
    return sum(one.inputs for one in waiting) == accepts.max_inputs or _fitting(waiting, accepts) < len(waiting)


def _merged(batches: Sequence[Batch]) -> Batch:
    return msgspec.structs.replace(
        batches[0],
        texts=[text for batch in batches for text in batch.texts],
        tokens=[ids for batch in batches for ids in batch.tokens],
        parts=[parts for batch in batches for parts in batch.parts],
    )


def _parts(whole: Vectors, batches: Sequence[Batch]) -> list[Vectors]:
    """Cut a merged answer: each batch its rows, and tokens by input length that add up exactly."""
    sizes = [sum(map(size_of, batch.inputs)) for batch in batches]
    tokens = [None] * len(batches) if whole.prompt_tokens is None else share_out(whole.prompt_tokens, sizes)
    parts: list[Vectors] = []
    start = 0
    for batch, share in zip(batches, tokens, strict=True):
        parts.append(Vectors(whole.array[start : start + len(batch)], share))
        start += len(batch)
    return parts
