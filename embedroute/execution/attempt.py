"""Runs one attempt at one endpoint and records its outcome in health, trace and log."""

import logging
import math
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

from embedroute.backend import Batch, Vectors
from embedroute.errors import (
    BatchTooLarge,
    EmbedrouteError,
    FieldRejected,
    RequestError,
    UpstreamError,
    UpstreamTimeout,
)
from embedroute.execution.backend_call import CallResources, WidthRegistry, call_backend
from embedroute.execution.context import (
    DispatchContext,
    Results,
    describe_outcome,
    describe_values,
    for_client,
    make_batch,
    name_input,
    prepare_in_steps,
    record_results,
)
from embedroute.execution.debug_capture import record_exchange
from embedroute.execution.local_models import LocalModels
from embedroute.execution.microbatching import MicroBatcher
from embedroute.execution.model_echo import EchoedModels
from embedroute.execution.own_fields import find_own_field
from embedroute.execution.watchdog import Watchdog
from embedroute.inputs import Input, estimate_sizes, letters_in
from embedroute.routing import (
    NO_FIELDS,
    CacheKey,
    EndpointHealth,
    HealthRegistry,
    ResolvedEndpoint,
    UsualLatency,
    measure_inputs,
    measure_inputs_in_steps,
)
from embedroute.runtime import fairness
from embedroute.text import log_fields
from embedroute.transport import SHORT_LOOKUP, ExchangeLimits, Transport

log = logging.getLogger("embedroute.calls")

LONG: Final = 1 << 19
"""Characters of a call's inputs from which its body is encoded in a worker thread.

Encoding it on the event loop would block the loop.
"""


