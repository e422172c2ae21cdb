"""Tries the endpoints of a request, one after another, under its deadline. Only this module retries.

What follows a failed attempt is a table in ``routing/retry.py``. This module carries it out: it
waits, moves on to the next endpoint, splits a batch that is too large, or raises.
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
    RateLimited,
    Rejected,
    RejectedByPage,
    UpstreamRejectedInput,
)
from embedroute.execution.attempt import AttemptRunner
from embedroute.execution.bisection import bisect
from embedroute.execution.context import DispatchContext, Results, input_failed
from embedroute.execution.singleflight import OnResult
from embedroute.inputs import Input
from embedroute.routing import (
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
    limited,
    split,
    split_in_steps,
    text_before,
    wait_before,
    was_called,
)
from embedroute.runtime import fairness, tasks

CHUNKS_AT_ONCE = 8
"""Calls of one request that are under way at a time, once it is split."""
PROBE_TIMEOUT = 5.0
"""Seconds for the answer to a harmless text."""
RECENT = 30.0
"""Seconds after an answer in which an endpoint is not suspected because of one rejection."""
Work = Mapping[CacheKey, Input]
Chunks = Sequence[Work]
Embed = Callable[
    [Sequence[ResolvedEndpoint], DispatchContext, Work, OnResult],
    Awaitable[None],
]
"""Embeds inputs at the first endpoint that responds, and passes their vectors on as they come."""
AdmitFirstTry = Callable[[float], bool]
"""Takes the time in seconds; returns whether a chunk may be tried at an endpoint for the first time."""


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

    async def embed(
        self,
        candidates: Sequence[ResolvedEndpoint],
        context: DispatchContext,
        work: Work,
        on_result: OnResult,
        admit_first_try: AdmitFirstTry | None = None,
        earlier_errors: Sequence[EmbedrouteError] = (),
        waited_for: frozenset[str] = frozenset(),
    ) -> None:
        """Embed all of ``work``. ``on_result`` gets the vectors of each chunk as soon as they come.

        A first try counts as a call and not as a retry, unless ``admit_first_try`` decides.
        ``earlier_errors`` are the errors from before ``work`` was split off. ``waited_for`` are the
        endpoints whose rate limits were waited for.

        Raises:
            EmbedrouteError: the error to report if some of it cannot be embedded.
        """
        errors: list[EmbedrouteError] = []
        begin = self._begin if context.slots is None else self._begin_in_slot
        attempt = 1
        while len(errors) < len(candidates):
            candidate = candidates[len(errors)]
            is_first = attempt == 1 and len(work) > 1
            if is_first and (chunks := await self._split(candidate, context, work)):
                await self._embed_chunks(
                    candidates, errors, context, chunks, on_result, earlier_errors
                )
                return
            health = self._healths.get(candidate)
            endpoints_left = len(candidates) - len(errors)
            outcome = begin(
                candidate, health, work, context, endpoints_left, admit_first_try, attempt
            )
            if not isinstance(outcome, EmbedrouteError):
                outcome = await outcome
            if not isinstance(outcome, EmbedrouteError):
                on_result(outcome)
                if errors:
                    await self._blame(candidates, errors, context)
                return
            decision = await self._decide(outcome, attempt, candidate, health, work, context)
            if decision in {RetryDecision.RETRY, RetryDecision.REPEAT}:
                attempt += decision is RetryDecision.RETRY
                continue
            errors.append(outcome)
            attempt = 1
            if decision is RetryDecision.HALVE:
                await self._embed_chunks(
                    candidates,
                    errors[:-1],
                    context,
                    halves(work),
                    on_result,
                    earlier_errors,
                    outcome,
                )
                return
            if decision is RetryDecision.BISECT:
                await self._bisect(candidates, errors, context, work, on_result, earlier_errors)
                return
        await self._end(
            candidates,
            errors,
            context,
            work,
            on_result,
            admit_first_try,
            earlier_errors,
            waited_for,
        )

    async def _end(
        self,
        candidates: Sequence[ResolvedEndpoint],
        errors: Sequence[EmbedrouteError],
        context: DispatchContext,
        work: Work,
        on_result: OnResult,
        admit_first_try: AdmitFirstTry | None,
        earlier_errors: Sequence[EmbedrouteError],
        waited_for: frozenset[str],
    ) -> None:
        """Try again after a rate limit, or find the bad inputs, when every endpoint has failed.

        Raises:
            EmbedrouteError: the error to report if nothing is left to try.
        """
        error = error_to_report([*earlier_errors, *errors])
        if len(work) > 1 and isinstance(error, Rejected):
            first = candidates[errors.index(error)] if error in errors else None
            if first is not None and not isinstance(error, RejectedByPage):
                await self._bisect([first], [error], context, work, on_result, earlier_errors)
                return
        waiting = self._find_rate_limit(candidates, errors, context, waited_for)
        if waiting is None:
            raise error
        first, seconds = waiting
        await anyio.sleep(seconds)
        again = [first, *(candidate for candidate in candidates if candidate is not first)]
        admit_first_try = self._budget.reserve_one() if was_called(errors) else admit_first_try
        waited_for = waited_for | {first.name}
        await self.embed(
            again, context, work, on_result, admit_first_try, earlier_errors, waited_for
        )

    async def _decide(
        self,
        error: EmbedrouteError,
        attempt: int,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        work: Work,
        context: DispatchContext,
    ) -> RetryDecision:
        """Decide what follows a failed attempt, after the wait before a retry.

        Raises:
            EmbedrouteError: ``error`` itself, if no endpoint may be tried any more.
        """
        if health.suspected:
            await self._probe(candidate, health, context)
        decision = decide_next(error, attempt, self._policy, len(work))
        if decision is RetryDecision.STOP:
            raise error
        now = self._clock()
        if decision is RetryDecision.RETRY:
            wait = wait_before(error, attempt, self._policy, self._random)
            if now + wait < context.deadline and self._budget.allow(now):
                await anyio.sleep(wait)
                return decision
            decision = decide_without_retry(error, len(work))
        if decision is RetryDecision.BISECT and health.state(now) is not State.CLOSED:
            return RetryDecision.NEXT
        return decision

    async def _probe(
        self, candidate: ResolvedEndpoint, health: EndpointHealth, context: DispatchContext
    ) -> bool:
        """Return whether an endpoint embeds a harmless text, which settles a suspicion."""
        timeout = min(PROBE_TIMEOUT, context.deadline - self._clock())
        return await self._attempts.probe(candidate, health, context, timeout)

    async def _blame(
        self,
        candidates: Sequence[ResolvedEndpoint],
        errors: Sequence[EmbedrouteError],
        context: DispatchContext,
    ) -> None:
        """Check the endpoints that rejected without a reason what another endpoint has answered."""
        for candidate, error in zip(candidates, errors, strict=False):
            health = self._healths.get(candidate)
            now = self._clock()
            if (
                isinstance(error, Rejected)
                and health.state(now) is State.CLOSED
                and now - health.last_answer > RECENT
            ):
                health.suspect(now, error)
                await self._probe(candidate, health, context)

    async def _bisect(
        self,
        candidates: Sequence[ResolvedEndpoint],
        errors: Sequence[EmbedrouteError],
        context: DispatchContext,
        work: Work,
        on_result: OnResult,
        earlier_errors: Sequence[EmbedrouteError],
    ) -> None:
        """Find the inputs that fail alone at the endpoint that failed last, and embed the others.

        What it cannot embed is tried at the endpoints after it.

        Raises:
            EmbedrouteError: some inputs failed at every endpoint. Every other input was tried.
        """
        candidate = candidates[len(errors) - 1]
        health = self._healths.get(candidate)
        found = await bisect(
            work,
            errors[-1],
            partial(self._attempt_alone, candidate, health, context, errors[-1]),
            partial(self._probe, candidate, health, context),
            on_result,
            at_once=CHUNKS_AT_ONCE,
        )
        others = candidates[len(errors) :]
        parts: list[tuple[Work, EmbedrouteError]] = [
            ({key: work[key]}, input_failed(error, key)) for key, error in found.alone.items()
        ]
        if found.rest:
            parts.append((found.rest, error_to_report([*earlier_errors, *errors])))
        failures: dict[int, EmbedrouteError] = {}

        async def embed_part(position: int) -> None:
            part, error = parts[position]
            try:
                if not others:
                    raise error
                await self.embed(others, context, part, on_result, earlier_errors=[error])
            except EmbedrouteError as failure:
                failures[position] = error if position < len(found.alone) else failure

        calls = [partial(embed_part, position) for position in range(len(parts))]
        if calls:
            await tasks.gather(calls, CHUNKS_AT_ONCE)
        if failures:
            raise failures[min(failures)]

    async def _attempt_alone(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        context: DispatchContext,
        error: EmbedrouteError,
        work: Work,
    ) -> Results | EmbedrouteError:
        """Make one attempt of a bisection. Return ``error`` if its allowance is spent."""
        now = self._clock()
        if context.deadline <= now or not self._budget.allow_bisection(now):
            return DeadlineExceeded(error.message)
        permit = health.acquire(now)
        if not permit:
            return health.unavailable_error(now)
        timeout = context.deadline - now
        return await self._attempts.run(
            candidate, health, work, context, timeout, 1, permit, alone=True
        )

    async def _split(
        self, candidate: ResolvedEndpoint, context: DispatchContext, work: Work
    ) -> Chunks:
        """Split ``work`` into the chunks that an endpoint accepts. Empty if it accepts the whole."""
        chunks = await self._chunks(candidate, context, work)
        if len(chunks) == 1:
            return ()
        sizes = [len(chunk) for chunk in chunks]
        context.trace.add_event("split", "cut", endpoint=candidate.name, chunks=sizes)
        return chunks

    async def _chunks(
        self, candidate: ResolvedEndpoint, context: DispatchContext, work: Work
    ) -> Chunks:
        prepared = context.prepared
        input_type = prepared.selection.parameters.input_type
        prefix = text_before(candidate, prepared.route.model, input_type)
        accepts = self._healths.get(candidate).caps(candidate.accepts, self._clock())
        if context.request.large:
            return await fairness.step_by_step(split_in_steps(work, accepts, prefix))
        return split(work, accepts, prefix)

    async def _embed_chunks(
        self,
        candidates: Sequence[ResolvedEndpoint],
        errors: Sequence[EmbedrouteError],
        context: DispatchContext,
        chunks: Chunks,
        on_result: OnResult,
        earlier_errors: Sequence[EmbedrouteError],
        halved: EmbedrouteError | None = None,
    ) -> None:
        """Embed chunks at the endpoints that have not failed yet, ``CHUNKS_AT_ONCE`` at a time.

        ``errors`` are those of the first ``candidates``. ``halved`` is the error of the whole if it
        was halved: the limit learned from it is in doubt if an input is rejected alone.
        """
        if context.slots is None:
            context = msgspec.structs.replace(context, slots=CapacityLimiter(CHUNKS_AT_ONCE))
        remaining = [*candidates[len(errors) :], *limited(candidates, errors)]
        all_errors = [*earlier_errors, *errors]
        embed = partial(self.embed, remaining, context)
        calls = [partial(embed, chunk, on_result, earlier_errors=all_errors) for chunk in chunks]
        now = self._clock()
        states = [self._healths.get(candidate).state(now) for candidate in remaining]
        try:
            if State.CLOSED not in states:
                # A half-open breaker admits one probe. A chunk refused beside it would end the probe.
                await calls.pop(0)()
            await tasks.gather(calls, CHUNKS_AT_ONCE)
        except UpstreamRejectedInput:
            if isinstance(halved, BatchTooLarge) and halved.measure is not None:
                self._healths.get(remaining[0]).doubt(self._clock(), halved.measure)
            raise

    def _find_rate_limit(
        self,
        candidates: Sequence[ResolvedEndpoint],
        errors: Sequence[EmbedrouteError],
        context: DispatchContext,
        waited_for: frozenset[str],
    ) -> tuple[ResolvedEndpoint, float] | None:
        """Return the endpoint whose rate limit ends first, and the seconds until then.

        None if it does not end before the deadline or within the request's time for such waits, or
        if the retry budget is spent. The next call to an endpoint is a retry if it was called
        before. It is taken from the budget before the wait, so that no request waits in vain.
        """
        now = self._clock()
        available = {
            self._healths.get(candidate).available_at(now): candidate
            for candidate in reversed(limited(candidates, errors))
            if candidate.name not in waited_for
        }
        if not available:
            return None
        if context.trace.wait_ends is None:
            context.trace.wait_ends = now + self._policy.rate_limit_wait
        at = min(available)
        if at >= context.deadline or at > context.trace.wait_ends:
            return None
        if was_called(errors) and not self._budget.allow(now):
            return None
        return available[at], max(at - now, 0.01)

    def _begin(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        work: Work,
        context: DispatchContext,
        endpoints_left: int,
        admit_first_try: AdmitFirstTry | None,
        attempt: int,
    ) -> Awaitable[Results | EmbedrouteError] | EmbedrouteError:
        """Begin one attempt, which may take an equal share of the time left.

        An error if the endpoint may not be called now or no first try is admitted.
        """
        now = self._clock()
        if context.deadline <= now:
            raise DeadlineExceeded("The deadline passed before a provider responded.")
        permit = health.acquire(now)
        admit = admit_first_try or self._record_call
        if permit and (attempt > 1 or admit(now)):
            timeout = (context.deadline - now) / endpoints_left
            return self._attempts.run(candidate, health, work, context, timeout, attempt, permit)
        health.release(permit)
        context.trace.add_event("select", "skipped", endpoint=candidate.name, reason="it rests")
        return make_budget_error() if permit else health.unavailable_error(now)

    async def _begin_in_slot(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        work: Work,
        context: DispatchContext,
        endpoints_left: int,
        admit_first_try: AdmitFirstTry | None,
        attempt: int,
    ) -> Results | EmbedrouteError:
        """Make one attempt for a chunk, as soon as few enough calls of its request are under way."""
        async with cast("CapacityLimiter", context.slots):
            is_late = context.deadline <= self._clock()
            if health.learned and not is_late:
                # Another chunk may have taught a smaller limit while this one waited.
                chunks = await self._chunks(candidate, context, work)
                if len(chunks) > 1:
                    message = "A chunk of this size was refused while this one waited."
                    return BatchTooLarge(message)
            trying = self._begin(
                candidate, health, work, context, endpoints_left, admit_first_try, attempt
            )
            return trying if isinstance(trying, EmbedrouteError) else await trying


def make_budget_error() -> RateLimited:
    """Make the error of a request that may not be tried again after a rate limit."""
    error = RateLimited(
        "The gateway has retried as often as its retry budget allows. Wait before you retry.",
        retry_after=SHORTEST_COOLDOWN,
    )
    error.already_recorded = True
    return error
