"""Embeds a request in parts: chunks that an endpoint accepts, halves, and what a bisection leaves.

The parts run side by side. What one input causes does not end the other parts.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, cast

import msgspec
from anyio import CapacityLimiter

from embedroute.errors import (
    BatchTooLarge,
    DeadlineExceeded,
    EmbedrouteError,
    FieldRejected,
    Measure,
    NoHealthyEndpoint,
    RateLimited,
    RejectedByPage,
    UpstreamError,
    UpstreamRejectedInput,
    UpstreamUnavailable,
)
from embedroute.execution.attempt import Attempt, AttemptRunner, NotCalled
from embedroute.execution.bisection import (
    Bisection,
    bisect,
    fails_again,
    failures_needed,
    repeats_left,
)
from embedroute.execution.context import (
    Dispatch,
    DispatchContext,
    Results,
    Work,
    input_failed,
    make_batch,
    name_input,
)
from embedroute.execution.health_check import HealthChecker
from embedroute.routing import (
    LEAST,
    NO_FIELDS,
    SHORTEST_COOLDOWN,
    EndpointHealth,
    HealthRegistry,
    ResolvedEndpoint,
    RetryBudget,
    State,
    depends_on_inputs,
    error_to_report,
    may_be_caused_by_input,
    may_concern_request,
    measure_inputs_in_steps,
    rate_limited_endpoints,
)
from embedroute.runtime import fairness, tasks

CHUNKS_AT_ONCE: Final = 8
"""Calls of one request that are under way at a time, once it is split."""
REPEATS: Final = 3
"""Least further calls with the only input of a chunk that has failed, before it is blamed."""
SIZE_CHANCE: Final = 1e-4
"""Probability up to which failures in a row are not chance, if the parts of the call succeed."""
MOST_SIZE_REPEATS: Final = 3
"""Calls at most that repeat one which may be too large."""
BUDGET_SPENT: Final = (
    "The gateway has spent its budget of retries. Wait before you send the request again."
)
"""The message of the error of a request for which no more calls may be made."""
Chunks = Sequence[Work]
Run = Callable[[Dispatch], Awaitable[None]]
"""Embeds a part at the first endpoint that responds."""


def _undone_parts(
    found: Bisection,
    dispatch: Dispatch,
    errors: Sequence[EmbedrouteError],
    context: DispatchContext,
) -> list[tuple[Dispatch, EmbedrouteError]]:
    """Return the parts of a bisected request that other endpoints may embed, with their errors.

    These are each input that failed alone, and the rest that the bisection has not decided.
    ``errors`` are those of the first candidates; the last of these was the endpoint.
    """
    candidate = dispatch.candidates[len(errors) - 1]
    others = [each for each in dispatch.candidates if each is not candidate]
    make_part = partial(Dispatch, context=context, on_result=dispatch.on_result)
    parts: list[tuple[Dispatch, EmbedrouteError]] = []
    for key, failure in found.alone.items():
        is_blamed = key not in found.doubtful
        error = input_failed(failure, key, context.keys) if is_blamed else temporary(failure)
        work = {key: dispatch.work[key]}
        parts.append((make_part(others, work=work, earlier_errors=[error]), error))
    if found.rest:
        error = error_to_report([*dispatch.earlier_errors, *errors])
        left = list(dispatch.candidates[len(errors) :])
        if isinstance(found.error, RateLimited):
            error = found.error
            # Without progress, a spent budget would lead to the same bisection again and again.
            if len(found.rest) < len(dispatch.work) or error.message != BUDGET_SPENT:
                left.append(candidate)
        parts.append((make_part(left, work=found.rest, earlier_errors=[error]), error))
    return parts


class PartRunner:
    """Runs the parts of requests. ``run`` is the dispatcher's; the rest is as in ``Dispatcher``."""

    def __init__(
        self,
        run: Run,
        attempts: AttemptRunner,
        checks: HealthChecker,
        healths: HealthRegistry,
        budget: RetryBudget,
        clock: Callable[[], float],
    ) -> None:
        """Take what the dispatcher uses itself."""
        self._run = run
        self._attempts = attempts
        self._checks = checks
        self._healths = healths
        self._budget = budget
        self._clock = clock

    async def run_chunks(
        self,
        dispatch: Dispatch,
        errors: Sequence[EmbedrouteError],
        chunks: Chunks,
        halved: EmbedrouteError | None = None,
    ) -> None:
        """Embed chunks at the endpoints that have not failed yet, ``CHUNKS_AT_ONCE`` at a time.

        ``errors`` are those of the first candidates. ``halved`` is the error of the whole if it was
        halved: the limit learned from it is in doubt if an input is rejected alone. An error that
        an input may have caused does not end the other chunks. Neither does an open breaker: the
        error of the chunk that has opened it is reported.
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
        await self._run_all(whole, chunks, halved)

    async def _run_all(
        self, whole: Dispatch, chunks: Chunks, halved: EmbedrouteError | None
    ) -> None:
        """Embed the chunks of ``whole``, and raise the error to report if some have failed."""
        failures: dict[int, UpstreamError] = {}
        not_called: list[NoHealthyEndpoint] = []
        calls = [
            partial(self._run_chunk, whole, chunks[position], position, failures, not_called)
            for position in range(len(chunks))
        ]
        now = self._clock()
        states = [self._healths.get(candidate).state(now) for candidate in whole.candidates]
        if State.CLOSED not in states:
            # A half-open breaker admits one probe. A chunk refused beside it would end the probe.
            await calls.pop(0)()
        await tasks.gather(calls, CHUNKS_AT_ONCE)
        if failures:
            self._doubt(whole.candidates[0], halved, failures)
        others_answered = len(failures) + len(not_called) < len(chunks)
        for position in sorted(failures):
            error = await self._name_failure(
                whole, chunks[position], failures[position], others_answered=others_answered
            )
            if error is not None:
                raise error
        if not_called:
            raise not_called[0]

    async def _run_chunk(
        self,
        whole: Dispatch,
        chunk: Work,
        position: int,
        failures: dict[int, UpstreamError],
        not_called: list[NoHealthyEndpoint],
    ) -> None:
        """Embed a chunk; collect the errors that do not end the other chunks."""
        try:
            await self._run(msgspec.structs.replace(whole, work=chunk))
        except NoHealthyEndpoint as error:
            not_called.append(error)
        except UpstreamError as error:
            if not depends_on_inputs(error):
                raise
            failures[position] = error

    def _doubt(
        self,
        candidate: ResolvedEndpoint,
        halved: EmbedrouteError | None,
        failures: Mapping[int, EmbedrouteError],
    ) -> None:
        """Doubt the limit learned from a halved call if an input was rejected alone."""
        if isinstance(halved, BatchTooLarge) and halved.measure is not None:
            is_rejected = [isinstance(each, UpstreamRejectedInput) for each in failures.values()]
            if any(is_rejected):
                self._healths.get(candidate).doubt(self._clock(), halved.measure)

    async def _name_failure(
        self, whole: Dispatch, chunk: Work, error: UpstreamError, *, others_answered: bool
    ) -> UpstreamError | None:
        """Return the error to report for a chunk that failed; None if it is embedded after all.

        If other chunks were answered, the only input of a chunk may be to blame for its error.
        """
        if len(chunk) > 1:
            return error
        context = whole.context
        key = next(iter(chunk))
        if others_answered and may_be_caused_by_input(error):
            fails = may_concern_request(error) or await self._fails_again(whole, chunk)
            if fails is False:
                return None
            return input_failed(error, key, context.keys) if fails else temporary(error)
        if isinstance(error, UpstreamRejectedInput):
            return name_input(error, key, context.keys)
        return error

    async def _fails_again(self, whole: Dispatch, chunk: Work) -> bool | None:
        """Return whether an input still fails at the first endpoint; None if that is not known."""
        candidate = whole.candidates[0]
        health = self._healths.get(candidate)
        needed = failures_needed(health.random_share(self._clock())) - 1
        times = max(REPEATS, repeats_left(needed, 0))
        fails = await fails_again(
            chunk,
            partial(self._attempt_alone, candidate, health, whole.context),
            partial(self._checks.is_alive, candidate, health, whole.context),
            whole.on_result,
            times,
        )
        now = self._clock()
        if fails is False:
            health.record_retry(now, answered=True)
        if fails and failures_needed(health.random_share(now)) > times + 1:
            return None
        return fails

    async def bisect(self, dispatch: Dispatch, errors: Sequence[EmbedrouteError]) -> None:
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
            partial(self._checks.is_alive, candidate, health, context),
            dispatch.on_result,
            at_once=CHUNKS_AT_ONCE,
            random_share=lambda: health.random_share(self._clock()),
            on_random=lambda: health.record_retry(self._clock(), answered=True),
        )
        await self._explain(found.embedded_since, candidate, health, context)
        await self._run_parts(_undone_parts(found, dispatch, errors, context))

    async def _explain(
        self,
        calls: Sequence[Work],
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        context: DispatchContext,
    ) -> None:
        """Find out why ``calls`` failed although the endpoint has embedded all their inputs.

        The smallest one is repeated. If it is answered, they failed at random. If it fails each
        time, they are too large for the endpoint, which does not say so.
        """
        if not calls:
            return
        smallest = min(calls, key=len)
        share = health.random_share(self._clock())
        missing = failures_needed(share, SIZE_CHANCE) - 1
        for _ in range(min(missing, MOST_SIZE_REPEATS)):
            is_answered = await self._is_answered(smallest, candidate, health, context)
            if is_answered is None:
                return
            if is_answered:
                for _ in calls:
                    health.record_retry(self._clock(), answered=True)
                return
        if missing <= MOST_SIZE_REPEATS:
            await self._learn_size(smallest, candidate, health, context)

    async def _is_answered(
        self,
        work: Work,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        context: DispatchContext,
    ) -> bool | None:
        """Repeat a call whose vectors are known; None if no more calls may be made."""
        async with cast("CapacityLimiter", context.slots):
            now = self._clock()
            seconds = context.deadline - now
            if seconds <= 0 or not self._budget.allow_bisection(now):
                return None
            batch = make_batch(candidate, work, context)
            try:
                await self._attempts.exchange(
                    candidate, context, batch, seconds, health.omitted(now)
                )
            except EmbedrouteError as error:
                return False if depends_on_inputs(error) else None
            return True

    async def _learn_size(
        self,
        work: Work,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        context: DispatchContext,
    ) -> None:
        """Learn a limit from a call that is too large: of bytes, or of inputs if they are short."""
        inputs = list(work.values())
        size = await fairness.step_by_step(measure_inputs_in_steps(inputs, Measure.BYTES))
        measure = Measure.BYTES
        if size <= LEAST[measure]:
            measure = Measure.INPUTS
            size = len(inputs)
        health.record_batch_too_large(self._clock(), measure, size)
        context.trace.add_event(
            "split", "limit learned", endpoint=candidate.name, measure=measure.value, size=size
        )

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
                failures[position] = error if depends_on_inputs(failure) else failure

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
                attempt = Attempt(
                    candidate=candidate,
                    health=health,
                    context=context,
                    work=work,
                    permit=permit,
                    ends=context.deadline,
                    omit=omit,
                )
                outcome = await self._attempts.run(attempt)
                if isinstance(outcome, NotCalled):
                    return outcome.reason
                if not isinstance(outcome, FieldRejected):
                    return outcome
                omit = add_field(omit, outcome)


def add_field(fields: frozenset[str], failure: EmbedrouteError) -> frozenset[str]:
    """Return ``fields`` with the one that an upstream has rejected."""
    field = failure.field if isinstance(failure, FieldRejected) else None
    return fields if field is None else fields | {field}


def temporary(error: UpstreamError) -> UpstreamError:
    """Return the error of an endpoint that may fail at random; the client may send it again."""
    if not isinstance(error, RejectedByPage):
        return error
    failure = UpstreamUnavailable(error.message, upstream_status=error.upstream_status)
    failure.provider = error.provider
    return failure


def deadline_error() -> DeadlineExceeded:
    """Make the error of a request whose deadline has passed."""
    return DeadlineExceeded("The deadline passed before a provider responded.")


def budget_error() -> RateLimited:
    """Make the error of a request for which the gateway may make no more calls."""
    error = RateLimited(BUDGET_SPENT, retry_after=SHORTEST_COOLDOWN)
    error.already_recorded = True
    return error
