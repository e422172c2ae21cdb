"""Over endpoints and attempts under one deadline; the only place that retries."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import anyio
import msgspec
from anyio import CapacityLimiter

from embedroute import tasks, turns
from embedroute.attempts import Attempts
from embedroute.backend import Accepts
from embedroute.errors import BatchTooLarge, DeadlineExceeded, EmbedrouteError, InputRefused
from embedroute.flights import Land
from embedroute.inputs import Input
from embedroute.orders import Landed, Order
from embedroute.routing.breaker import State
from embedroute.routing.directory import Candidate
from embedroute.routing.health import Health, Healths
from embedroute.routing.plan import Key, halves, split, split_in_steps, text_before
from embedroute.routing.retry import RetryBudget, RetryPolicy, Then, judge, limited, wait_before, was_called, worst

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
        failures: Sequence[EmbedrouteError] = ()
        for candidate in candidates:
            pieces = await self._cut_large(candidate, order, work) if order.large else self._cut(candidate, order, work)
            left = len(candidates) - len(failures)
            failure = None if pieces else await self._at(candidate, work, order, land, left, enter or self._called)
            refusal = failure if isinstance(failure, BatchTooLarge) and len(work) > 1 else None
            if pieces or refusal:
                everyone = [*candidates[-left:], *limited(candidates, failures)]
                await self._all(everyone, order, pieces or halves(work), land, [*before, *failures], refusal)
                return
            if failure is None:
                return
            failures = [*failures, failure]
        candidates = await self._rested(candidates, failures, order, worst([*before, *failures]))
        await self.embed(candidates, order, work, land, self._budget.prepaid() if was_called(failures) else enter, before)

    def _cut(self, candidate: Candidate, order: Order, work: Mapping[Key, Input]) -> Pieces:
        """Cut work into the chunks that an endpoint takes; nothing if it takes the whole."""
        if len(work) == 1:
            return ()
        return self._noted(candidate, order, self._pieces(candidate, order, work))

    async def _cut_large(self, candidate: Candidate, order: Order, work: Mapping[Key, Input]) -> Pieces:
        """Cut the work of a large request in steps that let the event loop go on."""
        if len(work) == 1:
            return ()
        return self._noted(candidate, order, await self._pieces_in_steps(candidate, order, work))

    def _noted(self, candidate: Candidate, order: Order, pieces: Pieces) -> Pieces:
        if len(pieces) == 1:
            return ()
        order.journal.note("split", "cut", endpoint=candidate.name, chunks=[len(piece) for piece in pieces])
        return pieces

    def _pieces(self, candidate: Candidate, order: Order, work: Mapping[Key, Input]) -> Pieces:
        return split(work, *self._caps(candidate, order))

    async def _pieces_in_steps(self, candidate: Candidate, order: Order, work: Mapping[Key, Input]) -> Pieces:
        return await turns.step_by_step(split_in_steps(work, *self._caps(candidate, order)))

    async def _exceeds(self, candidate: Candidate, order: Order, work: Mapping[Key, Input]) -> bool:
        """Whether a chunk is too large for one call by now."""
        if order.large:
            return len(await self._pieces_in_steps(candidate, order, work)) > 1
        return len(self._pieces(candidate, order, work)) > 1

    def _caps(self, candidate: Candidate, order: Order) -> tuple[Accepts, str]:
        """Tell what one call may hold now, and what stands before each text of it."""
        before = text_before(candidate, order.model, order.parameters.input_type)
        return self._healths.of(candidate).caps(candidate.accepts, self._clock()), before

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
        self, candidates: Sequence[Candidate], failures: Sequence[EmbedrouteError], order: Order, told: EmbedrouteError
    ) -> Sequence[Candidate]:
        """Wait for the first of the endpoints that asked for a rest, and put it first; raise ``told`` if that takes too long.

        What was called before is called again then, and is paid for now: nobody is to wait in vain.
        """
        now = self._clock()
        ready = {self._healths.of(it).ready_at(now): it for it in reversed(limited(candidates, failures))}
        at = min(ready, default=order.deadline)
        if at >= order.deadline or (was_called(failures) and not self._budget.allow(now)):
            raise told
        await anyio.sleep(max(at - now, 0.01))
        return [ready[at], *(it for it in candidates if it is not ready[at])]

    async def _at(
        self, candidate: Candidate, work: Mapping[Key, Input], order: Order, land: Land, left: int, enter: Enter
    ) -> EmbedrouteError | None:
        """Try one endpoint until it answers or is given up; then tell why."""
        attempt, failure, health = 0, None, self._healths.of(candidate)
        while True:
            attempt += 1
            if order.slots is None:
                outcome = await self._try(candidate, health, work, order, left, enter, attempt)
            else:
                async with order.slots:
                    outcome = await self._try(candidate, health, work, order, left, enter, attempt)
            if outcome is None:
                return failure or health.resting(self._clock())
            if not isinstance(outcome, EmbedrouteError):
                land(outcome)
                return None
            failure = outcome
            if (then := judge(failure, attempt, self._policy)) is Then.STOP:
                raise failure
            now, wait = self._clock(), wait_before(failure, attempt, self._policy, self._random)
            if then is not Then.RETRY or now + wait >= order.deadline or not self._budget.allow(now):
                return failure
            await anyio.sleep(wait)

    async def _try(
        self,
        candidate: Candidate,
        health: Health,
        work: Mapping[Key, Input],
        order: Order,
        left: int,
        enter: Enter,
        attempt: int,
    ) -> Landed | EmbedrouteError | None:
        """Make one attempt in its share of the time left; None where the endpoint rests, or no try is granted."""
        now = self._clock()
        if order.deadline <= now:
            raise DeadlineExceeded("The deadline passed before an upstream answered.")
        waited = order.slots is not None
        if waited and health.learned and await self._exceeds(candidate, order, work):
            return BatchTooLarge("A chunk of this size was refused while this one waited for its turn.")
        ticket = health.admit(now)
        if ticket and (attempt > 1 or enter(now)):
            share = (order.deadline - now) / left
            return await self._attempts.make(candidate, health, work, order, share, attempt, ticket)
        health.released(ticket)
        order.journal.note("select", "skipped", endpoint=candidate.name, reason="it rests")
        return None
