"""Tries the endpoints of a request, one after another, under its deadline. Only it retries.

What follows a failed attempt is a table in ``routing/retry.py``. This module carries it out: it
waits, moves on to the next endpoint, hands the parts of a batch to ``parts.py``, or raises.
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
from embedroute.execution.bisection import concerns_request
from embedroute.execution.context import Dispatch, DispatchContext, OnResult, Results, Work
from embedroute.execution.health_check import HealthChecker
from embedroute.execution.hedging import HedgingRunner
from embedroute.execution.merged_attempts import MergedAttemptRunner, may_be_merged
from embedroute.execution.parts import Chunks, PartRunner, add_field, budget_error, deadline_error
from embedroute.limits import SMALL
from embedroute.routing import (
    NO_FIELDS,
    HealthRegistry,
    ResolvedEndpoint,
    RetryBudget,
    RetryDecision,
    State,
    decide_next,
    decide_without_retry,
    error_to_report,
    full_endpoints,
    halves,
    has_called_upstream,
    is_at_capacity,
    may_be_repeated,
    rate_limited_endpoints,
    split,
    split_in_steps,
    text_before,
    wait_before,
)
from embedroute.runtime import fairness

Embed = Callable[[Sequence[ResolvedEndpoint], DispatchContext, Work, OnResult], Awaitable[None]]
"""Embeds inputs at the first endpoint that responds, and passes their vectors on as they come."""


MOST_WAITS: Final = 8
"""How often a request waits for an endpoint that was full although it seemed to have room."""


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
        self._rate_limit_wait = rate_limit_wait
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
        failure: EmbedrouteError | None = None
        omit = NO_FIELDS
        attempt = 1
        while len(errors) < len(dispatch.candidates):
            candidate = dispatch.candidates[len(errors)]
            is_first = attempt == 1 and len(dispatch.work) > 1
            if is_first and (chunks := await self._split(dispatch, candidate)):
                await self._parts.run_chunks(dispatch, errors, chunks)
                return
            trying = begin(dispatch, candidate, len(errors), attempt, omit)
            outcome = trying if isinstance(trying, NotCalled) else await trying
            if isinstance(outcome, NotCalled):
                failure, decision = failure or outcome.reason, RetryDecision.NEXT
            else:
                if attempt > 1 or dispatch.repeats:
                    self._record_repeat(candidate, outcome)
                if not isinstance(outcome, EmbedrouteError):
                    self._budget.record_answer()
                    dispatch.on_result(outcome)
                    if errors:
                        await self._checks.check_rejecting(
                            dispatch.candidates, errors, dispatch.context
                        )
                    return
                failure = outcome
                decision = await self._decide(dispatch, candidate, failure, attempt)
            if decision is RetryDecision.RETRY:
                attempt += 1
            elif decision is RetryDecision.REPEAT:
                omit = add_field(omit, failure)
            else:
                errors.append(failure)
                if decision is not RetryDecision.NEXT:
                    await self._divide(dispatch, errors, decision)
                    return
                failure, omit, attempt = None, NO_FIELDS, 1
        await self._give_up(dispatch, errors)

    def _record_repeat(
        self, candidate: ResolvedEndpoint, outcome: Results | EmbedrouteError
    ) -> None:
        """Record whether it has helped to repeat a call, unless this process could not make it."""
        if not isinstance(outcome, Overloaded):
            is_answered = not isinstance(outcome, EmbedrouteError)
            self._healths.get(candidate).record_repeat(self._clock(), answered=is_answered)

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
            await self._checks.check(candidate, health, dispatch.context)
        attempt = candidate.retries.attempts if dispatch.repeats else attempt
        decision = decide_next(error, attempt, candidate.retries, len(dispatch.work))
        if decision is RetryDecision.STOP:
            raise error
        now = self._clock()
        if decision is RetryDecision.RETRY:
            wait = wait_before(error, attempt, candidate.retries, self._random)
            if now + wait < dispatch.context.deadline and self._budget.allow(now):
                await anyio.sleep(wait)
                return decision
            decision = decide_without_retry(error, len(dispatch.work))
        if decision is RetryDecision.BISECT and health.state(now) is not State.CLOSED:
            return RetryDecision.NEXT
        return decision

    async def _give_up(self, dispatch: Dispatch, errors: Sequence[EmbedrouteError]) -> None:
        """Try what is left when every endpoint has failed: bisect, wait, or repeat a call.

        Raises:
            EmbedrouteError: the error to report.
        """
        error = error_to_report([*dispatch.earlier_errors, *errors])
        is_own = error in errors and not (isinstance(error, UpstreamError) and error.is_neutral)
        if concerns_request(error) and is_own and len(dispatch.work) > 1:
            first = dispatch.candidates[errors.index(error)]
            others = [each for each in dispatch.candidates if each is not first]
            ordered = msgspec.structs.replace(dispatch, candidates=[first, *others])
            await self._divide(ordered, [error], RetryDecision.BISECT)
            return
        if await self._wait_for_slot(dispatch, errors):
            return
        waiting = self._find_rate_limit(dispatch, errors)
        if waiting is None:
            if await self._repeat(dispatch, errors, error):
                return
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
        full.sort(key=lambda each: self._slots[each.name].expected_wait(inputs))
        first = self._slots[full[0].name]
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

    async def _repeat(
        self, dispatch: Dispatch, errors: Sequence[EmbedrouteError], error: EmbedrouteError
    ) -> bool:
        """Call the least bad endpoint once more; return False if that may not be done.

        It is the last resort: the breaker of that endpoint may be open.
        """
        if not may_be_repeated(error):
            return False
        now = self._clock()
        failures = {
            each: failure
            for each, failure in zip(dispatch.candidates, errors, strict=True)
            if may_be_repeated(failure) and dispatch.repeats < each.retries.repeats
        }
        healths = {each: self._healths.get(each) for each in failures}
        if not healths:
            return False
        candidate = min(healths, key=lambda each: healths[each].rank(now))
        recovering = [
            each
            for each in healths
            if isinstance(failures[each], NoHealthyEndpoint) and healths[each].is_recovering(now)
        ]
        if recovering:
            # It answers again, and was spared only because other calls test it at the moment.
            await self._call_again(dispatch, errors, recovering[0])
            return True
        wait = 0.0
        if not isinstance(error, NoHealthyEndpoint):
            attempt = dispatch.repeats + candidate.retries.attempts
            wait = wait_before(error, attempt, candidate.retries, self._random)
            if wait > candidate.retries.longest_wait or not healths[candidate].repeats_help(now):
                return False
        if now + wait >= dispatch.context.deadline or not self._budget.allow(now):
            return False
        await anyio.sleep(wait)
        await self._call_again(dispatch, errors, candidate)
        return True

    async def _call_again(
        self,
        dispatch: Dispatch,
        errors: Sequence[EmbedrouteError],
        candidate: ResolvedEndpoint,
    ) -> None:
        again = msgspec.structs.replace(
            dispatch,
            candidates=[candidate],
            earlier_errors=[*dispatch.earlier_errors, *errors],
            repeats=dispatch.repeats + 1,
        )
        await self._run(again)

    def _find_rate_limit(
        self, dispatch: Dispatch, errors: Sequence[EmbedrouteError]
    ) -> tuple[ResolvedEndpoint, float] | None:
        """Return the endpoint whose rate limit ends first, and the seconds until then.

        None if it does not end before the deadline or within the request's time for such waits, or
        if the retry budget is spent. The next call to an endpoint is a retry if it was called
        before. It is taken from the budget before the wait, so that no request waits for a
        retry that the budget then refuses.
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
            context.trace.wait_ends = now + self._rate_limit_wait
        at = min(available)
        if at >= context.deadline or at > context.trace.wait_ends:
            return None
        if has_called_upstream(errors) and not self._budget.allow(now):
            return None
        return available[at], max(at - now, 0.01)

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
        slots = self._slots.get(candidate.name)
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

    def _begin(
        self,
        dispatch: Dispatch,
        candidate: ResolvedEndpoint,
        failed: int,
        attempt: int,
        omit: frozenset[str] = NO_FIELDS,
    ) -> Awaitable[Outcome] | NotCalled:
        """Begin one attempt, after ``failed`` endpoints have failed.

        It may take the same share of the time left as each of the usable endpoints after it.
        """
        context = dispatch.context
        now = self._clock()
        if context.deadline <= now:
            raise deadline_error()
        health = self._healths.get(candidate)
        permit = health.acquire(now) or (dispatch.repeats and health.acquire_last_resort(now))
        admit = dispatch.admit_first_try
        is_admitted = attempt > 1 or admit is None or admit(now)
        if not permit or not is_admitted:
            health.release(permit)
            error = budget_error() if permit else health.unavailable_error(now)
            return self._skip(dispatch, candidate, "it rests", error)
        # After a rate limit, the call must not be merged with the one that was limited.
        is_merged = candidate.micro_batch_ms is not None and may_be_merged(
            context, alone=bool(omit) or candidate.name in dispatch.waited_for
        )
        slots = None if is_merged or dispatch.waits else self._slots.get(candidate.name)
        if slots is not None and (slots.waiting or slots.calls.in_flight >= slots.calls.limit):
            health.release(permit)
            error = slots.busy_error(len(dispatch.work))
            return self._skip(dispatch, candidate, "it is full", error)
        attempts = self._merging if is_merged else self._attempts
        if context.prepared.route.model.hedge and not is_merged:
            attempts = self._hedging
        later = dispatch.candidates[failed + 1 :]
        others = self._count_usable(later, now) if later else 0
        return attempts.run(
            Attempt(
                candidate=candidate,
                health=health,
                context=context,
                work=dispatch.work,
                permit=permit,
                ends=now + (context.deadline - now) / (others + 1),
                number=attempt,
                omit=omit,
                others=others,
                later=later,
            )
        )

    def _skip(
        self,
        dispatch: Dispatch,
        candidate: ResolvedEndpoint,
        reason: str,
        error: EmbedrouteError,
    ) -> NotCalled:
        """Record in the trace why an endpoint is not called; ``error`` is for the client."""
        trace = dispatch.context.trace
        trace.add_event("select", "skipped", endpoint=candidate.name, reason=reason)
        return NotCalled(error)

    def _count_usable(self, candidates: Sequence[ResolvedEndpoint], now: float) -> int:
        """Count the endpoints that can be used if a call fails."""
        return sum([self._healths.get(each).is_usable(now) for each in candidates])

    async def _begin_in_slot(
        self,
        dispatch: Dispatch,
        candidate: ResolvedEndpoint,
        failed: int,
        attempt: int,
        omit: frozenset[str] = NO_FIELDS,
    ) -> Outcome | NotCalled:
        """Make one attempt for a chunk, as soon as one of its request's slots is free."""
        async with cast("CapacityLimiter", dispatch.context.slots):
            is_late = dispatch.context.deadline <= self._clock()
            if self._healths.get(candidate).learned and not is_late:
                # Another chunk may have taught a smaller limit while this one waited.
                chunks = await self._chunks(dispatch, candidate)
                if len(chunks) > 1:
                    message = "The upstream rejected a chunk of this size while this one waited."
                    return BatchTooLarge(message)
            trying = self._begin(dispatch, candidate, failed, attempt, omit)
            return trying if isinstance(trying, NotCalled) else await trying
