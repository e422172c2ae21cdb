"""One attempt at one endpoint: the call, or a part in one that is shared, what is learned from it, and how it is told."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

from embedroute.backend import Batch, Vectors
from embedroute.errors import BatchTooLarge, EmbedrouteError, UpstreamTimeout
from embedroute.execution.backend_call import CallResources, WidthRegistry, call_backend
from embedroute.execution.context import (
    DispatchContext,
    Results,
    count_tokens,
    describe_outcome,
    for_client,
    make_batch,
    record_results,
)
from embedroute.execution.local_models import LocalModels
from embedroute.execution.microbatching import MicroBatcher
from embedroute.execution.redaction import record_exchange
from embedroute.inputs import Input, letters_in
from embedroute.routing import (
    CacheKey,
    EndpointHealth,
    HealthRegistry,
    ResolvedEndpoint,
    UsualLatency,
    amount,
    can_truncate,
)
from embedroute.text import log_fields
from embedroute.trace import RequestTrace
from embedroute.transport import Transport

log = logging.getLogger("embedroute.calls")

LONG: Final = 1 << 19
"""Characters of a call's inputs from which on writing its body would hold the event loop up."""


class AttemptRunner:
    """Makes the attempts of one gateway on one event loop; health and widths are the gateway's."""

    def __init__(
        self,
        *,
        transport: Transport,
        local: LocalModels,
        healths: HealthRegistry,
        widths: WidthRegistry,
        clock: Callable[[], float],
    ) -> None:
        """Take what is shared with other loops, and the engine, which is this loop's own."""
        self._resources = CallResources(transport=transport, local=local)
        self._micro_batcher = MicroBatcher()
        self._usual = UsualLatency()
        self._healths = healths
        self._widths = widths
        self._clock = clock

    async def run(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        work: Mapping[CacheKey, Input],
        context: DispatchContext,
        timeout: float,
        attempt: int,
        permit: int,
    ) -> Results | EmbedrouteError:
        """Make the ``attempt``-th within ``timeout`` seconds; the endpoint's breaker has given ``permit`` for it."""
        began = self._clock()
        trace = context.trace
        trace.attempts += 1
        batch = make_batch(candidate, work, context)
        alone = candidate.micro_batch_ms is None or trace.captures_bodies or context.large
        made = alone
        try:
            if alone:
                answer = await self._exchange(candidate, context, batch, timeout)
                self._accept(candidate, health, context, permit, batch, answer, began)
            else:
                answer, made = await self._merged(
                    candidate, health, context, permit, batch, timeout
                )
        except EmbedrouteError as error:
            if alone:
                self._learn_limit(health, batch, error)
            failure = for_client(error, candidate)
            health.record_error(permit, self._clock(), failure, work)
            self._tell(candidate, failure, trace, attempt, began)
            return failure
        except BaseException:
            if alone:
                self._count_timeout(health, permit, context)
            if self._is_over(context):
                failure = UpstreamTimeout("The upstream did not answer in time.")
                self._tell(candidate, failure, trace, attempt, began)
            health.release(permit)
            raise
        if not made:
            health.release(permit)
        landed = record_results(candidate, work, answer, context, made=made)
        self._tell(candidate, None, trace, attempt, began)
        return landed

    async def _merged(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        context: DispatchContext,
        permit: int,
        batch: Batch,
        timeout: float,
    ) -> tuple[Vectors, bool]:
        """Make the call, or take part in one; return also whether this request made it."""
        return await self._micro_batcher.embed(
            batch,
            (candidate.name, context.shared, context.kind, batch.user),
            partial(self._call, candidate, health, context, permit),
            max_wait=min((candidate.micro_batch_ms or 0) / 1000, timeout / 2),
            timeout=timeout,
            caps=lambda: health.caps(candidate.accepts, self._clock()),
        )

    async def _call(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        context: DispatchContext,
        ticket: int,
        batch: Batch,
        timeout: float,
    ) -> Vectors:
        """Make one call that several requests may share, and record its outcome."""
        began = self._clock()
        try:
            answer = await self._exchange(candidate, context, batch, timeout)
            self._accept(candidate, health, context, ticket, batch, answer, began)
        except EmbedrouteError as error:
            self._learn_limit(health, batch, error)
            raise
        except BaseException:
            self._count_timeout(health, ticket, context)
            raise
        return answer

    def _exchange(
        self, candidate: ResolvedEndpoint, context: DispatchContext, batch: Batch, timeout: float
    ) -> Awaitable[Vectors]:
        trace = context.trace
        return call_backend(
            candidate.backend,
            batch,
            self._resources,
            timeout,
            partial(record_exchange, trace, candidate.provider, candidate.backend)
            if trace.captures_bodies
            else None,
            candidate.rest,
            candidate.provider,
            large=context.large and letters_in(batch.inputs) >= LONG,
            due=context.parameters.width,
            matryoshka=can_truncate(context.model),
        )

    def _count_timeout(self, health: EndpointHealth, ticket: int, context: DispatchContext) -> None:
        if self._is_over(context):
            health.record_failure(ticket, self._clock())

    def _learn_limit(self, health: EndpointHealth, batch: Batch, error: EmbedrouteError) -> None:
        if isinstance(error, BatchTooLarge) and error.measure is not None and len(batch) > 1:
            health.record_batch_too_large(
                self._clock(), error.measure, amount(batch.inputs, error.measure)
            )

    def _accept(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        context: DispatchContext,
        ticket: int,
        batch: Batch,
        answer: Vectors,
        began: float,
    ) -> None:
        """Record a call that was answered.

        Raises:
            InvalidUpstreamResponse: the width is not that of the vector space.
        """
        if context.parameters.width is None:
            self._widths.check(context.space, batch.dtype, answer.array.shape[1])
        count = len(batch)
        now = self._clock()
        if health.learned and count == 1:
            for measure in tuple(health.learned):
                health.record_batch_fitted(now, measure, amount(batch.inputs, measure))
        tokens = answer.prompt_tokens
        if tokens is None:
            tokens = count_tokens(answer, batch.inputs)
        health.record_success(ticket, now, now - began, tokens)
        self._usual.record(candidate.name, count, now - began)

    def expect(
        self, candidates: Sequence[ResolvedEndpoint], context: DispatchContext, inputs: int
    ) -> float:
        """Return the seconds in which the first of ``candidates`` usually answers ``inputs``."""
        del context
        return self._usual.expect(candidates[0].name, inputs)

    def _is_over(self, context: DispatchContext) -> bool:
        """Return whether the request's deadline has ended its attempt, so that the upstream is at fault and no client."""
        return context.watch is not None and context.watch.expired

    def _tell(
        self,
        candidate: ResolvedEndpoint,
        failure: EmbedrouteError | None,
        trace: RequestTrace,
        attempt: int,
        began: float,
    ) -> None:
        if failure is not None:
            trace.failures = (
                *trace.failures,
                (candidate.provider, getattr(failure, "upstream_status", None)),
            )
        if trace.events is None and not log.isEnabledFor(logging.INFO):
            return
        outcome: dict[str, object] = {"endpoint": candidate.name, "attempt": attempt}
        outcome |= {"ms": round((self._clock() - began) * 1000, 1), **describe_outcome(failure)}
        trace.add_event("call", "failed" if failure else "answered", **outcome)
        log.info("attempt", extra=log_fields({"request_id": trace.request_id, **outcome}))
