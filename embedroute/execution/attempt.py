"""One attempt at one endpoint: the call, or a part in one that is shared, what is learned from it, and how it is told."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

from embedroute.backend import Batch, Vectors
from embedroute.errors import BatchTooLarge, EmbedrouteError, TimedOut
from embedroute.execution.backend_call import Tools, Widths, exchange
from embedroute.execution.context import (
    Landed,
    Order,
    for_client,
    landed_of,
    make_batch,
    outcome_of,
    tokens_of,
)
from embedroute.execution.local_models import LocalModels
from embedroute.execution.microbatching import Merger
from embedroute.execution.redaction import capture
from embedroute.inputs import Input, letters_in
from embedroute.routing import Candidate, Health, Healths, Key, UsualLatency, amount, is_cut_here
from embedroute.text import log_fields
from embedroute.trace import Journal
from embedroute.transport import Engine

log = logging.getLogger("embedroute.calls")

LONG: Final = 1 << 19
"""Characters of a call's inputs from which on writing its body would hold the event loop up."""


class Attempts:
    """Makes the attempts of one gateway on one event loop; health and widths are the gateway's."""

    def __init__(
        self,
        *,
        engine: Engine,
        local: LocalModels,
        healths: Healths,
        widths: Widths,
        clock: Callable[[], float],
    ) -> None:
        """Take what is shared with other loops, and the engine, which is this loop's own."""
        self._tools = Tools(engine=engine, local=local)
        self._merger = Merger()
        self._usual = UsualLatency()
        self._healths = healths
        self._widths = widths
        self._clock = clock

    async def make(
        self,
        candidate: Candidate,
        health: Health,
        work: Mapping[Key, Input],
        order: Order,
        timeout: float,
        attempt: int,
        ticket: int,
    ) -> Landed | EmbedrouteError:
        """Make the ``attempt``-th within ``timeout`` seconds; the endpoint's breaker has given ``ticket`` for it."""
        began = self._clock()
        journal = order.journal
        journal.attempts += 1
        batch = make_batch(candidate, work, order)
        alone = candidate.micro_batch_ms is None or journal.keeps or order.large
        made = alone
        try:
            if alone:
                answer = await self._exchange(candidate, order, batch, timeout)
                self._accept(candidate, health, order, ticket, batch, answer, began)
            else:
                answer, made = await self._merged(candidate, health, order, ticket, batch, timeout)
        except EmbedrouteError as error:
            if alone:
                self._learn_limit(health, batch, error)
            failure = for_client(error, candidate)
            health.learn(ticket, self._clock(), failure, work)
            self._tell(candidate, failure, journal, attempt, began)
            return failure
        except BaseException:
            if alone:
                self._count_timeout(health, ticket, order)
            if self._is_over(order):
                failure = TimedOut("The upstream did not answer in time.")
                self._tell(candidate, failure, journal, attempt, began)
            health.released(ticket)
            raise
        if not made:
            health.released(ticket)
        landed = landed_of(candidate, work, answer, order, made=made)
        self._tell(candidate, None, journal, attempt, began)
        return landed

    async def _merged(
        self,
        candidate: Candidate,
        health: Health,
        order: Order,
        ticket: int,
        batch: Batch,
        timeout: float,
    ) -> tuple[Vectors, bool]:
        """Make the call, or take part in one; return also whether this request made it."""
        return await self._merger.embed(
            batch,
            (candidate.name, order.shared, order.kind, batch.user),
            partial(self._call, candidate, health, order, ticket),
            patience=min((candidate.micro_batch_ms or 0) / 1000, timeout / 2),
            timeout=timeout,
            caps=lambda: health.caps(candidate.accepts, self._clock()),
        )

    async def _call(
        self,
        candidate: Candidate,
        health: Health,
        order: Order,
        ticket: int,
        batch: Batch,
        timeout: float,
    ) -> Vectors:
        """Make one call that several requests may share, and record its outcome."""
        began = self._clock()
        try:
            answer = await self._exchange(candidate, order, batch, timeout)
            self._accept(candidate, health, order, ticket, batch, answer, began)
        except EmbedrouteError as error:
            self._learn_limit(health, batch, error)
            raise
        except BaseException:
            self._count_timeout(health, ticket, order)
            raise
        return answer

    def _exchange(
        self, candidate: Candidate, order: Order, batch: Batch, timeout: float
    ) -> Awaitable[Vectors]:
        journal = order.journal
        return exchange(
            candidate.backend,
            batch,
            self._tools,
            timeout,
            partial(capture, journal, candidate.provider, candidate.backend)
            if journal.keeps
            else None,
            candidate.rest,
            candidate.provider,
            large=order.large and letters_in(batch.inputs) >= LONG,
            due=order.parameters.width,
            matryoshka=is_cut_here(order.model),
        )

    def _count_timeout(self, health: Health, ticket: int, order: Order) -> None:
        if self._is_over(order):
            health.failed(ticket, self._clock())

    def _learn_limit(self, health: Health, batch: Batch, error: EmbedrouteError) -> None:
        if isinstance(error, BatchTooLarge) and error.measure is not None and len(batch) > 1:
            health.overfilled(self._clock(), error.measure, amount(batch.inputs, error.measure))

    def _accept(
        self,
        candidate: Candidate,
        health: Health,
        order: Order,
        ticket: int,
        batch: Batch,
        answer: Vectors,
        began: float,
    ) -> None:
        """Record a call that was answered.

        Raises:
            BadAnswer: the width is not that of the vector space.
        """
        if order.parameters.width is None:
            self._widths.agree(order.space, batch.dtype, answer.array.shape[1])
        count = len(batch)
        now = self._clock()
        if health.learned and count == 1:
            for measure in tuple(health.learned):
                health.fitted(now, measure, amount(batch.inputs, measure))
        tokens = answer.prompt_tokens
        if tokens is None:
            tokens = tokens_of(answer, batch.inputs)
        health.succeeded(ticket, now, now - began, tokens)
        self._usual.record(candidate.name, count, now - began)

    def expect(self, candidates: Sequence[Candidate], order: Order, inputs: int) -> float:
        """Return the seconds in which the first of ``candidates`` usually answers ``inputs``."""
        del order
        return self._usual.expect(candidates[0].name, inputs)

    def _is_over(self, order: Order) -> bool:
        """Return whether the request's deadline has ended its attempt, so that the upstream is at fault and no client."""
        return order.watch is not None and order.watch.expired

    def _tell(
        self,
        candidate: Candidate,
        failure: EmbedrouteError | None,
        journal: Journal,
        attempt: int,
        began: float,
    ) -> None:
        if failure is not None:
            journal.failures = (
                *journal.failures,
                (candidate.provider, getattr(failure, "upstream_status", None)),
            )
        if journal.events is None and not log.isEnabledFor(logging.INFO):
            return
        outcome: dict[str, object] = {"endpoint": candidate.name, "attempt": attempt}
        outcome |= {"ms": round((self._clock() - began) * 1000, 1), **outcome_of(failure)}
        journal.note("call", "failed" if failure else "answered", **outcome)
        log.info("attempt", extra=log_fields({"request_id": journal.request_id, **outcome}))
