"""Over endpoints and attempts under one deadline; the only place that retries."""

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
Pieces = Sequence[Mapping[CacheKey, Input]]
Embed = Callable[
    [Sequence[ResolvedEndpoint], DispatchContext, Mapping[CacheKey, Input], OnResult],
    Awaitable[None],
]
"""Computes work in order at the first candidate that answers, and gives its vectors away as they land."""
AdmitFirstTry = Callable[[float], bool]
"""Whether an endpoint may be tried for the first time by a chunk, at a time in seconds."""


class Dispatcher:
    """Orders the calls of one gateway on one event loop; health and budget are the gateway's."""

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
        """Take what is shared with other loops, and ``attempts``, which is this loop's own."""
        self._attempts = attempts
        self._healths = healths
        self._budget = budget
        self._called = budget.record_call
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
        """Compute all of ``work``; ``on_result`` gets each chunk's vectors as soon as they are there.

        ``admit_first_try`` grants first tries, which are no retries without it; ``earlier_errors`` failed before this was cut out of more.

        Raises:
            EmbedrouteError: what the client is to be told when some of it cannot be computed.
        """
        failures: list[EmbedrouteError] = []
        failure: EmbedrouteError | None = None
        begin = self._begin if context.slots is None else self._in_slot
        attempt = 1
        while (tried := len(failures)) < len(candidates):
            candidate = candidates[tried]
            if attempt == 1 and (chunks := await self._cut(candidate, context, work)):
                await self._embed_chunks(
                    candidates, failures, context, chunks, on_result, earlier_errors
                )
                return
            health = self._healths.get(candidate)
            trying = begin(
                candidate, health, work, context, len(candidates) - tried, admit_first_try, attempt
            )
            outcome = None if trying is None else await trying
            if outcome is None:
                failure = failure or health.unavailable_error(self._clock())
            elif not isinstance(outcome, EmbedrouteError):
                on_result(outcome)
                return
            else:
                failure = outcome
                if await self._may_repeat(failure, attempt, context):
                    attempt += 1
                    continue
            if isinstance(failure, BatchTooLarge) and len(work) > 1:
                await self._embed_chunks(
                    candidates, failures, context, halves(work), on_result, earlier_errors, failure
                )
                return
            failures.append(failure)
            failure = None
            attempt = 1
        error = error_to_report([*earlier_errors, *failures])
        candidates = await self._rested(candidates, failures, context, error)
        admit_first_try = self._budget.reserve_one() if was_called(failures) else admit_first_try
        await self.embed(candidates, context, work, on_result, admit_first_try, earlier_errors)

    async def _may_repeat(
        self, failure: EmbedrouteError, attempt: int, context: DispatchContext
    ) -> bool:
        """Return whether a failed attempt is repeated at its endpoint, after the wait before that.

        Raises:
            EmbedrouteError: the failure itself, if no endpoint may be tried any more.
        """
        then = decide_next(failure, attempt, self._policy)
        if then is RetryDecision.STOP:
            raise failure
        now = self._clock()
        wait = wait_before(failure, attempt, self._policy, self._random)
        if (
            then is not RetryDecision.RETRY
            or now + wait >= context.deadline
            or not self._budget.allow(now)
        ):
            return False
        await anyio.sleep(wait)
        return True

    async def _cut(
        self, candidate: ResolvedEndpoint, context: DispatchContext, work: Mapping[CacheKey, Input]
    ) -> Pieces:
        """Cut work into the chunks that an endpoint takes; nothing if it takes the whole."""
        if len(work) == 1:
            return ()
        pieces = await self._pieces(candidate, context, work)
        if len(pieces) == 1:
            return ()
        context.trace.add_event(
            "split", "cut", endpoint=candidate.name, chunks=[len(piece) for piece in pieces]
        )
        return pieces

    async def _pieces(
        self, candidate: ResolvedEndpoint, context: DispatchContext, work: Mapping[CacheKey, Input]
    ) -> Pieces:
        """Cut work, in steps that let the event loop go on if the request is large."""
        before = text_before(candidate, context.model, context.parameters.input_type)
        accepts = self._healths.get(candidate).caps(candidate.accepts, self._clock())
        if context.large:
            return await fairness.step_by_step(split_in_steps(work, accepts, before))
        return split(work, accepts, before)

    async def _embed_chunks(
        self,
        candidates: Sequence[ResolvedEndpoint],
        failures: Sequence[EmbedrouteError],
        context: DispatchContext,
        chunks: Pieces,
        on_result: OnResult,
        earlier_errors: Sequence[EmbedrouteError],
        too_large: BatchTooLarge | None = None,
    ) -> None:
        """Compute chunks at the endpoints that have not failed yet, at most ``CHUNKS_AT_ONCE`` at a time.

        ``failures`` are those of the first ``candidates``. ``too_large`` is the error of the whole,
        if it was halved: the limit learned from it is in doubt if an input is rejected alone.
        """
        if context.slots is None:
            context = msgspec.structs.replace(context, slots=CapacityLimiter(CHUNKS_AT_ONCE))
        left = [*candidates[len(failures) :], *limited(candidates, failures)]
        errors = [*earlier_errors, *failures]
        now = self._clock()
        work = [
            partial(self.embed, left, context, chunk, on_result, earlier_errors=errors)
            for chunk in chunks
        ]
        try:
            if not any(self._healths.get(one).state(now) is State.CLOSED for one in left):
                # A half-open breaker admits one probe, and a chunk refused beside it would end the probe.
                await work.pop(0)()
            await tasks.gather(work, CHUNKS_AT_ONCE)
        except UpstreamRejectedInput:
            if too_large is not None and too_large.measure is not None:
                self._healths.get(left[0]).doubt(self._clock(), too_large.measure)
            raise

    async def _rested(
        self,
        candidates: Sequence[ResolvedEndpoint],
        failures: Sequence[EmbedrouteError],
        context: DispatchContext,
        told: EmbedrouteError,
    ) -> Sequence[ResolvedEndpoint]:
        """Wait for the first of the endpoints that asked for a rest, and put it first; raise ``told`` if that takes too long.

        What was called before is called again then, and is paid for now: nobody is to wait in vain.
        """
        now = self._clock()
        ready = {
            self._healths.get(it).available_at(now): it
            for it in reversed(limited(candidates, failures))
        }
        at = min(ready, default=context.deadline)
        if at >= context.deadline or (was_called(failures) and not self._budget.allow(now)):
            raise told
        await anyio.sleep(max(at - now, 0.01))
        return [ready[at], *(it for it in candidates if it is not ready[at])]

    def _begin(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        work: Mapping[CacheKey, Input],
        context: DispatchContext,
        left: int,
        enter: AdmitFirstTry | None,
        attempt: int,
    ) -> Awaitable[Results | EmbedrouteError] | None:
        """Begin one attempt in its share of the time left; None where the endpoint rests, or no try is granted."""
        now = self._clock()
        if context.deadline <= now:
            raise DeadlineExceeded("The deadline passed before an upstream answered.")
        ticket = health.acquire(now)
        if ticket and (attempt > 1 or (self._called if enter is None else enter)(now)):
            share = (context.deadline - now) / left
            return self._attempts.run(candidate, health, work, context, share, attempt, ticket)
        health.release(ticket)
        context.trace.add_event("select", "skipped", endpoint=candidate.name, reason="it rests")
        return None

    async def _in_slot(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        work: Mapping[CacheKey, Input],
        context: DispatchContext,
        left: int,
        enter: AdmitFirstTry | None,
        attempt: int,
    ) -> Results | EmbedrouteError | None:
        """Make one attempt for a chunk, once few enough of its request's calls are under way."""
        async with cast("CapacityLimiter", context.slots):
            if (
                context.deadline > self._clock()
                and health.learned
                and len(await self._pieces(candidate, context, work)) > 1
            ):
                return BatchTooLarge(
                    "A chunk of this size was refused while this one waited for its turn."
                )
            trying = self._begin(candidate, health, work, context, left, enter, attempt)
            return None if trying is None else await trying
