"""Finds the inputs of a failed call that fail alone, while the endpoint embeds the others.

Whether a failed call is bisected is decided in ``routing/retry.py`` and in the dispatcher.

Each level calls the endpoint with both halves of every chunk that failed. One bad input in n is
found with 2·⌈log2 n⌉ calls. No input is blamed unless the endpoint is seen to work: it has embedded
another part of the call, or a harmless text of the gateway's own.

An endpoint may also fail at random. So an input is blamed only if so many calls with it have failed
in a row that chance is excluded: with a share p of random failures, n calls in a row fail by chance
with the probability p^n. The share is estimated from the calls that failed and were answered when
they were repeated.

A call may also be too large for an endpoint that does not say so. Then it fails each time, although
the endpoint embeds both halves.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeGuard

import msgspec

from embedroute.errors import (
    EmbedrouteError,
    UpstreamError,
)
from embedroute.execution.context import OnResult, Results, Work
from embedroute.inputs import Input
from embedroute.routing import (
    CacheKey,
    depends_on_inputs,
    halves,
    may_be_broken_by_input,
    may_concern_request,
)
from embedroute.runtime import tasks

CHANCE: Final = 1e-6
"""Probability up to which failures in a row are not put down to chance."""
MOST_REPEATS: Final = 30
"""Calls at most that repeat one with a single input, to exclude chance."""
FEW_REPEATS: Final = 3
"""Repeated calls if ``MOST_REPEATS`` could not exclude it: the input may still be embedded."""

Attempt = Callable[[Work], Awaitable[Results | EmbedrouteError]]
"""Calls the endpoint with a part of the work."""
Failed = tuple[Work, EmbedrouteError]
"""A part of the work and its error."""
IsAlive = Callable[[], Awaitable[bool]]
"""Returns whether the endpoint embeds a harmless text."""
RandomShare = Callable[[], float]
"""Returns an upper estimate of the share of the endpoint's calls that fail at random."""
Depends = Callable[[EmbedrouteError], TypeGuard[UpstreamError]]
"""Returns whether an input may have caused an error."""
OnRandom = Callable[[], None]
"""Is called for each call that failed at random."""


class Bisection(msgspec.Struct, frozen=True):
    """What a bisection has found.

    ``alone`` maps each input that fails by itself to its error; for the ``doubtful`` ones among
    them chance is not excluded. ``rest`` was not decided, because of ``error``. ``embedded_since``
    are the failed calls all of whose inputs the endpoint has embedded in smaller calls afterwards.
    """

    alone: Mapping[CacheKey, UpstreamError]
    rest: Work
    error: EmbedrouteError
    doubtful: frozenset[CacheKey] = frozenset()
    embedded_since: Sequence[Work] = ()


def failures_needed(share: float, chance: float = CHANCE) -> int:
    """Return how many calls in a row must fail if ``share`` of the calls fails at random."""
    return math.ceil(math.log(chance) / math.log(share))


async def bisect(
    work: Work,
    error: EmbedrouteError,
    attempt: Attempt,
    is_alive: IsAlive,
    on_result: OnResult,
    *,
    at_once: int,
    random_share: RandomShare,
    on_random: OnRandom,
) -> Bisection:
    """Bisect ``work``, which failed with ``error``, with ``at_once`` calls at a time.

    An unexplained 4xx may concern the whole request, and a broken connection the endpoint. So the
    endpoint is checked before the first halves in these cases, and otherwise after them.
    """
    depends = depends_on_inputs if depends_on_inputs(error) else _may_depend_on_inputs
    calls = _BisectionCalls(attempt, on_result, at_once, random_share, on_random, depends)
    return await _Search(work, error, is_alive, calls).run()


def _may_depend_on_inputs(failure: EmbedrouteError) -> TypeGuard[UpstreamError]:
    return depends_on_inputs(failure) or may_be_broken_by_input(failure)


