"""Makes the attempts of requests whose small calls may be merged with those of others.

``microbatching`` merges the calls (``micro_batch_ms``). This module connects it with attempts,
which know nothing of it.
"""

import sys
from collections.abc import Awaitable
from functools import partial

from embedroute.backend import Batch, Vectors
from embedroute.errors import EmbedrouteError, EndpointBusy, NoHealthyEndpoint
from embedroute.execution.attempt import Attempt, AttemptRunner, NotCalled, Outcome
from embedroute.execution.context import (
    DispatchContext,
    for_client,
    make_batch,
    record_results,
)
from embedroute.execution.microbatching import MicroBatcher


class MergedAttemptRunner:
    """The attempts on one event loop that may take part in a merged call."""

    def __init__(self, attempts: AttemptRunner) -> None:
        """Take the runner that makes and records the calls."""
        self._attempts = attempts
        self._micro_batcher = MicroBatcher()

    async def run(self, attempt: Attempt) -> Outcome:
        """Run an attempt: make a call, for other requests too, or take part in another's call.

        The request that makes the call records its outcome; the others return their permits.
        """
        candidate, context, health = attempt.candidate, attempt.context, attempt.health
        attempts = self._attempts
        attempt.began = attempts.clock()
        context.trace.attempts += 1
        batch = make_batch(candidate, attempt.work, context)
        outside = sys.exception()
        try:
            answer, made_call = await self._micro_batcher.embed(
                batch,
                (candidate.key, context.prepared.key_prefix, context.request.kind, batch.user),
                partial(self._call, attempt),
                max_wait=min(
                    (candidate.micro_batch_ms or 0) / 1000, (attempt.ends - attempt.began) / 2
                ),
                timeout=attempt.ends - attempt.began,
                caps=lambda: health.caps(candidate.accepts, attempts.clock()),
                own_call=partial(self._call_as_companion, attempt),
            )
        except EmbedrouteError as error:
            if isinstance(error, EndpointBusy | NoHealthyEndpoint):
                context.trace.attempts -= 1
                health.release(attempt.permit)
                return NotCalled(error)
            return attempts.fail(attempt, for_client(error, candidate, outside), batch)
        except BaseException:
            attempts.abandon(attempt)
            raise
        if not made_call:
            health.release(attempt.permit)
        results = record_results(candidate, attempt.work, answer, context, made=made_call, sizes=())
        attempts.report(attempt, None)
        return results

    def _call_as_companion(
        self, attempt: Attempt, batch: Batch, timeout: float
    ) -> Awaitable[Vectors]:
        """Make the own call of a request after its merged call has failed."""
        attempt.is_companion = True
        return self._call(attempt, batch, timeout)

    async def _call(self, attempt: Attempt, batch: Batch, timeout: float) -> Vectors:
        """Make one call that several requests may share, and record its outcome."""
        attempts, candidate = self._attempts, attempt.candidate
        attempt.began = attempts.clock()
        attempt.ends = attempt.began + timeout
        slots = attempts.slots.get(candidate.key) or attempts.add_slots(candidate)
        if slots.is_full:
            refused = await attempts.wait(slots, attempt)
            if refused is not None:
                raise refused.reason
        else:
            slots.calls.in_flight += 1
            attempt.generation = slots.calls.generation
        attempt.place = slots.calls.in_flight
        timeout = attempts.limit_time(attempt, slots.calls, batch)
        omitted = attempt.health.omitted(attempt.began)
        try:
            answer = await attempts.exchange(
                candidate, attempt.context, batch, timeout, omitted, attempt
            )
            attempts.accept(attempt, slots.calls, batch, answer)
        except EmbedrouteError as error:
            await attempts.learn_limits(attempt, slots.calls, batch, error)
            raise
        except BaseException:
            attempts.record_timeout(attempt, slots.calls)
            raise
        finally:
            slots.leave(attempt.generation)
        return answer


def may_be_merged(context: DispatchContext, *, alone: bool) -> bool:
    """Return whether a request's call may be merged with others; not if it must be ``alone``."""
    return not (alone or context.trace.captures_bodies or context.request.large)
