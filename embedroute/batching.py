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
from embedroute.errors import EmbedrouteError, InputRefused, UpstreamError
from embedroute.inputs import size_of
from embedroute.routing.plan import share_out

Call = Callable[[Batch], Awaitable[Vectors]]


class _Waiting:
    """One call in a queue: what it brings, and what became of it."""

    __slots__ = ("alone", "answer", "batch", "error", "turn")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.turn = anyio.Event()
        self.answer: Vectors | None = None
        self.error: EmbedrouteError | None = None
        self.alone = False


class _Queue:
    """The calls to one endpoint on the same terms: how many are under way, and which wait."""

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

        It waits ``patience`` seconds at the most, and a merged call keeps the caps of ``accepts``. Returns the
        batch's own rows and its exact share of the tokens, and whether it was this request that made the call.

        Raises:
            EmbedrouteError: the call failed; an error of a call that another made is marked ``counted``.
        """
        while True:
            queue = self._queues.setdefault(terms, _Queue())
            if queue.under_way == 0:
                return await self._call(queue, terms, batch, call), True
            waiting = _Waiting(batch)
            queue.waiting.append(waiting)
            if len(queue.waiting) == 1:
                return await self._lead(queue, terms, waiting, call, patience, accepts), True
            if _fitting(queue.waiting, accepts) < len(queue.waiting):
                queue.go.set()
            await _follow(queue, waiting)
            if waiting.error is not None:
                raise waiting.error
            if waiting.answer is not None:
                return waiting.answer, False
            if waiting.alone:
                return await self._call(queue, terms, batch, call), True

    async def _call(self, queue: _Queue, terms: Hashable, batch: Batch, call: Call) -> Vectors:
        queue.under_way += 1
        try:
            return await call(batch)
        finally:
            queue.under_way -= 1
            if queue.under_way == 0:
                queue.go.set()
                if not queue.waiting and self._queues.get(terms) is queue:
                    del self._queues[terms]

    async def _lead(
        self, queue: _Queue, terms: Hashable, leader: _Waiting, call: Call, patience: float, accepts: Accepts
    ) -> Vectors:
        queue.go = anyio.Event()
        followers: Sequence[_Waiting] = ()
        try:
            with anyio.move_on_after(patience):
                await queue.go.wait()
            followers = queue.waiting[1 : _fitting(queue.waiting, accepts)]
            _release([waiting for waiting in queue.waiting if waiting is not leader and waiting not in followers])
            queue.waiting = []
            return await self._serve(queue, terms, [leader, *followers], call)
        finally:
            if leader in queue.waiting:
                followers, queue.waiting = queue.waiting[1:], []
            _release(followers)

    async def _serve(self, queue: _Queue, terms: Hashable, party: Sequence[_Waiting], call: Call) -> Vectors:
        """Make one call for a party, and give every follower its part; the leader's is returned."""
        if len(party) == 1:
            return await self._call(queue, terms, party[0].batch, call)
        try:
            whole = await self._call(queue, terms, _merged([waiting.batch for waiting in party]), call)
        except InputRefused:
            # One bad input must harm nobody else, so each goes alone.
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


async def _follow(queue: _Queue, waiting: _Waiting) -> None:
    try:
        await waiting.turn.wait()
    finally:
        if waiting in queue.waiting:
            queue.waiting.remove(waiting)


def _release(waiting: Sequence[_Waiting]) -> None:
    for one in waiting:
        one.turn.set()


def _fitting(waiting: Sequence[_Waiting], accepts: Accepts) -> int:
    """Count the calls, from the first, that one call can hold; at least 1."""
    inputs = tokens = 0
    for count, one in enumerate(waiting):
        inputs += len(one.batch)
        tokens += sum(map(size_of, one.batch.inputs))
        if count and (inputs > (accepts.max_inputs or inputs) or tokens > (accepts.max_tokens or tokens)):
            return count
    return len(waiting)


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
