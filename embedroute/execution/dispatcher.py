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
    UpstreamRejectedInput,
)
from embedroute.execution.attempt import AttemptRunner
from embedroute.execution.context import DispatchContext, Results
from embedroute.execution.singleflight import OnResult
from embedroute.inputs import Input
from embedroute.routing import (
    CacheKey,
    EndpointHealth,
    HealthRegistry,
    ResolvedEndpoint,
    RetryBudget,
    RetryDecision,
    RetryPolicy,
    State,
    decide_next,
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
Chunks = Sequence[Mapping[CacheKey, Input]]
Embed = Callable[
    [Sequence[ResolvedEndpoint], DispatchContext, Mapping[CacheKey, Input], OnResult],
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
        work: Mapping[CacheKey, Input],
        on_result: OnResult,
        admit_first_try: AdmitFirstTry | None = None,
        earlier_errors: Sequence[EmbedrouteError] = (),
    ) -> None:
        """Embed all of ``work``. ``on_result`` gets the vectors of each chunk as soon as they come.

        A first try counts as a call and not as a retry, unless ``admit_first_try`` decides.
        ``earlier_errors`` are the errors from before ``work`` was split off.

        Raises:
            EmbedrouteError: the error to report if some of it cannot be embedded.
        """
        errors: list[EmbedrouteError] = []
        error: EmbedrouteError | None = None
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
            trying = begin(
                candidate, health, work, context, endpoints_left, admit_first_try, attempt
            )
            outcome = None if trying is None else await trying
            if outcome is None:
                error = error or health.unavailable_error(self._clock())
            elif not isinstance(outcome, EmbedrouteError):
                on_result(outcome)
                return
            else:
                error = outcome
                if await self._may_repeat(error, attempt, context):
                    attempt += 1
                    continue
            if isinstance(error, BatchTooLarge) and len(work) > 1:
                await self._embed_chunks(
                    candidates, errors, context, halves(work), on_result, earlier_errors, error
                )
                return
            errors.append(error)
            error = None
            attempt = 1
        error = error_to_report([*earlier_errors, *errors])
        candidates = await self._wait_for_rate_limit(candidates, errors, context, error)
        admit_first_try = self._budget.reserve_one() if was_called(errors) else admit_first_try
        await self.embed(candidates, context, work, on_result, admit_first_try, earlier_errors)

    async def _may_repeat(
        self, error: EmbedrouteError, attempt: int, context: DispatchContext
    ) -> bool:
        """Return whether a failed attempt is repeated at its endpoint, after waiting as long as needed.

        Raises:
            EmbedrouteError: ``error`` itself, if no endpoint may be tried any more.
        """
        decision = decide_next(error, attempt, self._policy)
        if decision is RetryDecision.STOP:
            raise error
        if decision is not RetryDecision.RETRY:
            return False
        now = self._clock()
        wait = wait_before(error, attempt, self._policy, self._random)
        if now + wait >= context.deadline or not self._budget.allow(now):
            return False
        await anyio.sleep(wait)
        return True

    async def _split(
        self, candidate: ResolvedEndpoint, context: DispatchContext, work: Mapping[CacheKey, Input]
    ) -> Chunks:
        """Split ``work`` into the chunks that an endpoint accepts. Empty if it accepts the whole."""
        chunks = await self._chunks(candidate, context, work)
        if len(chunks) == 1:
            return ()
        sizes = [len(chunk) for chunk in chunks]
        context.trace.add_event("split", "cut", endpoint=candidate.name, chunks=sizes)
        return chunks

    async def _chunks(
        self, candidate: ResolvedEndpoint, context: DispatchContext, work: Mapping[CacheKey, Input]
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
        too_large: BatchTooLarge | None = None,
    ) -> None:
        """Embed chunks at the endpoints that have not failed yet, ``CHUNKS_AT_ONCE`` at a time.

        ``errors`` are those of the first ``candidates``. ``too_large`` is the error of the whole if
        it was halved: the limit learned from it is in doubt if an input is rejected alone.
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
            if too_large is not None and too_large.measure is not None:
                self._healths.get(remaining[0]).doubt(self._clock(), too_large.measure)
            raise

    async def _wait_for_rate_limit(
        self,
        candidates: Sequence[ResolvedEndpoint],
        errors: Sequence[EmbedrouteError],
        context: DispatchContext,
        error: EmbedrouteError,
    ) -> Sequence[ResolvedEndpoint]:
        """Wait until the first rate limit ends, and return the candidates with its endpoint in front.

        The next call to that endpoint is a retry if it was called before. The retry is taken from
        the budget before the wait, so that no request waits and is refused afterwards.

        Raises:
            EmbedrouteError: ``error``, if no limit ends before the deadline or the budget is spent.
        """
        now = self._clock()
        available = {
            self._healths.get(candidate).available_at(now): candidate
            for candidate in reversed(limited(candidates, errors))
        }
        at = min(available, default=context.deadline)
        if at >= context.deadline or (was_called(errors) and not self._budget.allow(now)):
            raise error
        await anyio.sleep(max(at - now, 0.01))
        first = available[at]
        return [first, *(candidate for candidate in candidates if candidate is not first)]

    def _begin(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        work: Mapping[CacheKey, Input],
        context: DispatchContext,
        endpoints_left: int,
        admit_first_try: AdmitFirstTry | None,
        attempt: int,
    ) -> Awaitable[Results | EmbedrouteError] | None:
        """Begin one attempt, which may take an equal share of the time left.

        None if the breaker of the endpoint is open or no first try is admitted.
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
        return None

    async def _begin_in_slot(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        work: Mapping[CacheKey, Input],
        context: DispatchContext,
        endpoints_left: int,
        admit_first_try: AdmitFirstTry | None,
        attempt: int,
    ) -> Results | EmbedrouteError | None:
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
            return None if trying is None else await trying
