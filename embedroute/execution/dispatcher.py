"""Tries the endpoints of a request, one after another, under its deadline. Only this module retries.

What follows a failed attempt is a table in ``routing/retry.py``. This module carries it out: it
waits, moves on to the next endpoint, splits a batch that is too large, looks for the inputs that
make a batch fail, or raises.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import cast

import anyio
import msgspec
from anyio import CapacityLimiter

from embedroute.errors import (
    BatchTooLarge,
    DeadlineExceeded,
    EmbedrouteError,
    FieldRejected,
    RateLimited,
    Rejected,
    RejectedByPage,
    UpstreamError,
    UpstreamRejectedInput,
)
from embedroute.execution.attempt import HARMLESS, AttemptRunner
from embedroute.execution.bisection import bisect, is_about_inputs
from embedroute.execution.context import DispatchContext, Results, input_failed, make_probe
from embedroute.execution.singleflight import OnResult
from embedroute.inputs import Input
from embedroute.routing import (
    NO_FIELDS,
    SHORTEST_COOLDOWN,
    CacheKey,
    EndpointHealth,
    HealthRegistry,
    ResolvedEndpoint,
    RetryBudget,
    RetryDecision,
    RetryPolicy,
    State,
    decide_next,
    decide_without_retry,
    error_to_report,
    halves,
    has_called_upstream,
    may_be_caused_by_input,
    rate_limited_endpoints,
    split,
    split_in_steps,
    text_before,
    wait_before,
)
from embedroute.runtime import fairness, tasks

CHUNKS_AT_ONCE = 8
"""Calls of one request that are under way at a time, once it is split."""
PROBE_TIMEOUT = 5.0
"""Seconds for the answer to a harmless text."""
CHECK_TIMEOUT = 1.0
"""Seconds for the same if the request has been answered by another endpoint."""
PROBE_INTERVAL = 1.0
"""Seconds for which the answer to a harmless text holds."""
MOST_PROBES = 1024
"""Answers to harmless texts that are remembered."""
RECENT = 30.0
"""Seconds after an answer in which an endpoint is not suspected because of one rejection."""
Work = Mapping[CacheKey, Input]
Chunks = Sequence[Work]
Embed = Callable[[Sequence[ResolvedEndpoint], DispatchContext, Work, OnResult], Awaitable[None]]
"""Embeds inputs at the first endpoint that responds, and passes their vectors on as they come."""
AdmitFirstTry = Callable[[float], bool]
"""Takes the time in seconds; returns whether a chunk may be tried at an endpoint for the first time."""


class Dispatch(msgspec.Struct, frozen=True, eq=False):
    """The inputs of a request, or a part of them, and where they may be embedded.

    ``on_result`` gets the vectors of each chunk as soon as they come. A first try counts as a call
    and not as a retry, unless ``admit_first_try`` decides. ``earlier_errors`` are the errors from
    before the part was split off. ``waited_for`` are the endpoints whose rate limits were waited
    for.
    """

    candidates: Sequence[ResolvedEndpoint]
    context: DispatchContext
    work: Work
    on_result: OnResult
    admit_first_try: AdmitFirstTry | None = None
    earlier_errors: Sequence[EmbedrouteError] = ()
    waited_for: frozenset[str] = frozenset()


class Probe(msgspec.Struct, eq=False):
    """A call with a harmless text: when it began, and whether it was answered once it is done."""

    at: float
    done: anyio.Event
    answered: bool = False


class NotCalled(msgspec.Struct, frozen=True, eq=False):
    """An endpoint may not be called now, for the ``reason`` that the client gets if no other can."""

    reason: EmbedrouteError


class Dispatcher:
    """Dispatches the calls of one event loop. Health and retry budget belong to the gateway."""

    def __init__(
        self,
        *,
        attempts: AttemptRunner,
        healths: HealthRegistry,
        budget: RetryBudget,
        policy: RetryPolicy,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        """Take the ``attempts`` of this event loop and what all event loops share."""
        self._attempts = attempts
        self._healths = healths
        self._budget = budget
        self._record_call = budget.record_call
        self._policy = policy
        self._clock = clock
        self._random = random
        self._probes: dict[tuple[str, bytes], Probe] = {}

    def embed(
        self,
        candidates: Sequence[ResolvedEndpoint],
        context: DispatchContext,
        work: Work,
        on_result: OnResult,
    ) -> Awaitable[None]:
        """Embed all of ``work``. ``on_result`` gets the vectors of each chunk as soon as they come.

        Raises:
            EmbedrouteError: the error to report if some of it cannot be embedded.
        """
        return self._run(Dispatch(candidates, context, work, on_result))

    async def _run(self, dispatch: Dispatch) -> None:
        begin = self._begin if dispatch.context.slots is None else self._begin_in_slot
        errors: list[EmbedrouteError] = []
        failure: EmbedrouteError | None = None
        omit = NO_FIELDS
        attempt = 1
        while len(errors) < len(dispatch.candidates):
            candidate = dispatch.candidates[len(errors)]
            is_first = attempt == 1 and len(dispatch.work) > 1
            if is_first and (chunks := await self._split(dispatch, candidate)):
                await self._run_chunks(dispatch, errors, chunks)
                return
            left = len(dispatch.candidates) - len(errors)
            trying = begin(dispatch, candidate, left, attempt, omit)
            outcome = trying if isinstance(trying, NotCalled) else await trying
            if isinstance(outcome, NotCalled):
                errors.append(failure or outcome.reason)
                failure = None
                attempt = 1
                continue
            if not isinstance(outcome, EmbedrouteError):
                dispatch.on_result(outcome)
                if errors:
                    await self._check_rejecting(dispatch, errors)
                return
            failure = outcome
            decision = await self._decide(dispatch, candidate, failure, attempt)
            if decision is RetryDecision.RETRY:
                attempt += 1
            elif decision is RetryDecision.REPEAT:
                omit = add_field(omit, failure)
            else:
                errors.append(failure)
                failure = None
                omit = NO_FIELDS
                attempt = 1
            if decision in {RetryDecision.HALVE, RetryDecision.BISECT}:
                await self._divide(dispatch, errors, decision)
                return
        await self._give_up(dispatch, errors)

    async def _decide(
        self,
        dispatch: Dispatch,
        candidate: ResolvedEndpoint,
        error: EmbedrouteError,
        attempt: int,
    ) -> RetryDecision:
        """Decide what follows a failed attempt, after the wait before a retry.

        Raises:
            EmbedrouteError: ``error`` itself, if no endpoint may be tried any more.
        """
        health = self._healths.get(candidate)
        if health.suspected:
            await self._probe(candidate, health, dispatch.context, as_request=False)
        decision = decide_next(error, attempt, self._policy, len(dispatch.work))
        if decision is RetryDecision.STOP:
            raise error
        now = self._clock()
        if decision is RetryDecision.RETRY:
            wait = wait_before(error, attempt, self._policy, self._random)
            if now + wait < dispatch.context.deadline and self._budget.allow(now):
                await anyio.sleep(wait)
                return decision
            decision = decide_without_retry(error, len(dispatch.work))
        if decision is RetryDecision.BISECT and health.state(now) is not State.CLOSED:
            return RetryDecision.NEXT
        return decision

    async def _give_up(self, dispatch: Dispatch, errors: Sequence[EmbedrouteError]) -> None:
        """Try what is left when every endpoint has failed: wait for a rate limit, or bisect.

        Raises:
            EmbedrouteError: the error to report.
        """
        error = error_to_report([*dispatch.earlier_errors, *errors])
        is_open = isinstance(error, Rejected) and not isinstance(error, RejectedByPage)
        is_own = error in errors and not (isinstance(error, UpstreamError) and error.is_neutral)
        if is_open and is_own and len(dispatch.work) > 1:
            first = dispatch.candidates[errors.index(error)]
            others = [each for each in dispatch.candidates if each is not first]
            ordered = msgspec.structs.replace(dispatch, candidates=[first, *others])
            await self._divide(ordered, [error], RetryDecision.BISECT)
            return
        waiting = self._find_rate_limit(dispatch, errors)
        if waiting is None:
            raise error
        first, seconds = waiting
        await anyio.sleep(seconds)
        others = [candidate for candidate in dispatch.candidates if candidate is not first]
        admit = (
            self._budget.reserve_one() if has_called_upstream(errors) else dispatch.admit_first_try
        )
        await self._run(
            msgspec.structs.replace(
                dispatch,
                candidates=[first, *others],
                admit_first_try=admit,
                waited_for=dispatch.waited_for | {first.name},
            )
        )

    def _find_rate_limit(
        self, dispatch: Dispatch, errors: Sequence[EmbedrouteError]
    ) -> tuple[ResolvedEndpoint, float] | None:
        """Return the endpoint whose rate limit ends first, and the seconds until then.

        None if it does not end before the deadline or within the request's time for such waits, or
        if the retry budget is spent. The next call to an endpoint is a retry if it was called
        before. It is taken from the budget before the wait, so that no request waits in vain.
        """
        now = self._clock()
        context = dispatch.context
        available = {
            self._healths.get(candidate).available_at(now): candidate
            for candidate in reversed(rate_limited_endpoints(dispatch.candidates, errors))
            if candidate.name not in dispatch.waited_for
        }
        if not available:
            return None
        if context.trace.wait_ends is None:
            context.trace.wait_ends = now + self._policy.rate_limit_wait
        at = min(available)
        if at >= context.deadline or at > context.trace.wait_ends:
            return None
        if has_called_upstream(errors) and not self._budget.allow(now):
            return None
        return available[at], max(at - now, 0.01)

    async def _split(self, dispatch: Dispatch, candidate: ResolvedEndpoint) -> Chunks:
        """Split the work into the chunks that an endpoint accepts. Empty if it accepts the whole."""
        chunks = await self._chunks(dispatch, candidate)
        if len(chunks) == 1:
            return ()
        sizes = [len(chunk) for chunk in chunks]
        dispatch.context.trace.add_event("split", "cut", endpoint=candidate.name, chunks=sizes)
        return chunks

    async def _chunks(self, dispatch: Dispatch, candidate: ResolvedEndpoint) -> Chunks:
        prepared = dispatch.context.prepared
        input_type = prepared.selection.parameters.input_type
        prefix = text_before(candidate, prepared.route.model, input_type)
        accepts = self._healths.get(candidate).caps(candidate.accepts, self._clock())
        if dispatch.context.request.large:
            return await fairness.step_by_step(split_in_steps(dispatch.work, accepts, prefix))
        return split(dispatch.work, accepts, prefix)

    async def _divide(
        self, dispatch: Dispatch, errors: Sequence[EmbedrouteError], decision: RetryDecision
    ) -> None:
        """Halve what is too large for an endpoint, or find the inputs that fail there alone."""
        if decision is RetryDecision.HALVE:
            await self._run_chunks(dispatch, errors[:-1], halves(dispatch.work), errors[-1])
        else:
            await self._bisect(dispatch, errors)

    async def _run_chunks(
        self,
        dispatch: Dispatch,
        errors: Sequence[EmbedrouteError],
        chunks: Chunks,
        halved: EmbedrouteError | None = None,
    ) -> None:
        """Embed chunks at the endpoints that have not failed yet, ``CHUNKS_AT_ONCE`` at a time.

        ``errors`` are those of the first candidates. ``halved`` is the error of the whole if it was
        halved: the limit learned from it is in doubt if an input is rejected alone. An error that
        an input may have caused does not end the other chunks.
        """
        context = dispatch.context
        if context.slots is None:
            context = msgspec.structs.replace(context, slots=CapacityLimiter(CHUNKS_AT_ONCE))
        remaining = [
            *dispatch.candidates[len(errors) :],
            *rate_limited_endpoints(dispatch.candidates, errors),
        ]
        whole = msgspec.structs.replace(
            dispatch,
            candidates=remaining,
            context=context,
            admit_first_try=None,
            earlier_errors=[*dispatch.earlier_errors, *errors],
        )
        failures: dict[int, UpstreamError] = {}
        calls = [
            partial(self._run_chunk, whole, chunks[position], position, failures)
            for position in range(len(chunks))
        ]
        now = self._clock()
        states = [self._healths.get(candidate).state(now) for candidate in remaining]
        if State.CLOSED not in states:
            # A half-open breaker admits one probe. A chunk refused beside it would end the probe.
            await calls.pop(0)()
        await tasks.gather(calls, CHUNKS_AT_ONCE)
        if failures:
            self._doubt(remaining[0], halved, failures)
            raise self._name_failure(chunks, failures, context)

    async def _run_chunk(
        self, whole: Dispatch, chunk: Work, position: int, failures: dict[int, UpstreamError]
    ) -> None:
        """Embed a chunk; add its error to ``failures`` if an input may have caused it."""
        try:
            await self._run(msgspec.structs.replace(whole, work=chunk))
        except UpstreamError as error:
            if not is_about_inputs(error):
                raise
            failures[position] = error

    def _doubt(
        self,
        candidate: ResolvedEndpoint,
        halved: EmbedrouteError | None,
        failures: Mapping[int, EmbedrouteError],
    ) -> None:
        """Doubt the limit learned from a call that was halved, after an input was rejected alone."""
        if isinstance(halved, BatchTooLarge) and halved.measure is not None:
            is_rejected = [isinstance(each, UpstreamRejectedInput) for each in failures.values()]
            if any(is_rejected):
                self._healths.get(candidate).doubt(self._clock(), halved.measure)

    def _name_failure(
        self, chunks: Chunks, failures: Mapping[int, UpstreamError], context: DispatchContext
    ) -> UpstreamError:
        """Return the error of the first chunk that failed.

        If other chunks were answered, the only input of a chunk is to blame for its error.
        """
        position = min(failures)
        error = failures[position]
        is_alone = len(chunks[position]) == 1 and len(failures) < len(chunks)
        if is_alone and may_be_caused_by_input(error):
            return input_failed(error, next(iter(chunks[position])), context.keys)
        return error

    async def _bisect(self, dispatch: Dispatch, errors: Sequence[EmbedrouteError]) -> None:
        """Find the inputs that fail alone at the endpoint that failed last, and embed the others.

        What it cannot embed is tried at the endpoints after it.

        Raises:
            EmbedrouteError: some inputs failed at every endpoint. Every other input was tried.
        """
        context = dispatch.context
        if context.slots is None:
            context = msgspec.structs.replace(context, slots=CapacityLimiter(CHUNKS_AT_ONCE))
        candidate = dispatch.candidates[len(errors) - 1]
        health = self._healths.get(candidate)
        found = await bisect(
            dispatch.work,
            errors[-1],
            partial(self._attempt_alone, candidate, health, context),
            partial(self._is_alive, candidate, health, context),
            dispatch.on_result,
            at_once=CHUNKS_AT_ONCE,
        )
        others = [each for each in dispatch.candidates if each is not candidate]
        make_part = partial(Dispatch, context=context, on_result=dispatch.on_result)
        parts: list[tuple[Dispatch, EmbedrouteError]] = []
        for key, failure in found.alone.items():
            error = input_failed(failure, key, context.keys)
            work = {key: dispatch.work[key]}
            parts.append((make_part(others, work=work, earlier_errors=[error]), error))
        if found.rest:
            error = error_to_report([*dispatch.earlier_errors, *errors])
            left = list(dispatch.candidates[len(errors) :])
            if isinstance(found.error, RateLimited):
                error = found.error
                left.append(candidate)
            parts.append((make_part(left, work=found.rest, earlier_errors=[error]), error))
        await self._run_parts(parts)

    async def _run_parts(self, parts: Sequence[tuple[Dispatch, EmbedrouteError]]) -> None:
        """Embed what a bisection has left, each part with the error that it has met so far.

        Raises:
            EmbedrouteError: the error of the first part that fails. An input is not blamed if an
                endpoint has failed for a reason of its own.
        """
        failures: dict[int, EmbedrouteError] = {}

        async def run_part(position: int) -> None:
            part, error = parts[position]
            try:
                await self._run(part)
            except EmbedrouteError as failure:
                failures[position] = error if is_about_inputs(failure) else failure

        await tasks.gather([partial(run_part, at) for at in range(len(parts))], CHUNKS_AT_ONCE)
        if failures:
            raise failures[min(failures)]

    async def _attempt_alone(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        context: DispatchContext,
        work: Work,
    ) -> Results | EmbedrouteError:
        """Make one call of a bisection. Return an error if no more may be made."""
        omit = NO_FIELDS
        async with cast("CapacityLimiter", context.slots):
            while True:
                now = self._clock()
                if context.deadline <= now:
                    return deadline_error()
                # The probe of a half-open breaker is not for a call that is likely to fail.
                is_closed = health.state(now) is State.CLOSED
                permit = health.acquire(now) if is_closed else 0
                if not permit:
                    return health.unavailable_error(now)
                if not self._budget.allow_bisection(now):
                    return budget_error()
                outcome = await self._attempts.run(
                    candidate,
                    health,
                    work,
                    context,
                    context.deadline - now,
                    1,
                    permit,
                    alone=True,
                    omit=omit,
                )
                if not isinstance(outcome, FieldRejected):
                    return outcome
                omit = add_field(omit, outcome)

    async def _is_alive(
        self, candidate: ResolvedEndpoint, health: EndpointHealth, context: DispatchContext
    ) -> bool:
        """Return whether an endpoint embeds a harmless text with the parameters of a request.

        If it does not, the endpoint or these parameters are to blame; without the parameters, the
        same text tells which.
        """
        as_request = make_probe(candidate, context, HARMLESS, as_request=True)
        is_plain = as_request == make_probe(candidate, context, HARMLESS, as_request=False)
        if not is_plain and await self._probe(candidate, health, context, as_request=True):
            return True
        return await self._probe(candidate, health, context, as_request=False) and is_plain

    async def _probe(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        context: DispatchContext,
        *,
        as_request: bool,
        timeout: float = PROBE_TIMEOUT,
    ) -> bool:
        """Return whether an endpoint embeds a harmless text. Concurrent requests share one probe.

        False if the endpoint accepts no texts: then nothing can be told.
        """
        now = self._clock()
        timeout = min(timeout, context.deadline - now)
        if not candidate.accepts.texts or timeout <= 0:
            health.withdraw()
            return False
        key = candidate.name, context.prepared.key_prefix if as_request else b""
        probe = self._probes.get(key)
        if probe is not None and now - probe.at < PROBE_INTERVAL:
            with anyio.move_on_after(timeout):
                await probe.done.wait()
            health.withdraw()
            return probe.answered
        probe = self._probes[key] = Probe(now, anyio.Event())
        try:
            probe.answered = await self._attempts.probe(
                candidate, health, context, timeout, as_request=as_request
            )
        finally:
            probe.done.set()
            if len(self._probes) > MOST_PROBES:
                self._probes.clear()
        return probe.answered

    async def _check_rejecting(self, dispatch: Dispatch, errors: Sequence[EmbedrouteError]) -> None:
        """Check the endpoints that rejected without a reason what another endpoint has answered."""
        for candidate, error in zip(dispatch.candidates, errors, strict=False):
            health = self._healths.get(candidate)
            now = self._clock()
            is_closed = health.state(now) is State.CLOSED
            if isinstance(error, Rejected) and is_closed and now - health.last_answer > RECENT:
                health.suspect(now, error)
                # The client waits meanwhile, so this takes little time, and half of what is left.
                timeout = min(CHECK_TIMEOUT, (dispatch.context.deadline - now) / 2)
                await self._probe(
                    candidate, health, dispatch.context, as_request=False, timeout=timeout
                )

    def _begin(
        self,
        dispatch: Dispatch,
        candidate: ResolvedEndpoint,
        endpoints_left: int,
        attempt: int,
        omit: frozenset[str] = NO_FIELDS,
    ) -> Awaitable[Results | EmbedrouteError] | NotCalled:
        """Begin one attempt, which may take an equal share of the time left."""
        context = dispatch.context
        now = self._clock()
        if context.deadline <= now:
            raise deadline_error()
        health = self._healths.get(candidate)
        permit = health.acquire(now)
        admit = dispatch.admit_first_try or self._record_call
        if permit and (attempt > 1 or admit(now)):
            timeout = (context.deadline - now) / endpoints_left
            # After a rate limit, the call must not be merged with the one that was limited.
            alone = candidate.name in dispatch.waited_for
            return self._attempts.run(
                candidate,
                health,
                dispatch.work,
                context,
                timeout,
                attempt,
                permit,
                alone=alone,
                omit=omit,
            )
        health.release(permit)
        context.trace.add_event("select", "skipped", endpoint=candidate.name, reason="it rests")
        return NotCalled(budget_error() if permit else health.unavailable_error(now))

    async def _begin_in_slot(
        self,
        dispatch: Dispatch,
        candidate: ResolvedEndpoint,
        endpoints_left: int,
        attempt: int,
        omit: frozenset[str] = NO_FIELDS,
    ) -> Results | EmbedrouteError | NotCalled:
        """Make one attempt for a chunk, as soon as few enough calls of its request are under way."""
        async with cast("CapacityLimiter", dispatch.context.slots):
            is_late = dispatch.context.deadline <= self._clock()
            if self._healths.get(candidate).learned and not is_late:
                # Another chunk may have taught a smaller limit while this one waited.
                chunks = await self._chunks(dispatch, candidate)
                if len(chunks) > 1:
                    message = "A chunk of this size was refused while this one waited."
                    return BatchTooLarge(message)
            trying = self._begin(dispatch, candidate, endpoints_left, attempt, omit)
            return trying if isinstance(trying, NotCalled) else await trying


def add_field(fields: frozenset[str], failure: EmbedrouteError) -> frozenset[str]:
    """Return ``fields`` with the one that an upstream has rejected."""
    field = failure.field if isinstance(failure, FieldRejected) else None
    return fields if field is None else fields | {field}


def deadline_error() -> DeadlineExceeded:
    """Make the error of a request whose deadline has passed."""
    return DeadlineExceeded("The deadline passed before a provider responded.")


def budget_error() -> RateLimited:
    """Make the error of a request for which the gateway may make no more calls."""
    error = RateLimited(
        "The gateway may not retry more often at the moment. Wait before you send it again.",
        retry_after=SHORTEST_COOLDOWN,
    )
    error.already_recorded = True
    return error
