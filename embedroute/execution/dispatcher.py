"""Tries the endpoints of a request, one after another, under its deadline.

What follows a failed attempt is a table in ``routing/retry.py``. This module carries it out: it
waits, moves on to the next endpoint, hands the parts of a batch to ``parts.py``, or raises.

Three others make calls again: ``bisection.py``, to find the inputs that fail alone, ``hedging.py``,
beside a slow call, and ``transport/http1/pool.py``, after a response that cannot be trusted.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, cast

import anyio
import msgspec
from anyio import CapacityLimiter

from embedroute.errors import (
    BatchTooLarge,
    EmbedrouteError,
    NoHealthyEndpoint,
    Overloaded,
    RateLimited,
    UpstreamError,
)
from embedroute.execution.attempt import Attempt, AttemptRunner, NotCalled, Outcome
from embedroute.execution.context import Dispatch, DispatchContext, OnResult, Results, Work
from embedroute.execution.health_check import HealthChecker
from embedroute.execution.hedging import HedgingRunner
from embedroute.execution.merged_attempts import MergedAttemptRunner, may_be_merged
from embedroute.execution.parts import Chunks, PartRunner, add_field, budget_error, deadline_error
from embedroute.limits import SMALL
from embedroute.routing import (
    NO_FIELDS,
    EndpointHealth,
    HealthRegistry,
    ResolvedEndpoint,
    RetryBudget,
    RetryDecision,
    State,
    allows_last_resort,
    decide_next,
    decide_without_retry,
    error_to_report,
    full_endpoints,
    halves,
    is_at_capacity,
    may_be_broken_by_input,
    may_concern_request,
    rate_limited_endpoints,
    split,
    split_in_steps,
    text_before,
    wait_before,
    was_rate_limited,
)
from embedroute.runtime import fairness

Embed = Callable[[Sequence[ResolvedEndpoint], DispatchContext, Work, OnResult], Awaitable[None]]
"""Embeds inputs at the first endpoint that responds, and passes their vectors on as they come."""


NO_BUDGET: Final = "the retry budget is spent"
MOST_WAITS: Final = 8
"""How often a request waits for an endpoint that was full although it seemed to have room."""


class EndpointTries(msgspec.Struct, eq=False):
    """The attempts of one request at one endpoint.

    ``later`` are the candidates after this one. ``number`` is that of the next attempt, from 1.
    ``omit`` are the fields that the endpoint has rejected, and ``failure`` is its last error.
    """

    candidate: ResolvedEndpoint
    health: EndpointHealth
    later: Sequence[ResolvedEndpoint]
    number: int = 1
    omit: frozenset[str] = NO_FIELDS
    failure: EmbedrouteError | None = None


class Dispatcher:
    """Dispatches the calls of one event loop. Health and retry budget belong to the gateway."""

    def __init__(
        self,
        *,
        attempts: AttemptRunner,
        healths: HealthRegistry,
        budget: RetryBudget,
        rate_limit_wait: float,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        """Take the ``attempts`` of this event loop and what all event loops share.

        A request waits ``rate_limit_wait`` seconds in all for rate limits to end.
        """
        self._attempts = attempts
        self._merging = MergedAttemptRunner(attempts)
        self._hedging = HedgingRunner(attempts, healths)
        self._slots = attempts.slots
        self._healths = healths
        self._budget = budget
        self.rate_limit_wait: float = rate_limit_wait
        self._clock = clock
        self._random = random
        self._checks = HealthChecker(attempts.exchange, healths, clock)
        self._parts = PartRunner(self._run, attempts, self._checks, healths, budget, clock)

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
        later = dispatch.candidates
        tries: EndpointTries | None = None
        while tries or later:
            if tries is None:
                candidate = later[0]
                later = later[1:]
                tries = EndpointTries(candidate, self._healths.get(candidate), later)
            is_first = tries.number == 1 and len(dispatch.work) > 1
            if is_first and (chunks := await self._split(dispatch, tries.candidate)):
                await self._parts.run_chunks(dispatch, errors, chunks)
                return
            outcome = await begin(dispatch, tries)
            if isinstance(outcome, NotCalled):
                errors.append(tries.failure or outcome.reason)
                tries = None
                continue
            if tries.number > 1 or dispatch.last_resorts:
                self._record_retry(tries.health, outcome)
            if not isinstance(outcome, EmbedrouteError):
                self._budget.answered += 1
                dispatch.on_result(outcome)
                if errors:
                    candidates = dispatch.candidates
                    await self._checks.check_rejecting(candidates, errors, dispatch.context)
                return
            decision = await self._prepare_next(dispatch, tries, outcome)
            if decision is RetryDecision.RETRY or decision is RetryDecision.OMIT_FIELD:
                continue
            errors.append(outcome)
            if decision is not RetryDecision.NEXT:
                await self._divide(dispatch, errors, decision)
                return
            tries = None
        await self._try_last_ways(dispatch, errors)

    def _record_retry(self, health: EndpointHealth, outcome: Results | EmbedrouteError) -> None:
        """Record whether a retry was answered, unless this process could not make it."""
        if not isinstance(outcome, Overloaded):
            is_answered = not isinstance(outcome, EmbedrouteError)
            health.record_retry(self._clock(), answered=is_answered)

    async def _prepare_next(
        self, dispatch: Dispatch, tries: EndpointTries, error: EmbedrouteError
    ) -> RetryDecision:
        """Decide what follows a failed attempt, and prepare a further one.

        A suspected endpoint is checked first.

        Raises:
            EmbedrouteError: ``error`` itself, if no endpoint may be tried any more.
        """
        candidate = tries.candidate
        health = tries.health
        tries.failure = error
        if health.suspected:
            await self._checks.check(candidate, health, dispatch.context)
        inputs = len(dispatch.work)
        number = candidate.retries.attempts if dispatch.last_resorts else tries.number
        decision = decide_next(error, number, candidate.retries, inputs)
        if decision is RetryDecision.STOP:
            raise error
        if decision is RetryDecision.OMIT_FIELD:
            tries.omit = add_field(tries.omit, error)
        if decision is RetryDecision.RETRY:
            wait = wait_before(error, number, candidate.retries, self._random)
            if await self._wait_for_retry(dispatch, wait):
                tries.number += 1
                return decision
            decision = decide_without_retry(error, inputs)
        if decision is RetryDecision.BISECT and health.state(self._clock()) is not State.CLOSED:
            return RetryDecision.NEXT
        return decision

    async def _wait_for_retry(self, dispatch: Dispatch, seconds: float) -> bool:
        """Take a retry out of the budget, and wait before it.

        Return False if the budget is spent, or if the wait would end after the deadline.
        """
        now = self._clock()
        if now + seconds >= dispatch.context.deadline or not self._budget.allow(now):
            return False
        await anyio.sleep(seconds)
        return True

    async def _try_last_ways(self, dispatch: Dispatch, errors: Sequence[EmbedrouteError]) -> None:
        """Try what is left when every endpoint has failed. The first way that is open is taken.

        1. Bisect at the endpoint that has rejected the call, and whose error would be reported.
        2. Wait for a slot of an endpoint that is full.
        3. Wait for the end of a rate limit.
        4. Call the least bad endpoint as a last resort, although its breaker may be open.
        5. Bisect at an endpoint that has failed, if it embeds a harmless text.

        Raises:
            EmbedrouteError: the error to report.
        """
        error = error_to_report([*dispatch.earlier_errors, *errors])
        is_tried = (
            await self._bisect_rejected(dispatch, errors, error)
            or await self._wait_for_slot(dispatch, errors)
            or await self._wait_for_rate_limit(dispatch, errors)
            or await self._call_last_resort(dispatch, errors, error)
            or await self._bisect_broken(dispatch, errors)
        )
        if not is_tried:
            raise error

    async def _bisect_rejected(
        self, dispatch: Dispatch, errors: Sequence[EmbedrouteError], error: EmbedrouteError
    ) -> bool:
        """Bisect at the endpoint whose ``error`` may concern the request or only some inputs.

        If that error is from before the request was split, bisect at the first endpoint that has
        rejected this part. Return False for another error, or if no such endpoint's own text is
        known any more.
        """
        if not may_concern_request(error) or len(dispatch.work) == 1:
            return False
        own = [failure for failure in errors if _may_be_bisected(failure)]
        if not own or (error in errors and error not in own):
            return False
        refusal = error if error in own else own[0]
        candidate = dispatch.candidates[errors.index(refusal)]
        await self._bisect_at(dispatch, candidate, refusal)
        return True

    async def _bisect_broken(self, dispatch: Dispatch, errors: Sequence[EmbedrouteError]) -> bool:
        """Bisect at the first endpoint that an input may have broken; return False without one.

        With ``repeats = 0``, no call is made after every endpoint has failed.
        """
        if len(dispatch.work) == 1:
            return False
        now = self._clock()
        for candidate, failure in zip(dispatch.candidates, errors, strict=False):
            is_closed = self._healths.get(candidate).state(now) is State.CLOSED
            may_bisect = is_closed and candidate.retries.repeats > 0
            if may_bisect and may_be_broken_by_input(failure) and not failure.is_neutral:
                await self._bisect_at(dispatch, candidate, failure)
                return True
        return False

    async def _bisect_at(
        self, dispatch: Dispatch, candidate: ResolvedEndpoint, failure: EmbedrouteError
    ) -> None:
        candidates = _put_first(dispatch.candidates, candidate)
        ordered = msgspec.structs.replace(dispatch, candidates=candidates)
        await self._parts.bisect(ordered, [failure])

    async def _wait_for_slot(self, dispatch: Dispatch, errors: Sequence[EmbedrouteError]) -> bool:
        """Wait for the full endpoint that has a slot first.

        Return False if none is full, or if a rate limit is to be reported or waited for instead.

        Raises:
            EndpointBusy: that takes too long.
        """
        full = full_endpoints(dispatch.candidates, errors)
        if not full:
            return False
        inputs = len(dispatch.work)
        full.sort(key=lambda each: self._slots[each.key].expected_wait(inputs))
        first = self._slots[full[0].key]
        seconds = dispatch.context.deadline - self._clock()
        if dispatch.waits >= MOST_WAITS or not first.can_serve(inputs, seconds):
            if any(not isinstance(error, RateLimited) for error in errors if is_at_capacity(error)):
                raise first.busy_error(inputs)
            return False
        others = [error for error in errors if not is_at_capacity(error)]
        waiting = msgspec.structs.replace(
            dispatch,
            candidates=full,
            earlier_errors=[*dispatch.earlier_errors, *others],
            waits=dispatch.waits + 1,
        )
        await self._run(waiting)
        return True

    async def _wait_for_rate_limit(
        self, dispatch: Dispatch, errors: Sequence[EmbedrouteError]
    ) -> bool:
        """Wait for the rate limit that ends first, and call its endpoint first then.

        Return False if it does not end before the deadline or within the request's time for such
        waits, or if the retry budget is spent. The next call to an endpoint is a retry if it was
        called before. It is taken from the budget before the wait, so that no request waits for a
        retry that the budget then refuses. If the limited call was merged with those of other
        requests, a cool-down that one of these begins in the meantime does not count.
        """
        now = self._clock()
        context = dispatch.context
        limited = {
            self._healths.get(candidate).available_at(now): candidate
            for candidate in reversed(rate_limited_endpoints(dispatch.candidates, errors))
            if candidate.name not in dispatch.waited_for
        }
        if not limited:
            return False
        if context.trace.wait_ends is None:
            context.trace.wait_ends = now + self.rate_limit_wait
        end = min(limited)
        is_retry = was_rate_limited(errors)
        if end >= context.deadline or end > context.trace.wait_ends:
            return False
        if is_retry and not self._budget.allow(now):
            return False
        await anyio.sleep(max(end - now, 0.01))
        first = limited[end]
        failure = errors[dispatch.candidates.index(first)]
        was_merged = isinstance(failure, UpstreamError) and failure.was_merged
        waited = msgspec.structs.replace(
            dispatch,
            candidates=_put_first(dispatch.candidates, first),
            admit_first_try=self._budget.reserve_one() if is_retry else dispatch.admit_first_try,
            waited_for=dispatch.waited_for | {first.name},
            companion_at=first.name if was_merged else "",
        )
        await self._run(waited)
        return True

    async def _call_last_resort(
        self, dispatch: Dispatch, errors: Sequence[EmbedrouteError], error: EmbedrouteError
    ) -> bool:
        """Call the least bad endpoint once more; return False if that may not be done."""
        if not allows_last_resort(error):
            return False
        failures = {
            candidate: failure
            for candidate, failure in zip(dispatch.candidates, errors, strict=True)
            if allows_last_resort(failure) and dispatch.last_resorts < candidate.retries.repeats
        }
        if not failures:
            return False
        now = self._clock()
        healths = {candidate: self._healths.get(candidate) for candidate in failures}
        candidate = min(healths, key=lambda each: healths[each].rank(now))
        recovering = [
            each
            for each in healths
            if isinstance(failures[each], NoHealthyEndpoint) and healths[each].is_recovering(now)
        ]
        if recovering:
            # It answers again, and was spared only because other calls test it at the moment.
            candidate = recovering[0]
        elif not await self._wait_for_last_resort(dispatch, candidate, error):
            return False
        last_resort = msgspec.structs.replace(
            dispatch,
            candidates=[candidate],
            earlier_errors=[*dispatch.earlier_errors, *errors],
            last_resorts=dispatch.last_resorts + 1,
        )
        await self._run(last_resort)
        return True

    async def _wait_for_last_resort(
        self, dispatch: Dispatch, candidate: ResolvedEndpoint, error: EmbedrouteError
    ) -> bool:
        """Wait before a call as a last resort; return False if it may not be made.

        If all breakers were open, there is no failure of this request to wait after.
        """
        wait = 0.0
        if not isinstance(error, NoHealthyEndpoint):
            number = dispatch.last_resorts + candidate.retries.attempts
            wait = wait_before(error, number, candidate.retries, self._random)
            helps = self._healths.get(candidate).retries_help(self._clock())
            if wait > candidate.retries.longest_wait or not helps:
                return False
        return await self._wait_for_retry(dispatch, wait)

    async def _split(self, dispatch: Dispatch, candidate: ResolvedEndpoint) -> Chunks:
        """Split the work into chunks that an endpoint accepts. Empty if it accepts the whole."""
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
        slots = self._slots.get(candidate.key)
        inputs = len(dispatch.work)
        if slots is not None and slots.waiting and inputs > SMALL:
            most = slots.most_inputs(min(inputs, accepts.max_inputs or inputs))
            accepts = msgspec.structs.replace(accepts, max_inputs=most)
        if dispatch.context.request.large:
            return await fairness.step_by_step(split_in_steps(dispatch.work, accepts, prefix))
        return split(dispatch.work, accepts, prefix)

    async def _divide(
        self, dispatch: Dispatch, errors: Sequence[EmbedrouteError], decision: RetryDecision
    ) -> None:
        """Halve what is too large for an endpoint, or find the inputs that fail there alone."""
        if decision is RetryDecision.HALVE:
            await self._parts.run_chunks(dispatch, errors[:-1], halves(dispatch.work), errors[-1])
        else:
            await self._parts.bisect(dispatch, errors)

    def _begin(self, dispatch: Dispatch, tries: EndpointTries) -> Awaitable[Outcome]:
        """Begin an attempt, which gets its share of the time left, if a call may be made now."""
        candidate = tries.candidate
        context = dispatch.context
        now = self._clock()
        if context.deadline <= now:
            raise deadline_error()
        health = tries.health
        permit = health.acquire(now) or _acquire_anyway(dispatch, candidate, health, now)
        admit = dispatch.admit_first_try
        is_admitted = tries.number > 1 or admit is None or admit(now)
        if not permit or not is_admitted:
            reason = NO_BUDGET if permit else f"it rests: {health.reason_to_rest(now)}"
            error = budget_error() if permit else health.unavailable_error(now)
            return self._skip(dispatch, tries, permit, reason, error)
        # After a rate limit, the call must not be merged with the one that was limited.
        is_merged = candidate.micro_batch_ms is not None and may_be_merged(
            context, alone=bool(tries.omit) or candidate.name in dispatch.waited_for
        )
        slots = None if is_merged or dispatch.waits else self._slots.get(candidate.key)
        if slots is not None and (slots.waiting or slots.calls.in_flight >= slots.calls.limit):
            error = slots.busy_error(len(dispatch.work))
            return self._skip(dispatch, tries, permit, "it is full", error)
        runner = self._merging if is_merged else self._attempts
        if context.prepared.route.model.hedge and not is_merged:
            runner = self._hedging
        others = self._count_usable(tries.later, now) if tries.later else 0
        attempt = Attempt(
            candidate=candidate,
            health=health,
            context=context,
            work=dispatch.work,
            permit=permit,
            ends=now + (context.deadline - now) / (others + 1),
            number=tries.number,
            omit=tries.omit,
            others=others,
            is_companion=candidate.name == dispatch.companion_at,
            later=tries.later,
        )
        return runner.run(attempt)

    async def _skip(
        self,
        dispatch: Dispatch,
        tries: EndpointTries,
        permit: int,
        reason: str,
        error: EmbedrouteError,
    ) -> NotCalled:
        """Return the permit, and record in the trace why an endpoint is not called.

        ``error`` is for the client.
        """
        tries.health.release(permit)
        trace = dispatch.context.trace
        trace.add_event("select", "skipped", endpoint=tries.candidate.name, reason=reason)
        return NotCalled(error)

    def _count_usable(self, candidates: Sequence[ResolvedEndpoint], now: float) -> int:
        """Count the endpoints that can be used if a call fails."""
        return sum([self._healths.get(each).is_usable(now) for each in candidates])

    async def _begin_in_slot(self, dispatch: Dispatch, tries: EndpointTries) -> Outcome:
        """Make one attempt for a chunk, as soon as one of its request's slots is free."""
        async with cast("CapacityLimiter", dispatch.context.slots):
            has_time = self._clock() < dispatch.context.deadline
            if tries.health.learned and has_time:
                # Another chunk may have taught a smaller limit while this one waited.
                chunks = await self._chunks(dispatch, tries.candidate)
                if len(chunks) > 1:
                    message = "The upstream rejected a chunk of this size while this one waited."
                    return BatchTooLarge(message)
            return await self._begin(dispatch, tries)


def _acquire_anyway(
    dispatch: Dispatch, candidate: ResolvedEndpoint, health: EndpointHealth, now: float
) -> int:
    """Return a permit for an endpoint in a cool-down if this request may call it, or 0."""
    if candidate.name == dispatch.companion_at:
        return health.acquire_companion(now)
    return health.acquire_last_resort(now) if dispatch.last_resorts else 0


def _may_be_bisected(failure: EmbedrouteError) -> bool:
    """Return whether an endpoint has rejected this very call, in its own words."""
    is_neutral = isinstance(failure, UpstreamError) and failure.is_neutral
    return may_concern_request(failure) and not is_neutral


def _put_first(
    candidates: Sequence[ResolvedEndpoint], first: ResolvedEndpoint
) -> list[ResolvedEndpoint]:
    return [first, *(candidate for candidate in candidates if candidate is not first)]
