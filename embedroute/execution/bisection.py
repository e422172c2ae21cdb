"""Finds the inputs of a failed call that fail alone, while the endpoint embeds the others.

Each level calls the endpoint with both halves of every chunk that failed. One bad input in n is
found with 2·⌈log2 n⌉ calls. No input is blamed unless the endpoint is seen to work: it has embedded
another part of the call, or a harmless text of the gateway's own.
"""

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from embedroute.errors import (
    BatchTooLarge,
    EmbedrouteError,
    Rejected,
    RejectedByPage,
    UpstreamError,
    UpstreamRejectedInput,
)
from embedroute.execution.context import Results
from embedroute.execution.singleflight import OnResult
from embedroute.inputs import Input
from embedroute.routing import CacheKey, halves, may_be_caused_by_input
from embedroute.runtime import tasks

Work = Mapping[CacheKey, Input]
Attempt = Callable[[Work], Awaitable[Results | EmbedrouteError]]
"""Calls the endpoint with a part of the work."""
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
    rest: dict[CacheKey, Input] = {}
    failing: list[Work] = [work]
    is_known_alive = False
    is_first = True
    while failing:
        if not (is_known_alive or (is_first and not concerns_request(error))):
            is_known_alive = await is_alive()
            if not is_known_alive:
                break
        is_first = False
        chunks = [half for chunk in failing for half in halves(chunk)]
        outcomes = await _attempt_all(chunks, attempt, on_result, at_once)
        is_known_alive = is_known_alive or len(outcomes) < len(chunks)
        failing = []
        for chunk, outcome in outcomes:
            if not (isinstance(outcome, UpstreamError) and is_about_inputs(outcome)):
                rest |= chunk
                error = outcome
            elif len(chunk) == 1:
                alone |= dict.fromkeys(chunk, outcome)
            else:
                failing.append(chunk)
    if alone and not (is_known_alive or await is_alive()):
        return Bisection({}, work, error)
    for chunk in failing:
        rest |= chunk
    return Bisection(alone, rest, error)


def concerns_request(error: EmbedrouteError) -> bool:
    """Return whether an error may concern what all inputs of a request have in common."""
    return isinstance(error, Rejected) and not isinstance(error, RejectedByPage)


def is_about_inputs(error: EmbedrouteError) -> bool:
    """Return whether halving a call may tell more about its error."""
    by_input = isinstance(error, UpstreamRejectedInput | BatchTooLarge)
    return by_input or may_be_caused_by_input(error)


async def _attempt_all(
    chunks: list[dict[CacheKey, Input]], attempt: Attempt, on_result: OnResult, at_once: int
) -> list[tuple[dict[CacheKey, Input], EmbedrouteError]]:
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
