"""Finds the inputs of a failed call that fail alone, while the endpoint embeds the others.

Each level calls the endpoint with both halves of every chunk that failed. One bad input in n is
found with 2·⌈log2 n⌉ calls. No input is blamed unless the endpoint is seen to work: it has embedded
another part of the call, or a harmless text of the gateway's own.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

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
from embedroute.routing import CacheKey, halves, may_be_caused_by_input
from embedroute.runtime import tasks

Attempt = Callable[[Work], Awaitable[Results | EmbedrouteError]]
"""Calls the endpoint with a part of the work."""
Failed = tuple[Work, EmbedrouteError]
"""A part of the work and its error."""
IsAlive = Callable[[], Awaitable[bool]]
"""Returns whether the endpoint embeds a harmless text."""


class Bisection(msgspec.Struct, frozen=True):
    """What a bisection has found.

    ``alone`` maps each input that fails by itself to its error. ``rest`` was not decided, because
    of ``error``.
    """

    alone: Mapping[CacheKey, UpstreamError]
    rest: Work
    error: EmbedrouteError


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
    rest = {key: item for chunk, _ in undecided for key, item in chunk.items()}
    return Bisection(alone, rest, undecided[-1][1] if undecided else error)


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
