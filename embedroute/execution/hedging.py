"""Attempts of models with ``hedge``: a further call beside one that takes longer than usual."""

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import msgspec

from embedroute.backend import LocalBackend
from embedroute.errors import EmbedrouteError
from embedroute.execution.attempt import Attempt, AttemptRunner, NotCalled, Outcome
from embedroute.log_records import CallCancelled, write
from embedroute.routing import (
    BoundedMap,
    CallTimes,
    HealthRegistry,
    HedgeBudget,
    ResolvedEndpoint,
    hedge_delay,
)
from embedroute.runtime import tasks

FURTHER_CALLS: Final = 2
"""Further calls beside one call at most.

If 3 % of the calls are slow, one request in a thousand has two slow ones.
"""


class HedgingRunner:
    """The attempts on one event loop beside which further calls may be made.

    The further calls of all requests for a model have one budget.
    """

    def __init__(self, attempts: AttemptRunner, healths: HealthRegistry) -> None:
        """Take the runner that makes and records the calls."""
        self._attempts = attempts
        self._healths = healths
        self._budgets: BoundedMap[str, HedgeBudget] = BoundedMap()
        self._times: BoundedMap[str, CallTimes] = BoundedMap()

    async def run(self, attempt: Attempt) -> Outcome:
        """Run an attempt and, while it is slow, others: the first answer wins.

        Without an answer, the outcome of ``attempt`` itself is returned.
        """
        inputs = len(attempt.work)
        model = attempt.context.prepared.route.name
        budget = self._budgets.get_or_insert(model, HedgeBudget())
        times = self._times.get_or_insert(attempt.candidate.key, CallTimes())
        budget.record_call()
        delay = hedge_delay(times, budget, inputs)
        if delay is None or not self._may_be_hedged(attempt):
            outcome = await self._attempts.run(attempt)
        else:
            outcome = await self._race(attempt, budget, delay)
        if _is_answer(outcome):
            times.record(inputs, self._attempts.clock() - attempt.began)
        return outcome

    async def _race(self, attempt: Attempt, budget: HedgeBudget, delay: float) -> Outcome:
        """Run an attempt, and a further one after each ``delay`` seconds without an answer."""
        begun = [attempt]
        ended: set[Attempt] = set()

        async def run(each: Attempt) -> Outcome:
            outcome = await self._attempts.run(each)
            ended.add(each)
            return outcome

        def begin_next() -> Callable[[], Awaitable[Outcome]] | None:
            following = self._make_next(attempt, budget, begun)
            if following is None:
                return None
            begun.append(following)
            return partial(run, following)

        outcome = await tasks.race(partial(run, attempt), delay, begin_next, _is_answer)
        for each in begun:
            if each not in ended:
                self._report_cancelled(each)
        return outcome

    def _may_be_hedged(self, attempt: Attempt) -> bool:
        """Return whether further calls may be made beside an attempt.

        Not beside a retry, a probe or a large call, nor beside one that must wait for a slot.
        """
        is_first = attempt.number == 1 and not attempt.omit and not attempt.context.request.large
        return is_first and self._can_serve(attempt.candidate, self._attempts.clock())

    def _can_serve(self, candidate: ResolvedEndpoint, now: float) -> bool:
        """Return whether an endpoint is healthy and has room. A local model would not be faster."""
        health = self._healths.get(candidate)
        slots = self._attempts.slots.get(candidate.key)
        has_room = slots is None or not slots.is_full
        is_local = isinstance(candidate.backend, LocalBackend)
        return has_room and not is_local and health.is_usable(now) and not health.outage(now)

    def _make_next(
        self, attempt: Attempt, budget: HedgeBudget, begun: Sequence[Attempt]
    ) -> Attempt | None:
        """Make the next attempt beside those that have ``begun``; None if there may be none.

        The other endpoints come first, in their order, and then that of ``attempt`` itself.
        """
        now = self._attempts.clock()
        called = [each.candidate for each in begun]
        targets = [*(each for each in attempt.later if each not in called), attempt.candidate]
        target = next((each for each in targets if self._can_serve(each, now)), None)
        is_last = len(begun) > FURTHER_CALLS or now >= attempt.ends
        if target is None or is_last or not budget.allow():
            return None
        health = self._healths.get(target)
        following = msgspec.structs.replace(
            attempt,
            candidate=target,
            health=health,
            permit=health.acquire(now),
            number=called.count(target) + 1,
            began=now,
            timeout=math.inf,
        )
        attempt.context.trace.add_event("hedge", "begun", endpoint=target.name)
        return following

    def _report_cancelled(self, attempt: Attempt) -> None:
        """Write an attempt into the trace and the log that was cancelled by the answer of another.

        It says nothing about the health of its endpoint.
        """
        context = attempt.context
        record = CallCancelled(
            provider=attempt.candidate.provider,
            model=context.prepared.route.public_name,
            endpoint=attempt.candidate.name,
            attempt=attempt.number,
            ms=round((self._attempts.clock() - attempt.began) * 1000, 1),
            request_id=context.trace.request_id,
        )
        context.trace.add_event(
            "call", "cancelled", endpoint=record.endpoint, attempt=record.attempt, ms=record.ms
        )
        write(record)


def _is_answer(outcome: Outcome) -> bool:
    return not isinstance(outcome, EmbedrouteError | NotCalled)