class AttemptRunner:
    """The attempts of one gateway on one event loop.

    All loops of the gateway share ``healths``, ``widths``, ``models`` and ``watchdog``; each has
    its own ``transport``.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        local: LocalModels,
        healths: HealthRegistry,
        widths: WidthRegistry,
        models: EchoedModels,
        watchdog: Watchdog,
        clock: Callable[[], float],
    ) -> None:
        """Create a runner with its own micro-batcher and latency history."""
        self._resources = CallResources(
            transport=transport, local=local, models=models, watchdog=watchdog
        )
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
        *,
        alone: bool = False,
        omit: frozenset[str] = NO_FIELDS,
        others: int = 0,
    ) -> Results | EmbedrouteError:
        """Run attempt number ``attempt`` (from 1) within ``timeout`` seconds and return its result.

        ``permit`` is the permit of the endpoint's breaker for this attempt. The call is not merged
        with others if it must be made ``alone``, or without the fields ``omit``, which the endpoint
        has just rejected. ``others`` is the number of endpoints that can still be used instead. An
        error is returned, not raised, so that the dispatcher can decide what follows.
        """
        began = self._clock()
        context.trace.attempts += 1
        sizes: Sequence[int] = ()
        batch = make_batch(candidate, work, context)
        made_call = alone = alone or bool(omit) or not may_be_merged(candidate, context)
        omitted = health.omitted(began) | omit
        outside = sys.exception()
        try:
            if alone:
                if context.request.large:
                    steps = prepare_in_steps(batch, candidate, context)
                    batch, sizes = await fairness.step_by_step(steps)
                answer = await self.exchange(candidate, context, batch, timeout, omitted, others)
                self._accept(candidate, health, context, permit, batch, answer, began, sizes, omit)
            else:
                answer, made_call = await self._micro_batched(
                    candidate, health, context, permit, others, batch, timeout
                )
        except EmbedrouteError as error:
            if alone:
                await self._learn_limit(health, context, batch, error)
            failure = self._name_cause(
                for_client(error, candidate, outside), context, batch, work, omitted
            )
            health.record_error(permit, self._clock(), failure, work, timeout)
            self._report(candidate, failure, context, work, attempt, began)
            return failure
        except BaseException:
            if alone:
                self._count_timeout(health, permit, context, began)
            health.release(permit)
            if self._deadline_expired(context):
                failure = UpstreamTimeout("The upstream did not answer in time.")
                self._report(candidate, failure, context, work, attempt, began)
            raise
        if not made_call:
            health.release(permit)
        results = record_results(candidate, work, answer, context, made=made_call, sizes=sizes)
        self._report(candidate, None, context, work, attempt, began)
        return results

    async def _micro_batched(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        context: DispatchContext,
        permit: int,
        others: int,
        batch: Batch,
        timeout: float,
    ) -> tuple[Vectors, bool]:
        """Make the call, or take part in a merged one; return also whether this request made it."""
        return await self._micro_batcher.embed(
            batch,
            (candidate.name, context.prepared.key_prefix, context.request.kind, batch.user),
            partial(self._call, candidate, health, context, permit, others),
            max_wait=min((candidate.micro_batch_ms or 0) / 1000, timeout / 2),
            timeout=timeout,
            caps=lambda: health.caps(candidate.accepts, self._clock()),
        )

    async def _call(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        context: DispatchContext,
        permit: int,
        others: int,
        batch: Batch,
        timeout: float,
    ) -> Vectors:
        """Make one call that several requests may share, and record its outcome."""
        began = self._clock()
        try:
            omitted = health.omitted(began)
            answer = await self.exchange(candidate, context, batch, timeout, omitted, others)
            self._accept(candidate, health, context, permit, batch, answer, began)
        except EmbedrouteError as error:
            await self._learn_limit(health, context, batch, error)
            raise
        except BaseException:
            self._count_timeout(health, permit, context, began)
            raise
        return answer

    def exchange(
        self,
        candidate: ResolvedEndpoint,
        context: DispatchContext,
        batch: Batch,
        timeout: float,
        omitted: frozenset[str],
        others: int = 0,
    ) -> Awaitable[Vectors]:
        """Call the backend of an endpoint, and validate the vectors that it returns.

        ``omitted`` are the fields that the endpoint rejects. With ``others``, endpoints that can be
        used instead, a slow DNS lookup is not awaited.

        Raises:
            EmbedrouteError: the call failed.
        """
        trace = context.trace
        prepared = context.prepared
        return call_backend(
            candidate.backend,
            batch,
            self._resources,
            timeout,
            partial(record_exchange, trace, candidate.provider, candidate.backend)
            if trace.captures_bodies
            else None,
            ExchangeLimits(
                rest=candidate.rest,
                provider=candidate.provider,
                max_connections=candidate.max_connections,
                dns_timeout=SHORT_LOOKUP if others else math.inf,
                all_addresses=candidate.all_addresses,
            ),
            omitted=omitted,
            large=context.request.large and letters_in(batch.inputs) >= LONG,
            width=prepared.selection.parameters.width,
            matryoshka=prepared.can_truncate,
            endpoint=candidate.name if candidate.checks_model else "",
            public_model=prepared.route.public_name,
        )

    def _name_cause(
        self,
        failure: EmbedrouteError,
        context: DispatchContext,
        batch: Batch,
        work: Mapping[CacheKey, Input],
        omitted: frozenset[str],
    ) -> EmbedrouteError:
        """Name the input that an upstream blames, or blame a field of the gateway's own."""
        if not isinstance(failure, UpstreamError):
            return failure
        index = failure.input_index
        key = None if index is None or index >= len(work) else list(work)[index]
        name_input(failure, key, context.keys)
        field = find_own_field(failure, batch)
        if field is None or field in omitted:
            return failure
        rejected = FieldRejected(failure.message, upstream_status=failure.upstream_status)
        rejected.provider = failure.provider
        rejected.field = field
        rejected.already_recorded = True
        return rejected

    def _learn_omitted(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        fields: frozenset[str],
        now: float,
    ) -> None:
        """Leave ``fields`` out from now on: the endpoint has answered without them."""
        if fields <= health.omitted(now):
            return
        health.learn_omitted(fields, now)
        log.warning(
            "upstream rejects a field, which is left out from now on",
            extra=log_fields({"endpoint": candidate.name, "field": ", ".join(sorted(fields))}),
        )

    def _count_timeout(
        self, health: EndpointHealth, permit: int, context: DispatchContext, began: float
    ) -> None:
        if self._deadline_expired(context):
            now = self._clock()
            health.record_timeout(permit, now, now - began)

    async def _learn_limit(
        self, health: EndpointHealth, context: DispatchContext, batch: Batch, error: EmbedrouteError
    ) -> None:
        """Learn a smaller limit of the endpoint from a call that was too large."""
        measure = error.measure if isinstance(error, BatchTooLarge) else None
        if measure is None or len(batch) < 2:
            return
        if context.request.large:
            size = await fairness.step_by_step(measure_inputs_in_steps(batch.inputs, measure))
        else:
            size = measure_inputs(batch.inputs, measure)
        health.record_batch_too_large(self._clock(), measure, size)

    def _accept(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        context: DispatchContext,
        permit: int,
        batch: Batch,
        answer: Vectors,
        began: float,
        sizes: Sequence[int] = (),
        omit: frozenset[str] = NO_FIELDS,
    ) -> None:
        """Record an answered call in the health and the latency history.

        ``sizes`` are the estimated tokens of the inputs if they are known. ``omit`` are the fields
        that were left out because the endpoint had rejected them.

        Raises:
            InvalidUpstreamResponse: the width differs from earlier vectors of the vector space.
        """
        prepared = context.prepared
        if prepared.selection.parameters.width is None:
            vector_space = prepared.route.vector_space
            self._widths.check(vector_space, batch.dtype, answer.array.shape[1])
        count = len(answer.array)
        now = self._clock()
        if health.learned and count == 1:
            for measure in tuple(health.learned):
                health.record_batch_fitted(now, measure, measure_inputs(batch.inputs, measure))
        tokens = answer.prompt_tokens
        if tokens is None:
            tokens = sum(sizes or estimate_sizes(batch.inputs))
        if omit:
            self._learn_omitted(candidate, health, omit, now)
        health.record_success(permit, now, now - began, tokens)
        self._usual.record(candidate.name, count, now - began)

    def expect(
        self, candidates: Sequence[ResolvedEndpoint], context: DispatchContext, inputs: int
    ) -> float:
        """Return the seconds in which the first candidate usually answers ``inputs`` inputs."""
        del context
        return self._usual.expect(candidates[0].name, inputs)

    def _deadline_expired(self, context: DispatchContext) -> bool:
        """Return whether the request's deadline ended the attempt.

        The upstream was then too slow. Otherwise the client has disconnected.
        """
        return context.watch is not None and context.watch.expired

    def _report(
        self,
        candidate: ResolvedEndpoint,
        failure: EmbedrouteError | None,
        context: DispatchContext,
        work: Mapping[CacheKey, Input],
        attempt: int,
        began: float,
    ) -> None:
        """Write the outcome of an attempt into the trace and the log."""
        trace = context.trace
        if isinstance(failure, RequestError):
            trace.attempts -= 1  # the backend could not build a request, so nothing was sent
        elif failure is not None:
            trace.failures = (
                *trace.failures,
                (candidate.provider, getattr(failure, "upstream_status", None)),
            )
        if trace.events is None and not log.isEnabledFor(logging.INFO):
            return
        outcome: dict[str, object] = {"endpoint": candidate.name, "attempt": attempt}
        outcome |= {"ms": round((self._clock() - began) * 1000, 1), **describe_outcome(failure)}
        values = describe_values(candidate, failure, context, work) if trace.full else None
        limits: Mapping[str, str] = {}
        if isinstance(failure, UpstreamError):
            limits = failure.rate_limits
        trace.add_event(
            "call",
            "failed" if failure else "answered",
            values,
            **outcome,
            **({"rate_limits": dict(limits)} if limits else {}),
        )
        log.info(
            "upstream call failed" if failure else "upstream call completed",
            extra=log_fields({"request_id": trace.request_id, **outcome}),
        )


def may_be_merged(candidate: ResolvedEndpoint, context: DispatchContext) -> bool:
    """Return whether a call may be merged with others to the same endpoint."""
    is_enabled = candidate.micro_batch_ms is not None
    return is_enabled and not (context.trace.captures_bodies or context.request.large)
