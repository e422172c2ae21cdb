"""Over endpoints and attempts under one deadline; the only place that retries."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import anyio
from anyio import CapacityLimiter

from embedroute import tasks
from embedroute.backend import Batch, Vectors
from embedroute.batching import Merger
from embedroute.errors import BatchTooLarge, DeadlineExceeded, EmbedrouteError
from embedroute.exchange import LocalModels, Tools, checked, exchange, is_large
from embedroute.http import Engine
from embedroute.inputs import Input
from embedroute.journal import Journal
from embedroute.orders import Land, Landed, Order, for_client, landed_of, make_batch, outcome_of
from embedroute.redact import capture
from embedroute.routing.directory import Candidate
from embedroute.routing.health import Healths
from embedroute.routing.parameters import is_cut_here
from embedroute.routing.plan import Key, halves, split, text_before
from embedroute.routing.retry import RetryBudget, RetryPolicy, Then, judge, limited, wait_before, worst
from embedroute.routing.widths import Widths

log = logging.getLogger("embedroute.calls")

CHUNKS_AT_ONCE = 8
Pieces = Sequence[Mapping[Key, Input]]
Enter = Callable[[float], bool]
"""Whether an endpoint may be tried for the first time by a chunk, at a time in seconds."""


class Desk:
    """Makes the calls of one gateway on one event loop; health and budget are the gateway's."""

    def __init__(
        self,
        *,
        engine: Engine,
        local: LocalModels,
        healths: Healths,
        widths: Widths,
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
        self._widths = widths
        self._budget = budget
        self._policy = policy
        self._clock = clock
        self._random = random

    async def embed(
        self, candidates: Sequence[Candidate], order: Order, work: Mapping[Key, Input], land: Land, enter: Enter | None = None
    ) -> None:
        """Compute all of ``work``; ``land`` gets each chunk's vectors as soon as they are there.

        ``enter`` grants the first try at an endpoint; without it, it is no retry.

        Raises:
            EmbedrouteError: what the client is to be told when some of it cannot be computed.
        """
        failures: list[EmbedrouteError] = []
        enter = enter or self._budget.called
        for position, candidate in enumerate(candidates):
            left = candidates[position:]
            before = text_before(candidate, order.model, order.parameters.input_type)
            pieces = split(work, candidate.accepts, self._healths.of(candidate).cap(self._clock()), before)
            if len(pieces) > 1:
                order.journal.note("split", "cut", endpoint=candidate.name, chunks=[len(piece) for piece in pieces])
                await self._all([*left, *limited(candidates, failures)], order, pieces, land)
                return
            outcome = await self._at(candidate, work, order, len(left), enter)
            if not isinstance(outcome, EmbedrouteError):
                land(outcome)
                return
            if isinstance(outcome, BatchTooLarge) and len(work) > 1:
                await self._all([*left, *limited(candidates, failures)], order, halves(work), land)
                return
            failures.append(outcome)
        nearest = await self._rested(limited(candidates, failures), order, worst(failures))
        # All were tried: whatever is called now is called again, and the wait was paid for.
        candidates = [nearest, *(it for it in candidates if it is not nearest)]
        await self.embed(candidates, order, work, land, self._budget.prepaid())

    async def _all(self, candidates: Sequence[Candidate], order: Order, pieces: Pieces, land: Land) -> None:
        # Each piece is a chunk of its own, tried for the first time: there are never more of them than inputs.
        await tasks.gather([partial(self.embed, candidates, order, piece, land) for piece in pieces], CHUNKS_AT_ONCE)

    async def _rested(self, resting: Sequence[Candidate], order: Order, failure: EmbedrouteError) -> Candidate:
        """Wait for the first of the endpoints that asked for a rest, if it fits the deadline; else raise ``failure``."""
        now = self._clock()
        ready = {self._healths.of(it).ready_at(now): it for it in reversed(resting)}
        at = min(ready, default=order.deadline)
        if at >= order.deadline or not self._budget.allow(now):
            raise failure
        await anyio.sleep(max(at - now, 0.01))
        return ready[at]

    async def _at(
        self, candidate: Candidate, work: Mapping[Key, Input], order: Order, left: int, enter: Enter
    ) -> Landed | EmbedrouteError:
        """Try one endpoint until it answers or is given up; then tell why."""
        attempt, failure, health = 0, None, self._healths.of(candidate)
        while True:
            attempt += 1
            now = self._clock()
            if order.deadline <= now:
                raise DeadlineExceeded("The deadline passed before an upstream answered.")
            ticket = health.admit(now)
            if not ticket or (attempt == 1 and not enter(now)):
                health.released(ticket)
                order.journal.note("select", "skipped", endpoint=candidate.name, reason="it rests")
                return failure or health.resting(now)
            outcome = await self._attempt(candidate, work, order, (order.deadline - now) / left, attempt, ticket)
            if not isinstance(outcome, EmbedrouteError):
                return outcome
            failure = outcome
            if (then := judge(failure, attempt, self._policy)) is Then.STOP:
                raise failure
            now, wait = self._clock(), wait_before(failure, attempt, self._policy, self._random)
            if then is not Then.RETRY or now + wait >= order.deadline or not self._budget.allow(now):
                return failure
            await anyio.sleep(wait)

    async def _attempt(
        self, candidate: Candidate, work: Mapping[Key, Input], order: Order, timeout: float, attempt: int, ticket: int
    ) -> Landed | EmbedrouteError:
        began, health, journal = self._clock(), self._healths.of(candidate), order.journal
        journal.attempts, batch = journal.attempts + 1, make_batch(candidate, work, order)
        try:
            if candidate.micro_batch_ms is None or journal.keeps:
                answer, made = await self._exchange(candidate, order, batch, timeout), True
            else:
                answer, made = await self._merged(candidate, order, batch, timeout, candidate.micro_batch_ms / 1000)
        except EmbedrouteError as error:
            failure = for_client(error, candidate)
            health.learn(ticket, self._clock(), failure)
            journal.failures.append((candidate.provider, getattr(failure, "upstream_status", None)))
            self._tell(candidate, failure, journal, attempt, began)
            return failure
        except BaseException:
            health.released(ticket)
            raise
        landed, tokens = landed_of(candidate, work, answer, order, made=made)
        if made:
            now = self._clock()
            health.succeeded(ticket, now, now - began, tokens)
        else:
            health.released(ticket)
        self._tell(candidate, None, journal, attempt, began)
        return landed

    async def _merged(
        self, candidate: Candidate, order: Order, batch: Batch, timeout: float, patience: float
    ) -> tuple[Vectors, bool]:
        """Make the call, or take part in one; tells also whether it was this request that made it."""
        return await self._merger.embed(
            batch,
            (candidate.name, order.shared, order.kind, batch.user),
            partial(self._exchange, candidate, order),
            patience=min(patience, timeout / 2),
            timeout=timeout,
            caps=lambda: self._healths.of(candidate).caps(candidate.accepts, self._clock()),
        )

    async def _exchange(self, candidate: Candidate, order: Order, batch: Batch, timeout: float) -> Vectors:
        journal, due = order.journal, order.parameters.width
        keep = partial(capture, journal, candidate.provider, candidate.backend) if journal.keeps else None
        tools = Tools(engine=self._engine, local=self._local, workers=self._workers, timeout=timeout, keep=keep)
        try:
            answer = await exchange(candidate.backend, batch, tools)
        except BatchTooLarge:
            if len(batch) > 1:
                self._healths.of(candidate).overfilled(self._clock(), len(batch))
            raise
        check = partial(checked, answer, batch, due=due, matryoshka=is_cut_here(order.model))
        answer = await tasks.in_thread(check) if is_large(batch) else check()
        if due is None:
            self._widths.agree(order.space, batch.dtype, answer.array.shape[1])
        return answer

    def _tell(
        self, candidate: Candidate, failure: EmbedrouteError | None, journal: Journal, attempt: int, began: float
    ) -> None:
        if journal.events is None and not log.isEnabledFor(logging.INFO):
            return
        outcome: dict[str, object] = {"endpoint": candidate.name, "attempt": attempt}
        outcome |= {"ms": round((self._clock() - began) * 1000, 1), **outcome_of(failure)}
        journal.note("call", "failed" if failure else "answered", **outcome)
        log.info("attempt", extra={"request_id": journal.request_id, **outcome})
