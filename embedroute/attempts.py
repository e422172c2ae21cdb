"""One attempt at one endpoint: the call, or a part in one that is shared, what is learned from it, and how it is told."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from embedroute import turns
from embedroute.backend import Batch, Vectors
from embedroute.batching import Merger
from embedroute.errors import BatchTooLarge, EmbedrouteError, TimedOut
from embedroute.exchange import Tools, checked, exchange
from embedroute.http import Engine
from embedroute.inputs import Input, letters_in
from embedroute.journal import Journal
from embedroute.local import LocalModels
from embedroute.orders import Landed, Order, for_client, landed_of, make_batch, outcome_of, tokens_of
from embedroute.redact import capture
from embedroute.routing.directory import Candidate
from embedroute.routing.health import Health, Healths
from embedroute.routing.parameters import is_cut_here
from embedroute.routing.plan import Key, amount
from embedroute.routing.usual import UsualLatency
from embedroute.routing.widths import Widths
from embedroute.turns import LARGE
from embedroute.wording import log_fields

log = logging.getLogger("embedroute.calls")

LONG: Final = 1 << 19
"""Characters of a call's inputs from which on writing its body would hold the event loop up."""
HAIR: Final = 0.005
"""Seconds by which what bounds a request may end it before it bounds an attempt."""


class Attempts:
    """Makes the attempts of one gateway on one event loop; health and widths are the gateway's."""

    def __init__(
        self, *, engine: Engine, local: LocalModels, healths: Healths, widths: Widths, clock: Callable[[], float]
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
        began, journal = self._clock(), order.journal
        journal.attempts, batch = journal.attempts + 1, make_batch(candidate, work, order)
        try:
            if candidate.micro_batch_ms is None or journal.keeps or order.large:
                answer, made = await self._exchange(candidate, health, order, ticket, batch, timeout), True
            else:
                answer, made = await self._merged(
                    candidate, health, order, ticket, batch, timeout, candidate.micro_batch_ms / 1000
                )
        except EmbedrouteError as error:
            failure = for_client(error, candidate)
            health.learn(ticket, self._clock(), failure, work)
            self._tell(candidate, failure, journal, attempt, began)
            return failure
        except BaseException:
            health.released(ticket)
            if self._is_over(order):
                self._tell(candidate, TimedOut("The upstream did not answer in time."), journal, attempt, began)
            raise
        if not made:
            health.released(ticket)
        landed = landed_of(candidate, work, answer, order, made=made)
        self._tell(candidate, None, journal, attempt, began)
        return landed

    async def _merged(
        self, candidate: Candidate, health: Health, order: Order, ticket: int, batch: Batch, timeout: float, patience: float
    ) -> tuple[Vectors, bool]:
        """Make the call, or take part in one; tells also whether it was this request that made it."""
        return await self._merger.embed(
            batch,
            (candidate.name, order.shared, order.kind, batch.user),
            partial(self._exchange, candidate, health, order, ticket),
            patience=min(patience, timeout / 2),
            timeout=timeout,
            caps=lambda: health.caps(candidate.accepts, self._clock()),
        )

    async def _exchange(
        self, candidate: Candidate, health: Health, order: Order, ticket: int, batch: Batch, timeout: float
    ) -> Vectors:
        journal, due, began, count = order.journal, order.parameters.width, self._clock(), len(batch)
        large = order.large and letters_in(batch.inputs) >= LONG
        keep = partial(capture, journal, candidate.provider, candidate.backend) if journal.keeps else None
        try:
            answer, source = await exchange(
                candidate.backend, batch, self._tools, timeout, keep, candidate.rest, candidate.provider, large=large
            )
        except EmbedrouteError as error:
            if isinstance(error, BatchTooLarge) and error.measure is not None and count > 1:
                health.overfilled(self._clock(), error.measure, amount(batch.inputs, error.measure))
            raise
        except BaseException:
            if self._is_over(order):
                health.failed(ticket, self._clock())
            raise
        matryoshka = is_cut_here(order.model)
        if count * (batch.width or 0) * 4 >= LARGE:  # checking it would hold the event loop up
            answer = await turns.in_thread(partial(checked, answer, batch, due=due, matryoshka=matryoshka, source=source))
        else:
            answer = checked(answer, batch, due=due, matryoshka=matryoshka, source=source)
        if due is None:
            self._widths.agree(order.space, batch.dtype, answer.array.shape[1])
        now = self._clock()
        if health.learned and count == 1:
            for measure in tuple(health.learned):
                health.fitted(now, measure, amount(batch.inputs, measure))
        tokens = answer.prompt_tokens
        if tokens is None:
            tokens = tokens_of(answer, batch.inputs)
        health.succeeded(ticket, now, now - began, tokens)
        self._usual.record(candidate.name, count, now - began)
        return answer

    def expect(self, candidates: Sequence[Candidate], order: Order, inputs: int) -> float:
        """Return the seconds in which the first of ``candidates`` usually answers ``inputs``."""
        del order
        return self._usual.expect(candidates[0].name, inputs)

    def _is_over(self, order: Order) -> bool:
        """Whether the upstream hangs: a request's own bound ends its last attempt by a hair before that of the attempt."""
        return self._clock() >= order.deadline - HAIR

    def _tell(
        self, candidate: Candidate, failure: EmbedrouteError | None, journal: Journal, attempt: int, began: float
    ) -> None:
        if failure is not None:
            journal.failures = (*journal.failures, (candidate.provider, getattr(failure, "upstream_status", None)))
        if journal.events is None and not log.isEnabledFor(logging.INFO):
            return
        outcome: dict[str, object] = {"endpoint": candidate.name, "attempt": attempt}
        outcome |= {"ms": round((self._clock() - began) * 1000, 1), **outcome_of(failure)}
        journal.note("call", "failed" if failure else "answered", **outcome)
        log.info("attempt", extra=log_fields({"request_id": journal.request_id, **outcome}))
