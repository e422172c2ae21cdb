"""Over endpoints and attempts under one deadline; the only place that retries."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import anyio
from anyio import CapacityLimiter

from embedroute import tasks
from embedroute.backend import Batch, Vectors
from embedroute.batching import Merger
from embedroute.errors import BatchTooLarge, DeadlineExceeded, EmbedrouteError, RateLimited
from embedroute.exchange import Keep, LocalModels, Tools, checked, exchange, is_large
from embedroute.http import Engine
from embedroute.inputs import Input, size_of
from embedroute.journal import Journal
from embedroute.orders import Order, for_client, make_batch, outcome_of
from embedroute.redact import capture
from embedroute.routing.directory import Candidate
from embedroute.routing.health import Healths
from embedroute.routing.plan import Key, halves, land, split
from embedroute.routing.retry import RetryBudget, RetryPolicy, Then, judge, wait_before, worst

log = logging.getLogger("embedroute.calls")

CHUNKS_AT_ONCE = 8


class Desk:
    """Makes the calls of one gateway on one event loop; health and budget are the gateway's."""

    def __init__(
        self,
        *,
        engine: Engine,
        local: LocalModels,
        healths: Healths,
        budget: RetryBudget,
        policy: RetryPolicy,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        """Take what is shared with other loops, and the engine, which is this loop's own."""
        self._engine = engine
        self._local = local
        self._workers = CapacityLimiter(2)
        self._merger = Merger()
        self._healths = healths
        self._budget = budget
        self._policy = policy
        self._clock = clock
        self._random = random

    async def embed(
        self, work: Mapping[Key, Input], candidates: Sequence[Candidate], order: Order, *, again: bool = False
    ) -> None:
        """Compute all of ``work``; ``order.land`` gets each chunk's vectors as soon as they are there.

        ``again`` says that all were tried and a rest was waited for: whatever is called now is called again.

        Raises:
            EmbedrouteError: what the client is to be told when some of it cannot be computed.
        """
        failures: list[EmbedrouteError] = []
        for position, candidate in enumerate(candidates):
            health = self._healths.of(candidate)
            pieces = split(work, candidate.accepts, health.cap(self._clock()))
            if len(pieces) > 1:
                order.journal.note("split", "cut", endpoint=candidate.name, chunks=[len(piece) for piece in pieces])
                await self._all(pieces, candidates[position:], order)
                return
            enter = self._entry(again=again, first=position == 0)
            failure = await self._at(candidate, work, order, len(candidates) - position, enter)
            if failure is None:
                return
            if isinstance(failure, BatchTooLarge) and len(work) > 1:
                await self._all(halves(work), candidates[position:], order)
                return
            failures.append(failure)
        await self._wait_or_raise(work, candidates, order, worst(failures))

    async def _all(self, pieces: Sequence[Mapping[Key, Input]], candidates: Sequence[Candidate], order: Order) -> None:
        await tasks.gather([partial(self.embed, piece, candidates, order) for piece in pieces], CHUNKS_AT_ONCE)

    async def _wait_or_raise(
        self, work: Mapping[Key, Input], candidates: Sequence[Candidate], order: Order, failure: EmbedrouteError
    ) -> None:
        now = self._clock()
        nearest = min(candidates, key=lambda it: self._healths.of(it).ready_at(now))
        rest = self._healths.of(nearest).ready_at(now) - now
        if not isinstance(failure, RateLimited) or now + rest >= order.deadline or not self._budget.allow(now):
            raise failure
        await anyio.sleep(max(rest, 0.01))
        await self.embed(work, [nearest, *(it for it in candidates if it is not nearest)], order, again=True)

    def _entry(self, *, again: bool, first: bool) -> Callable[[float], bool]:
        """Tell who grants the first try at an endpoint: it is no retry unless all were tried, and the wait is paid for."""
        if not again:
            return self._budget.called
        return (lambda _: True) if first else self._budget.allow

    async def _at(
        self, candidate: Candidate, work: Mapping[Key, Input], order: Order, left: int, enter: Callable[[float], bool]
    ) -> EmbedrouteError | None:
        """Try one endpoint until it answers or is given up; tell why it was given up."""
        attempt, failure, health = 0, None, self._healths.of(candidate)
        while True:
            attempt += 1
            now = self._clock()
            if order.deadline <= now:
                raise DeadlineExceeded("The deadline passed before an upstream answered.")
            ticket = health.admit(now)
            if not ticket:
                return failure or health.resting(now)
            if attempt == 1 and not enter(now):
                health.released(ticket)
                return health.resting(now)
            failure = await self._attempt(candidate, work, order, (order.deadline - now) / left, attempt, ticket)
            if failure is None:
                return None
            then = judge(failure, attempt, self._policy)
            if then is Then.STOP:
                raise failure
            if then is not Then.RETRY or not self._budget.allow(self._clock()):
                return failure
            await anyio.sleep(wait_before(failure, attempt, self._policy, self._random))

    async def _attempt(
        self, candidate: Candidate, work: Mapping[Key, Input], order: Order, timeout: float, attempt: int, ticket: int
    ) -> EmbedrouteError | None:
        began, health, failure = self._clock(), self._healths.of(candidate), None
        try:
            await self._call(candidate, work, order, timeout, ticket)
        except EmbedrouteError as error:
            failure = for_client(error, candidate)
            health.learn(ticket, self._clock(), failure)
        except BaseException:
            health.released(ticket)
            raise
        self._tell(candidate, failure, order.journal, attempt, self._clock() - began)
        return failure

    async def _call(self, candidate: Candidate, work: Mapping[Key, Input], order: Order, timeout: float, ticket: int) -> None:
        journal, health, began = order.journal, self._healths.of(candidate), self._clock()
        journal.attempts += 1
        answer, made = await self._merged_or_alone(candidate, make_batch(candidate, work, order), order, timeout)
        tokens = answer.prompt_tokens
        if tokens is None:
            journal.estimated = True
            tokens = sum(map(size_of, work.values()))
        if made:
            now = self._clock()
            health.succeeded(ticket, now, now - began, tokens)
        else:
            health.released(ticket)
        journal.served(candidate.provider, candidate.prices, tokens, answer.modality_tokens)
        landed = land(work, answer, tokens)
        if order.store is not None:
            order.store(landed)
        order.land(landed)

    async def _merged_or_alone(self, candidate: Candidate, batch: Batch, order: Order, timeout: float) -> tuple[Vectors, bool]:
        """Make the call, or take part in one; tells also whether it was this request that made it."""
        keep = partial(capture, order.journal, candidate.provider, candidate.backend) if order.journal.keeps else None
        if candidate.micro_batch_ms is None or keep is not None:
            return await self._exchange(candidate, order, keep, batch, timeout), True
        return await self._merger.embed(
            batch,
            (candidate.name, order.shared, order.kind, batch.user),
            partial(self._exchange, candidate, order, keep),
            patience=min(candidate.micro_batch_ms / 1000, timeout / 2),
            timeout=timeout,
            caps=lambda: self._healths.of(candidate).caps(candidate.accepts, self._clock()),
        )

    async def _exchange(self, candidate: Candidate, order: Order, keep: Keep | None, batch: Batch, timeout: float) -> Vectors:
        tools = Tools(engine=self._engine, local=self._local, workers=self._workers, timeout=timeout, keep=keep)
        try:
            answer, due = await exchange(candidate.backend, batch, tools), order.parameters.width
        except BatchTooLarge:
            if len(batch) > 1:
                self._healths.of(candidate).overfilled(self._clock(), len(batch))
            raise
        if is_large(batch):
            return await tasks.in_thread(partial(checked, answer, batch, due=due))
        return checked(answer, batch, due=due)

    def _tell(self, candidate: Candidate, failure: EmbedrouteError | None, journal: Journal, attempt: int, took: float) -> None:
        if failure is not None:
            journal.failures.append((candidate.provider, getattr(failure, "upstream_status", None)))
        if journal.events is None and not log.isEnabledFor(logging.INFO):
            return
        outcome: dict[str, object] = {"endpoint": candidate.name, "attempt": attempt, "ms": round(took * 1000, 1)}
        outcome |= outcome_of(failure)
        journal.note("call", "failed" if failure else "answered", **outcome)
        log.info("attempt", extra={"request_id": journal.request_id, **outcome})
