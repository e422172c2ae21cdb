"""Finds the inputs of a failed call that fail alone, while the endpoint embeds the others.

Each level calls the endpoint with both halves of every chunk that failed. One bad input in n is
found with 2·⌈log2 n⌉ calls. No input is blamed unless the endpoint is seen to work: it has embedded
another part of the call, or a harmless text of the gateway's own.

An endpoint may also fail at random. It does if a call has failed and the endpoint has then embedded
all its inputs. For ``UNRELIABLE_FOR`` seconds from then on, its failures blame no input.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import msgspec

from embedroute.errors import (
    BatchTooLarge,
    EmbedrouteError,
    Rejected,
    RejectedByPage,
    UpstreamError,
    UpstreamRejectedInput,
)
from embedroute.execution.context import OnResult, Results, Work
from embedroute.inputs import Input
from embedroute.routing import BoundedMap, CacheKey, halves, may_be_caused_by_input
from embedroute.runtime import tasks

UNRELIABLE_FOR: Final = 60.0
"""Seconds for which an endpoint that has failed at random is unreliable."""

Attempt = Callable[[Work], Awaitable[Results | EmbedrouteError]]
"""Calls the endpoint with a part of the work."""
Failed = tuple[Work, EmbedrouteError]
"""A part of the work and its error."""
IsAlive = Callable[[], Awaitable[bool]]
"""Returns whether the endpoint embeds a harmless text."""


class Bisection(msgspec.Struct, frozen=True):
    """What a bisection has found.

    ``alone`` maps each input that fails by itself to its error. ``rest`` was not decided, because
    of ``error``. ``at_random``: the endpoint has embedded all inputs of a call that had failed.
    """

    alone: Mapping[CacheKey, UpstreamError]
    rest: Work
    error: EmbedrouteError
    at_random: bool = False


class UnreliableEndpoints:
    """The endpoints of one event loop that have failed at random, by name."""

    def __init__(self) -> None:
        """Start without any."""
        self._until: BoundedMap[str, float] = BoundedMap()

    def add(self, name: str, now: float) -> None:
        """Record that an endpoint has failed at random."""
        self._until.get_or_insert(name, now)
        self._until[name] = now + UNRELIABLE_FOR

    def has(self, name: str, now: float) -> bool:
        """Return whether an endpoint has failed at random in the last ``UNRELIABLE_FOR`` s."""
        return now < self._until.get(name, now)


async def bisect(
    work: Work,
    error: EmbedrouteError,
    attempt: Attempt,
    is_alive: IsAlive,
    on_result: OnResult,
    *,
    at_once: int,
) -> Bisection:
    """Bisect ``work``, which failed with ``error``, with ``at_once`` calls at a time.

    An unexplained 4xx may concern the whole request, so the endpoint is checked before the first
    halves in that case, and otherwise after them.
    """
    alone: dict[CacheKey, UpstreamError] = {}
    undecided: list[Failed] = []
    failing: list[Work] = [work]
    failed: list[Work] = [] if concerns_request(error) else [work]
    is_known_alive = False
    must_check = concerns_request(error)
    while failing:
        if must_check and not is_known_alive:
            is_known_alive = await is_alive()
            if not is_known_alive:
                undecided += [(chunk, error) for chunk in failing]
                break
        must_check = True
        chunks = [half for chunk in failing for half in halves(chunk)]
        failures = await _attempt_all(chunks, attempt, on_result, at_once)
        is_known_alive = is_known_alive or len(failures) < len(chunks)
        failing = [chunk for chunk, failure in failures if len(chunk) > 1 and is_open(failure)]
        failed += [chunk for chunk, failure in failures if not concerns_request(failure)]
        # A server may fail at random, so a single input is blamed only if it fails twice.
        singles = [pair for pair in failures if len(pair[0]) == 1 and is_open(pair[1])]
        refused = [pair for pair in singles if concerns_request(pair[1])]
        if singles and not is_known_alive:
            is_known_alive = await is_alive()
            if not is_known_alive:
                return Bisection({}, work, error)
        again = [chunk for chunk, failure in singles if not concerns_request(failure)]
        repeated = await _attempt_all(again, attempt, on_result, at_once)
        undecided += [pair for pair in (*failures, *repeated) if not is_open(pair[1])]
        alone |= _blamed_inputs((*refused, *repeated))
    rest: dict[CacheKey, Input] = {}
    for chunk, failure in undecided:
        rest |= chunk
        error = failure
    at_random = any(chunk.keys().isdisjoint({*alone, *rest}) for chunk in failed)
    return Bisection(alone, rest, error, at_random)


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
        if not is_open(outcome):
            return None
    return True


def _blamed_inputs(failures: Sequence[Failed]) -> dict[CacheKey, UpstreamError]:
    """Map each input that failed alone to its error, if that error is about the input."""
    return {
        key: failure
        for chunk, failure in failures
        if isinstance(failure, UpstreamError) and is_about_inputs(failure)
        for key in chunk
    }


def concerns_request(error: EmbedrouteError) -> bool:
    """Return whether an error may concern what all inputs of a request have in common."""
    return isinstance(error, Rejected) and not isinstance(error, RejectedByPage)


def is_open(error: EmbedrouteError) -> bool:
    """Return whether an input may still turn out to be at fault."""
    return isinstance(error, UpstreamError) and is_about_inputs(error)


def is_about_inputs(error: EmbedrouteError) -> bool:
    """Return whether halving a call may tell more about its error."""
    by_input = isinstance(error, UpstreamRejectedInput | BatchTooLarge)
    return by_input or may_be_caused_by_input(error)


async def _attempt_all(
    chunks: Sequence[Work], attempt: Attempt, on_result: OnResult, at_once: int
) -> list[Failed]:
    """Attempt all chunks; return those that failed, with their errors, in their order."""
    errors: dict[int, EmbedrouteError] = {}

    async def run(position: int) -> None:
        outcome = await attempt(chunks[position])
        if isinstance(outcome, EmbedrouteError):
            errors[position] = outcome
        else:
            on_result(outcome)

    await tasks.gather([_call(run, position) for position in range(len(chunks))], at_once)
    return [(chunks[position], errors[position]) for position in sorted(errors)]


def _call(run: Callable[[int], Awaitable[None]], position: int) -> Callable[[], Awaitable[None]]:
    return lambda: run(position)
