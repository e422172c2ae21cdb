"""Runs one attempt at one endpoint and records its outcome in health, trace and log."""

import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from logging import DEBUG
from typing import Final

import msgspec

from embedroute.backend import Batch, LocalBackend, Vectors
from embedroute.errors import (
    BatchTooLarge,
    EmbedrouteError,
    FieldRejected,
    PoolTimeout,
    RateLimited,
    RequestError,
    UpstreamError,
    UpstreamTimeout,
)
from embedroute.execution.backend_call import (
    CallResources,
    Destination,
    WidthRegistry,
    call_backend,
)
from embedroute.execution.context import (
    DispatchContext,
    Results,
    Work,
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
from embedroute.execution.model_echo import EchoedModels
from embedroute.execution.observed_call import ObservedCalls
from embedroute.execution.own_fields import find_own_field
from embedroute.execution.redaction import list_secrets, public_url
from embedroute.execution.watchdog import Watchdog
from embedroute.inputs import estimate_sizes, letters_in
from embedroute.limits import (
    FIRST_DURATION,
    PER_INPUT,
    CallSlots,
    ConcurrencyLimit,
    attempt_timeout,
)
from embedroute.log_records import (
    CALLS,
    CallCompleted,
    CallFailed,
    FieldOmitted,
    LogLimit,
    without_numbers,
    write,
)
from embedroute.reasons import describe, describe_timeout
from embedroute.routing import (
    NO_FIELDS,
    OVERLOADED,
    BoundedMap,
    EndpointHealth,
    ResolvedEndpoint,
    State,
    measure_inputs,
    measure_inputs_in_steps,
)
from embedroute.runtime import fairness
from embedroute.telemetry import Counts, Observer
from embedroute.transport import SHORT_LOOKUP, ExchangeLimits, Transport

LONG: Final = 1 << 19
"""Characters of a call's inputs from which its body is encoded in a worker thread.

Encoding it on the event loop would block the loop.
"""
PERCENTILE: Final = 90
"""Percentile of the last durations within which a call is usually answered."""
SHORTEST: Final = 0.5
"""Seconds that another request's call is given at least: a short wait costs less than a call."""


class Attempt(Destination, eq=False, kw_only=True):
    """One attempt at one endpoint. As a ``Destination``, it gets the request that was sent.

    - ``candidate``: the endpoint
    - ``health``: the health of the endpoint, in which the outcome is recorded
    - ``context``: what the attempts of the request have in common
    - ``work``: the inputs
    - ``permit``: the permit of the endpoint's breaker
    - ``ends``: when the attempt must have ended
    - ``number``: the number of the attempt at this endpoint, from 1
    - ``omit``: fields that the endpoint has just rejected
    - ``others``: how many endpoints can still be used instead
    - ``is_companion``: a call merged with those of other requests has failed before
    - ``began``: when the call began
    - ``generation``: the generation of the calls in flight when it began
    - ``place``: how many calls were in flight then, with this one
    - ``timeout``: seconds that the call may take, apart from what is left until ``ends``
    - ``later``: the candidates after this one

    Times are in seconds of the gateway's clock.
    """

    candidate: ResolvedEndpoint
    health: EndpointHealth
    context: DispatchContext
    work: Work
    permit: int
    ends: float
    number: int = 1
    omit: frozenset[str] = NO_FIELDS
    others: int = 0
    is_companion: bool = False
    began: float = 0.0
    generation: int = 0
    place: int = 1
    timeout: float = math.inf
    later: Sequence[ResolvedEndpoint] = ()


class NotCalled(msgspec.Struct, frozen=True, eq=False):
    """An endpoint may not be called now. The client gets the ``reason`` if no other can."""

    reason: EmbedrouteError


Outcome = Results | EmbedrouteError | NotCalled
"""What an attempt has brought. Errors are returned, so that the dispatcher decides what follows."""


class AttemptRunner:
    """The attempts of one gateway on one event loop.

    All loops of the gateway share ``local``, ``widths``, ``models``, ``watchdog`` and
    ``log_limit``, which limits the records of failed calls; each has its own ``transport``.
    ``slots`` holds the calls in flight by the name of the endpoint.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        local: LocalModels,
        widths: WidthRegistry,
        models: EchoedModels,
        watchdog: Watchdog,
        log_limit: LogLimit,
        clock: Callable[[], float],
        observers: Sequence[Observer] = (),
        counts: Counts | None = None,
    ) -> None:
        """Create a runner without calls in flight. ``observers`` may be added later."""
        self._observers = observers
        self._counts = counts
        self._observed_calls = ObservedCalls(observers, counts, clock)
        self._log_limit = log_limit
        self._resources = CallResources(
            transport=transport, local=local, models=models, watchdog=watchdog
        )
        self.slots: BoundedMap[str, CallSlots] = BoundedMap()
        self._widths = widths
        self.clock = clock

    async def run(self, attempt: Attempt) -> Outcome:
        """Make the call of an attempt, and record its outcome.

        The permit is returned in each case: by ``accept`` after an answer, by ``fail`` after an
        error, by ``abandon`` after a cancellation, and by ``wait`` or ``_prepare`` if no call was
        made. Once the call is in flight, its slot is freed here.
        """
        candidate, context = attempt.candidate, attempt.context
        sizes: Sequence[int] = ()
        batch = make_batch(candidate, attempt.work, context)
        outside = sys.exception()
        if context.request.large:
            batch, sizes = await self._prepare(attempt, batch)
        attempt.began = self.clock()
        slots = self.slots.get(candidate.key) or self.add_slots(candidate)
        calls = slots.calls
        if slots.waiting or calls.in_flight >= calls.limit:
            refused = await self.wait(slots, attempt)
            if refused is not None:
                return refused
        else:
            calls.in_flight += 1
            attempt.generation = calls.generation
        attempt.place = calls.in_flight
        context.trace.attempts += 1
        omitted = attempt.health.omitted(attempt.began) | attempt.omit
        left = attempt.ends - attempt.began
        if attempt.others or candidate.attempt_timeout is not None:
            left = self.limit_time(attempt, calls, batch)
        try:
            answer = await self.exchange(candidate, context, batch, left, omitted, attempt)
            self.accept(attempt, calls, batch, answer, sizes)
        except EmbedrouteError as error:
            await self.learn_limits(attempt, calls, batch, error)
            return self.fail(attempt, for_client(error, candidate, outside), batch, omitted)
        except BaseException:
            self.record_timeout(attempt, calls)
            self.abandon(attempt)
            raise
        finally:
            if attempt.generation == calls.generation:
                calls.in_flight -= 1
            if slots.waiting:
                slots.admit()
        results = record_results(candidate, attempt.work, answer, context, made=True, sizes=sizes)
        self.report(attempt, None)
        return results

    async def _prepare(self, attempt: Attempt, batch: Batch) -> tuple[Batch, Sequence[int]]:
        """Prepare the batch of a large request."""
        steps = prepare_in_steps(batch, attempt.candidate, attempt.context)
        try:
            return await fairness.step_by_step(steps)
        except BaseException:
            attempt.health.release(attempt.permit)
            raise

    def add_slots(self, candidate: ResolvedEndpoint) -> CallSlots:
        """Add the slots of an endpoint at its first call.

        A local model needs no limit: its calls run in slices, in turns.
        """
        most = candidate.max_concurrent
        is_local = isinstance(candidate.backend, LocalBackend)
        slots = CallSlots(most, self.clock, learns=not is_local)
        return self.slots.get_or_insert(candidate.key, slots)

    async def wait(self, slots: CallSlots, attempt: Attempt) -> NotCalled | None:
        """Wait for a slot; return why there is none.

        Its breaker may have opened in the meantime, so the permit is renewed.
        """
        health, context = attempt.health, attempt.context
        try:
            generation = await slots.wait(context.caller, len(attempt.work), attempt.ends)
        except EmbedrouteError as error:
            health.release(attempt.permit)
            context.trace.add_event(
                "select", "skipped", endpoint=attempt.candidate.name, reason="it is busy"
            )
            return NotCalled(error)
        except BaseException:
            health.release(attempt.permit)
            raise
        health.release(attempt.permit)
        attempt.generation = generation
        now = self.clock()
        waited = round((now - attempt.began) * 1000, 1)
        context.trace.add_event("select", "waited", endpoint=attempt.candidate.name, ms=waited)
        attempt.began = now
        acquire = health.acquire_companion if attempt.is_companion else health.acquire
        attempt.permit = acquire(now)
        if attempt.permit:
            return None
        slots.leave(generation)
        return NotCalled(health.unavailable_error(now))

    def limit_time(self, attempt: Attempt, calls: ConcurrencyLimit, batch: Batch) -> float:
        """Set the timeout of a call that begins now, and return the seconds that it may take.

        A local model does not stall: it is slow while this process is busy.
        """
        candidate, began = attempt.candidate, attempt.began
        if candidate.attempt_timeout is not None:
            attempt.timeout = candidate.attempt_timeout
        elif attempt.others and not isinstance(candidate.backend, LocalBackend):
            is_probe = attempt.health.state(began) is not State.CLOSED
            letters = letters_in(batch.inputs)
            attempt.timeout = attempt_timeout(calls, len(batch), letters, is_probe=is_probe)
        return min(attempt.timeout, attempt.ends - began)

    def exchange(
        self,
        candidate: ResolvedEndpoint,
        context: DispatchContext,
        batch: Batch,
        timeout: float,
        omitted: frozenset[str],
        attempt: Attempt | None = None,
    ) -> Awaitable[Vectors]:
        """Call the backend of an endpoint, and validate the vectors that it returns.

        ``omitted`` are the fields that the endpoint rejects. ``attempt`` gets the URL. If other
        endpoints can be used instead, a slow DNS lookup is not awaited.

        Raises:
            EmbedrouteError: the call failed.
        """
        trace = context.trace
        prepared = context.prepared
        call = call_backend(
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
                dns_timeout=SHORT_LOOKUP if attempt and attempt.others else math.inf,
                all_addresses=candidate.all_addresses,
            ),
            omitted=omitted,
            large=context.request.large and letters_in(batch.inputs) >= LONG,
            width=prepared.selection.parameters.width,
            matryoshka=prepared.can_truncate,
            endpoint=candidate.key if candidate.checks_model else "",
            public_model=prepared.route.public_name,
            destination=attempt,
        )
        if self._observers or self._counts is not None:
            return self._observed_calls.run(call, candidate, batch, context)
        return call

    def accept(
        self,
        attempt: Attempt,
        calls: ConcurrencyLimit,
        batch: Batch,
        answer: Vectors,
        sizes: Sequence[int] = (),
    ) -> None:
        """Record an answered call in the health of its endpoint and in its concurrency limit.

        ``sizes`` are the estimated tokens of the inputs if they are known.

        Raises:
            InvalidUpstreamResponse: the width differs from earlier vectors of the vector space.
        """
        health = attempt.health
        prepared = attempt.context.prepared
        if prepared.selection.parameters.width is None:
            route = prepared.route
            space = route.vector_space, route.generation
            self._widths.check(space, batch.dtype, answer.array.shape[1])
        count = len(answer.array)
        now = self.clock()
        if health.learned and count == 1:
            for measure in tuple(health.learned):
                health.record_batch_fitted(now, measure, measure_inputs(batch.inputs, measure))
        tokens = answer.prompt_tokens
        if tokens is None:
            tokens = sum(sizes or estimate_sizes(batch.inputs))
        if attempt.omit:
            self._learn_omitted(attempt, now)
        health.record_success(attempt.permit, now, now - attempt.began, tokens)
        calls.record_answer(now, count, now - attempt.began, attempt.place)

    def fail(
        self,
        attempt: Attempt,
        failure: EmbedrouteError,
        batch: Batch,
        omitted: frozenset[str] = NO_FIELDS,
    ) -> EmbedrouteError:
        """Record a failed attempt in the health of its endpoint, and return the error to report.

        ``omitted`` are the fields of ``batch`` that were not sent. A timeout of the call itself
        counts, as the endpoint should have answered by then.
        """
        failure = self._name_cause(failure, attempt, batch, omitted)
        left = attempt.ends - attempt.began
        timeout = math.inf if attempt.timeout <= left else left
        attempt.health.record_error(attempt.permit, self.clock(), failure, attempt.work, timeout)
        self.report(attempt, failure)
        return failure

    def record_timeout(self, attempt: Attempt, calls: ConcurrencyLimit) -> None:
        """Record that a call had no response, if the request's deadline has ended it.

        The upstream was then too slow. Otherwise the client has disconnected.
        """
        if _has_expired(attempt):
            now = self.clock()
            calls.record_timeout(now)
            attempt.health.record_timeout(attempt.permit, now, now - attempt.began)

    def abandon(self, attempt: Attempt) -> None:
        """End an attempt that was cancelled."""
        attempt.health.release(attempt.permit)
        if _has_expired(attempt):
            reason = describe_timeout(self.clock() - attempt.began)
            self.report(attempt, UpstreamTimeout(f"The upstream {reason}.", reason=reason))

    def _name_cause(
        self,
        failure: EmbedrouteError,
        attempt: Attempt,
        batch: Batch,
        omitted: frozenset[str],
    ) -> EmbedrouteError:
        """Name the input that an upstream blames, or blame a field of the gateway's own."""
        if not isinstance(failure, UpstreamError):
            return failure
        index, work = failure.input_index, attempt.work
        key = None if index is None or index >= len(work) else list(work)[index]
        name_input(failure, key, attempt.context.keys)
        field = find_own_field(failure, batch)
        if field is None or field in omitted:
            return failure
        rejected = FieldRejected(
            failure.message,
            upstream_status=failure.upstream_status,
            reason=f"field {field} rejected",
        )
        rejected.provider = failure.provider
        rejected.field = field
        rejected.already_recorded = True
        return rejected

    def _learn_omitted(self, attempt: Attempt, now: float) -> None:
        """Leave fields out from now on: the endpoint has answered without them."""
        fields, health = attempt.omit, attempt.health
        if fields <= health.omitted(now):
            return
        health.learn_omitted(fields, now)
        write(FieldOmitted(endpoint=attempt.candidate.name, field=", ".join(sorted(fields))))

    async def learn_limits(
        self, attempt: Attempt, calls: ConcurrencyLimit, batch: Batch, error: EmbedrouteError
    ) -> None:
        """Learn from a failed call how many calls the endpoint takes at a time, and how large."""
        if isinstance(error, UpstreamError) and not _is_slow_call(
            attempt, calls, error, self.clock()
        ):
            error.at_capacity = _lower_limit(calls, error, self.clock())
        measure = error.measure if isinstance(error, BatchTooLarge) else None
        if measure is None or len(batch) < 2:
            return
        if attempt.context.request.large:
            size = await fairness.step_by_step(measure_inputs_in_steps(batch.inputs, measure))
        else:
            size = measure_inputs(batch.inputs, measure)
        attempt.health.record_batch_too_large(self.clock(), measure, size)

    def expect(
        self, candidates: Sequence[ResolvedEndpoint], context: DispatchContext, inputs: int
    ) -> float:
        """Return the seconds in which the first candidate usually answers ``inputs`` inputs."""
        del context
        slots = self.slots.get(candidates[0].name)
        if slots is None or not slots.calls.knows(inputs):
            return FIRST_DURATION + PER_INPUT * inputs
        return max(SHORTEST, slots.calls.usual(inputs, PERCENTILE))

    def report(self, attempt: Attempt, failure: EmbedrouteError | None) -> None:
        """Write the outcome of an attempt into the trace and the log."""
        candidate, context = attempt.candidate, attempt.context
        trace = context.trace
        if isinstance(failure, RequestError):
            trace.attempts -= 1  # the backend could not build a request, so nothing was sent
        elif failure is not None:
            trace.failures = (
                *trace.failures,
                (candidate.provider, getattr(failure, "upstream_status", None)),
            )
            if isinstance(failure, UpstreamTimeout):
                trace.timed_out = candidate.provider
        if failure is not None:
            if not isinstance(failure, RequestError):
                self._log_failure(attempt, failure)
        elif CALLS.isEnabledFor(CallCompleted.level):
            self._log_answer(attempt)
        if trace.events is None:
            return
        outcome: dict[str, object] = {"endpoint": candidate.name, "attempt": attempt.number}
        outcome |= {"ms": round((self.clock() - attempt.began) * 1000, 1)}
        outcome |= describe_outcome(failure)
        values = describe_values(candidate, failure, context, attempt.work) if trace.full else None
        limits = dict(failure.rate_limits) if isinstance(failure, UpstreamError) else {}
        trace.add_event(
            "call",
            "failed" if failure else "answered",
            values,
            **outcome,
            **({"rate_limits": limits} if limits else {}),
        )

    def _log_failure(self, attempt: Attempt, failure: EmbedrouteError) -> None:
        """Write the record of a failed call.

        Its level is DEBUG if a record of an equal failure was written in the last minute.
        """
        if not CALLS.isEnabledFor(CallFailed.level):
            return
        candidate, context = attempt.candidate, attempt.context
        model = context.prepared.route.public_name
        now = self.clock()
        error = describe(failure)
        is_upstream = isinstance(failure, UpstreamError)
        status = failure.upstream_status if is_upstream else None
        key = (candidate.provider, model, without_numbers(error), str(status))
        count = self._log_limit.due(now, *key)
        write(
            CallFailed(
                provider=candidate.provider,
                model=model,
                url=_shown_url(attempt) or None,
                attempt=attempt.number,
                error=error,
                status=status,
                place=(failure.place or None) if is_upstream else None,
                count=count if count > 1 else None,
                endpoint=candidate.name,
                ms=round((now - attempt.began) * 1000, 1),
                request_id=context.trace.request_id,
            ),
            level=None if count else DEBUG,
        )

    def _log_answer(self, attempt: Attempt) -> None:
        candidate, context = attempt.candidate, attempt.context
        write(
            CallCompleted(
                provider=candidate.provider,
                model=context.prepared.route.public_name,
                url=_shown_url(attempt) or None,
                attempt=attempt.number,
                status=200,
                endpoint=candidate.name,
                ms=round((self.clock() - attempt.began) * 1000, 1),
                request_id=context.trace.request_id,
            )
        )


def _shown_url(attempt: Attempt) -> str:
    request = attempt.request
    secrets = list_secrets(attempt.candidate.backend)
    return "" if request is None else public_url(request.url, secrets)


def _has_expired(attempt: Attempt) -> bool:
    watch = attempt.context.watch
    return watch is not None and watch.expired


def _is_slow_call(
    attempt: Attempt, calls: ConcurrencyLimit, failure: UpstreamError, now: float
) -> bool:
    """Return whether a call was given up early while others were answered.

    Its endpoint needs more time for some calls, and not fewer calls at a time.
    """
    is_early = attempt.timeout <= attempt.ends - attempt.began
    is_timeout = isinstance(failure, UpstreamTimeout) and not isinstance(failure, PoolTimeout)
    if not is_early or not is_timeout:
        return False
    return calls.record_slow_call(now, len(attempt.work), attempt.timeout)


def _lower_limit(calls: ConcurrencyLimit, failure: UpstreamError, now: float) -> bool:
    """Lower the concurrency limit of an endpoint; return whether the failure shows that it is full.

    Then it says nothing about the endpoint's health.
    """
    if isinstance(failure, UpstreamTimeout):
        if not isinstance(failure, PoolTimeout):
            calls.record_timeout(now)
        return False
    calls.progress_at = now
    if isinstance(failure, RateLimited):
        return calls.record_rate_limit(now, has_hint=bool(failure.retry_after))
    return failure.upstream_status in OVERLOADED and calls.record_overload(now)