class _Search:
    """The state of one bisection; ``failed`` are the calls whose errors say nothing certain."""

    def __init__(
        self, work: Work, error: EmbedrouteError, is_alive: IsAlive, calls: "_BisectionCalls"
    ) -> None:
        self._work = work
        self._error = error
        self._is_alive = is_alive
        self._is_known_alive = False
        self._calls = calls
        self._alone: dict[CacheKey, UpstreamError] = {}
        self._doubtful: set[CacheKey] = set()
        self._undecided: list[Failed] = []
        self._failed: list[Work] = [] if may_concern_request(error) else [work]

    async def run(self) -> Bisection:
        failing = [self._work]
        must_check = may_concern_request(self._error) or not depends_on_inputs(self._error)
        while failing:
            if must_check and not await self._check():
                self._undecided += [(chunk, self._error) for chunk in failing]
                break
            must_check = True
            failures = await self._attempt_halves(failing)
            open_failures = [pair for pair in failures if self._calls.depends(pair[1])]
            singles = [pair for pair in open_failures if len(pair[0]) == 1]
            if singles and not await self._check():
                return Bisection({}, self._work, self._error)
            self._undecided += [pair for pair in failures if not self._calls.depends(pair[1])]
            await self._judge(singles)
            failing = [chunk for chunk, _ in open_failures if len(chunk) > 1]
        return self._result()

    async def _check(self) -> bool:
        """Return whether the endpoint embeds anything at all."""
        self._is_known_alive = self._is_known_alive or await self._is_alive()
        return self._is_known_alive

    async def _attempt_halves(self, failing: Sequence[Work]) -> list[Failed]:
        chunks = [half for chunk in failing for half in halves(chunk)]
        failures = await self._calls.attempt_all(chunks)
        self._is_known_alive = self._is_known_alive or len(failures) < len(chunks)
        self._failed += [chunk for chunk, failure in failures if not may_concern_request(failure)]
        return failures

    async def _judge(self, singles: Sequence[Failed]) -> None:
        """Blame the single inputs that are refused, or that fail too often for chance."""
        refused = [pair for pair in singles if may_concern_request(pair[1])]
        again = [pair for pair in singles if not may_concern_request(pair[1])]
        repeated, doubtful = await self._calls.repeat(again, self._failed)
        self._doubtful |= doubtful
        self._undecided += [pair for pair in repeated if not self._calls.depends(pair[1])]
        self._alone |= _blamed_inputs((*refused, *repeated), self._calls.depends)

    def _result(self) -> Bisection:
        rest: dict[CacheKey, Input] = {}
        error = self._error
        for chunk, failure in self._undecided:
            rest |= chunk
            error = failure
        left = {*self._alone, *rest}
        chunks = [chunk for chunk in self._failed if len(chunk) > 1]
        embedded_since = [chunk for chunk in chunks if chunk.keys().isdisjoint(left)]
        doubtful = frozenset(self._doubtful & self._alone.keys())
        return Bisection(self._alone, rest, error, doubtful, embedded_since)


class _BisectionCalls:
    """Makes the calls of a bisection.

    Those with a single input that have failed are repeated until chance is excluded.
    """

    def __init__(
        self,
        attempt: Attempt,
        on_result: OnResult,
        at_once: int,
        random_share: RandomShare,
        on_random: OnRandom,
        depends: Depends,
    ) -> None:
        self.depends = depends
        self._attempt = attempt
        self._on_result = on_result
        self._at_once = at_once
        self._random_share = random_share
        self._on_random = on_random

    async def repeat(
        self, singles: Sequence[Failed], failed: Sequence[Work]
    ) -> tuple[list[Failed], set[CacheKey]]:
        """Repeat each single call at least once.

        Return those that fail each time or with another error, and the inputs for which chance is
        not excluded. ``failed`` are the calls that have failed so far, with these.
        """
        counts = {
            key: sum(key in chunk for chunk in failed) for chunk, _ in singles for key in chunk
        }
        pending = list(singles)
        ended: list[Failed] = []
        doubtful: set[CacheKey] = set()
        for repeated in range(MOST_REPEATS):
            failures = await self.attempt_all([chunk for chunk, _ in pending])
            for _ in range(len(pending) - len(failures)):
                self._on_random()
            pending = list[Failed]()
            needed = failures_needed(self._random_share())
            for chunk, failure in failures:
                key = next(iter(chunk))
                counts[key] += 1
                left = repeats_left(needed - counts[key], repeated + 1)
                if not self.depends(failure) or counts[key] >= needed:
                    ended.append((chunk, failure))
                elif left:
                    pending.append((chunk, failure))
                else:
                    doubtful.add(key)
                    ended.append((chunk, failure))
            if not pending:
                break
        return ended, doubtful

    async def attempt_all(self, chunks: Sequence[Work]) -> list[Failed]:
        """Attempt all chunks; return those that failed, with their errors, in their order."""
        errors: dict[int, EmbedrouteError] = {}

        async def run(position: int) -> None:
            outcome = await self._attempt(chunks[position])
            if isinstance(outcome, EmbedrouteError):
                errors[position] = outcome
            else:
                self._on_result(outcome)

        calls = [partial(run, position) for position in range(len(chunks))]
        await tasks.gather(calls, self._at_once)
        return [(chunks[position], errors[position]) for position in sorted(errors)]


def repeats_left(missing: int, repeated: int) -> int:
    """Return how many more repeats are made after ``repeated`` ones if ``missing`` are needed."""
    most = MOST_REPEATS if missing + repeated <= MOST_REPEATS else FEW_REPEATS
    return max(0, min(missing, most - repeated))


async def fails_again(
    work: Work, attempt: Attempt, is_alive: IsAlive, on_result: OnResult, times: int
) -> bool | None:
    """Call the endpoint ``times`` more with an input that has failed alone; stop if it succeeds.

    Return None if the outcome is not known: the endpoint does not embed the harmless text either,
    or another error has occurred.
    """
    if not await is_alive():
        return None
    for _ in range(times):
        outcome = await attempt(work)
        if not isinstance(outcome, EmbedrouteError):
            on_result(outcome)
            return False
        if not depends_on_inputs(outcome):
            return None
    return True


def _blamed_inputs(failures: Sequence[Failed], depends: Depends) -> dict[CacheKey, UpstreamError]:
    """Map each input that failed alone to its error, if that error may be about the input."""
    return {key: failure for chunk, failure in failures if depends(failure) for key in chunk}
