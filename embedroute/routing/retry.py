"""What to do after a failed attempt, and how long to wait: a table, a jittered delay and a budget. Pure."""

from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from embedroute.errors import (
    BatchTooLarge,
    ConnectError,
    EmbedrouteError,
    InvalidUpstreamResponse,
    Overloaded,
    RateLimited,
    UpstreamAuthError,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.routing.registry import ResolvedEndpoint


class RetryDecision(StrEnum):
    """What follows a failed attempt."""

    RETRY = "retry"
    NEXT = "next"
    HALVE = "halve"
    STOP = "stop"


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often one endpoint is tried for one chunk, and the bounds of the wait between, in seconds."""

    attempts: int = 2
    first_wait: float = 0.05
    longest_wait: float = 2.0


JUDGEMENTS: Final[tuple[tuple[type[EmbedrouteError], RetryDecision], ...]] = (
    (UpstreamRejectedInput, RetryDecision.STOP),
    (BatchTooLarge, RetryDecision.HALVE),
    (RateLimited, RetryDecision.NEXT),
    (UpstreamAuthError, RetryDecision.NEXT),
    (UpstreamModelNotFound, RetryDecision.NEXT),
    (UpstreamTimeout, RetryDecision.NEXT),
    (ConnectError, RetryDecision.RETRY),
    (InvalidUpstreamResponse, RetryDecision.RETRY),
    (UpstreamUnavailable, RetryDecision.RETRY),
    (UpstreamError, RetryDecision.NEXT),
)
"""Failure → what follows; the first class that fits decides. A timeout is not repeated: it adds load where it hurts."""


def decide_next(failure: EmbedrouteError, attempt: int, policy: RetryPolicy) -> RetryDecision:
    """Decide what follows the ``attempt``-th failure (counted from 1) at one endpoint; it may ask for too long a rest."""
    then = next(
        (then for kind, then in JUDGEMENTS if isinstance(failure, kind)), RetryDecision.STOP
    )
    enough = attempt >= policy.attempts or (failure.retry_after or 0.0) > policy.longest_wait
    return RetryDecision.NEXT if then is RetryDecision.RETRY and enough else then


def wait_before(
    failure: EmbedrouteError, attempt: int, policy: RetryPolicy, random: Callable[[], float]
) -> float:
    """Seconds to wait before trying again: none where nothing was sent, else full jitter (AWS, "Exponential Backoff").

    It is never less than the upstream asked for.
    """
    if isinstance(failure, ConnectError):
        return 0.0
    return max(
        failure.retry_after or 0.0,
        random() * min(policy.longest_wait, policy.first_wait * 2 ** (attempt - 1)),
    )


def error_to_report(failures: Sequence[EmbedrouteError]) -> EmbedrouteError:
    """Choose what the client is told when every endpoint failed: trouble that may heal, a rest, then what will not heal."""
    real = [failure for failure in failures if not isinstance(failure, RateLimited | Overloaded)]
    limited = [failure for failure in failures if isinstance(failure, RateLimited)]
    if healing := [failure for failure in real if failure.retryable]:
        return healing[0]
    resting = [failure for failure in failures if failure.retryable]
    return min(limited or resting or failures[:1], key=lambda failure: failure.retry_after or 0.0)


class RetryBudget:
    """Lets no retry through that would make those of the last seconds more than a share of their calls and a floor.

    So Finagle's ``RetryBudget`` does. A call is a chunk's first try at an endpoint: were that a retry, there would be
    no fallback. Whatever is tried again is one, be it at once, after a backoff or after the rest that a 429 asked for.
    """

    def __init__(self, share: float = 0.2, floor: int = 10, window: float = 10.0) -> None:
        """Allow ``share`` of the calls of the last ``window`` seconds, and ``floor`` besides."""
        self._share = share
        self._floor = floor
        self._window = window
        self._calls: deque[float] = deque()
        self._retries: deque[float] = deque()

    def record_call(self, now: float) -> bool:
        """Count a first try, which is always granted."""
        self._calls.append(now)
        self._forget(now)
        return True

    def allow(self, now: float) -> bool:
        """Take one retry out of the budget, if there is one."""
        self._forget(now)
        if len(self._retries) + 1 > self._floor + self._share * len(self._calls):
            return False
        self._retries.append(now)
        return True

    def reserve_one(self) -> Callable[[float], bool]:
        """Grant one try that was taken out of the budget before, and ask for each that comes after it."""
        paid = iter([True])
        return lambda now: next(paid, False) or self.allow(now)

    def _forget(self, now: float) -> None:
        for seen in (self._calls, self._retries):
            while seen and now - seen[0] > self._window:
                seen.popleft()


def was_called(failures: Sequence[EmbedrouteError]) -> bool:
    """Whether any of the rests was asked for in answer to a call: whoever only met a rest has not tried yet."""
    return any(
        isinstance(failure, RateLimited) and not failure.already_recorded for failure in failures
    )


def limited(
    candidates: Sequence[ResolvedEndpoint], failures: Sequence[EmbedrouteError]
) -> list[ResolvedEndpoint]:
    """Those of the ``candidates`` that asked for a rest; ``failures`` are of those tried so far, in order."""
    return [
        it
        for it, failure in zip(candidates, failures, strict=False)
        if isinstance(failure, RateLimited)
    ]
