"""Over endpoints and attempts under one deadline; the only place that retries."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import cast

import anyio
import msgspec
from anyio import CapacityLimiter

from embedroute.errors import BatchTooLarge, DeadlineExceeded, EmbedrouteError, InputRefused
from embedroute.execution.attempt import Attempts
from embedroute.execution.context import Landed, Order
from embedroute.execution.singleflight import Land
from embedroute.inputs import Input
from embedroute.routing import (
    Candidate,
    Health,
    Healths,
    Key,
    RetryBudget,
    RetryPolicy,
    State,
    Then,
    halves,
    judge,
    limited,
    split,
    split_in_steps,
    text_before,
    wait_before,
    was_called,
    worst,
)
from embedroute.runtime import fairness, tasks

CHUNKS_AT_ONCE = 8
Pieces = Sequence[Mapping[Key, Input]]
Embed = Callable[[Sequence[Candidate], Order, Mapping[Key, Input], Land], Awaitable[None]]
"""Computes work in order at the first candidate that answers, and gives its vectors away as they land."""
Enter = Callable[[float], bool]
"""Whether an endpoint may be tried for the first time by a chunk, at a time in seconds."""


class Desk:
    """Orders the calls of one gateway on one event loop; health and budget are the gateway's."""

    def __init__(
        self,
        *,
        attempts: Attempts,
        healths: Healths,
        budget: RetryBudget,
        policy: RetryPolicy,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        """Take what is shared with other loops, and ``attempts``, which is this loop's own."""
        self._attempts = attempts
        self._healths = healths
        self._budget = budget
        self._called = budget.called
        self._policy = policy
        self._clock = clock
        self._random = random

    async def embed(
        self,
        candidates: Sequence[Candidate],
        order: Order,
        work: Mapping[Key, Input],
        land: Land,
        enter: Enter | None = None,
        before: Sequence[EmbedrouteError] = (),
    ) -> None:
        """Compute all of ``work``; ``land`` gets each chunk's vectors as soon as they are there.

        ``enter`` grants first tries, which are no retries without it; ``before`` failed before this was cut out of more.

        Raises:
            EmbedrouteError: what the client is to be told when some of it cannot be computed.
        """
        failures: list[EmbedrouteError] = []
        failure: EmbedrouteError | None = None
        begin = self._begin if order.slots is None else self._in_slot
        attempt = 1
        while (tried := len(failures)) < len(candidates):
            candidate = candidates[tried]
            if (
                attempt == 1
                and len(work) > 1
                and (pieces := await self._cut(candidate, order, work))
            ):
                everyone = [*candidates[tried:], *limited(candidates, failures)]
                await self._all(everyone, order, pieces, land, [*before, *failures], None)
                return
            health = self._healths.of(candidate)
            trying = begin(candidate, health, work, order, len(candidates) - tried, enter, attempt)
            outcome = None if trying is None else await trying
            if outcome is None:
                failure = failure or health.resting(self._clock())
            elif not isinstance(outcome, EmbedrouteError):
                land(outcome)
                return
            else:
                failure = outcome
                if await self._may_repeat(failure, attempt, order):
                    attempt += 1
                    continue
            if isinstance(failure, BatchTooLarge) and len(work) > 1:
                everyone = [*candidates[tried:], *limited(candidates, failures)]
                await self._all(everyone, order, halves(work), land, [*before, *failures], failure)
                return
            failures.append(failure)
            failure = None
            attempt = 1
        candidates = await self._rested(candidates, failures, order, worst([*before, *failures]))
        enter = self._budget.prepaid() if was_called(failures) else enter
        await self.embed(candidates, order, work, land, enter, before)

    async def _may_repeat(self, failure: EmbedrouteError, attempt: int, order: Order) -> bool:
        """Return whether a failed attempt is repeated at its endpoint, after the wait before that.

        Raises:
            EmbedrouteError: the failure itself, if no endpoint may be tried any more.
        """
        then = judge(failure, attempt, self._policy)
        if then is Then.STOP:
            raise failure
        now = self._clock()
        wait = wait_before(failure, attempt, self._policy, self._random)
        if then is not Then.RETRY or now + wait >= order.deadline or not self._budget.allow(now):
            return False
        await anyio.sleep(wait)
        return True

    async def _cut(self, candidate: Candidate, order: Order, work: Mapping[Key, Input]) -> Pieces:
        """Cut work into the chunks that an endpoint takes; nothing if it takes the whole."""
        pieces = await self._pieces(candidate, order, work)
        if len(pieces) == 1:
            return ()
        order.journal.note(
            "split", "cut", endpoint=candidate.name, chunks=[len(piece) for piece in pieces]
        )
        return pieces

    async def _pieces(
        self, candidate: Candidate, order: Order, work: Mapping[Key, Input]
    ) -> Pieces:
        """Cut work, in steps that let the event loop go on if the request is large."""
        before = text_before(candidate, order.model, order.parameters.input_type)
        accepts = self._healths.of(candidate).caps(candidate.accepts, self._clock())
        if order.large:
            return await fairness.step_by_step(split_in_steps(work, accepts, before))
        return split(work, accepts, before)

    async def _all(
        self,
        candidates: Sequence[Candidate],
        order: Order,
        pieces: Pieces,
        land: Land,
        before: Sequence[EmbedrouteError],
        refusal: BatchTooLarge | None,
    ) -> None:
        """Compute pieces, each a chunk of its own that nobody has tried yet; however deep they are cut, few are called at once.

        The cap that the ``refusal`` of the whole taught is in doubt if an input is refused alone.
        """
        if order.slots is None:
            order = msgspec.structs.replace(order, slots=CapacityLimiter(CHUNKS_AT_ONCE))
        now, embed = self._clock(), partial(self.embed, candidates, order)
        work = [partial(embed, piece, land, before=before) for piece in pieces]
        try:
            if not any(self._healths.of(it).state(now) is State.CLOSED for it in candidates):
                # A half-open breaker lets one probe through, and whoever is refused beside it would end the probe.
                await work.pop(0)()
            await tasks.gather(work, CHUNKS_AT_ONCE)
        except InputRefused:
            if refusal is not None and refusal.measure is not None:
                self._healths.of(candidates[0]).doubt(self._clock(), refusal.measure)
            raise

    async def _rested(
        self,
        candidates: Sequence[Candidate],
        failures: Sequence[EmbedrouteError],
        order: Order,
        told: EmbedrouteError,
    ) -> Sequence[Candidate]:
        """Wait for the first of the endpoints that asked for a rest, and put it first; raise ``told`` if that takes too long.

        What was called before is called again then, and is paid for now: nobody is to wait in vain.
        """
        now = self._clock()
        ready = {
            self._healths.of(it).ready_at(now): it for it in reversed(limited(candidates, failures))
        }
        at = min(ready, default=order.deadline)
        if at >= order.deadline or (was_called(failures) and not self._budget.allow(now)):
            raise told
        await anyio.sleep(max(at - now, 0.01))
        return [ready[at], *(it for it in candidates if it is not ready[at])]

    def _begin(
        self,
        candidate: Candidate,
        health: Health,
        work: Mapping[Key, Input],
        order: Order,
        left: int,
        enter: Enter | None,
        attempt: int,
    ) -> Awaitable[Landed | EmbedrouteError] | None:
        """Begin one attempt in its share of the time left; None where the endpoint rests, or no try is granted."""
        now = self._clock()
        if order.deadline <= now:
            raise DeadlineExceeded("The deadline passed before an upstream answered.")
        ticket = health.admit(now)
        if ticket and (attempt > 1 or (self._called if enter is None else enter)(now)):
            share = (order.deadline - now) / left
            return self._attempts.make(candidate, health, work, order, share, attempt, ticket)
        health.released(ticket)
        order.journal.note("select", "skipped", endpoint=candidate.name, reason="it rests")
        return None

    async def _in_slot(
        self,
        candidate: Candidate,
        health: Health,
        work: Mapping[Key, Input],
        order: Order,
        left: int,
        enter: Enter | None,
        attempt: int,
    ) -> Landed | EmbedrouteError | None:
        """Make one attempt for a chunk, once few enough of its request's calls are under way."""
        async with cast("CapacityLimiter", order.slots):
            if (
                order.deadline > self._clock()
                and health.learned
                and len(await self._pieces(candidate, order, work)) > 1
            ):
                return BatchTooLarge(
                    "A chunk of this size was refused while this one waited for its turn."
                )
            trying = self._begin(candidate, health, work, order, left, enter, attempt)
            return None if trying is None else await trying
