"""Decides what follows a failed attempt: a decision table and a jittered backoff.

Time and randomness are arguments.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final

from embedroute.config import RetryPolicy
from embedroute.errors import (
    BatchTooLarge,
    ConnectError,
    EmbedrouteError,
    EndpointBusy,
    FieldRejected,
    InvalidUpstreamResponse,
    InvalidVector,
    NoHealthyEndpoint,
    Overloaded,
    RateLimited,
    Rejected,
    RejectedByPage,
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
    REPEAT = "repeat"
    NEXT = "next"
    HALVE = "halve"
    BISECT = "bisect"
    STOP = "stop"


OVERLOADED: Final = frozenset({502, 503, 504})
"""Statuses of an upstream that is overloaded, restarting or unreachable behind a proxy."""


def may_be_caused_by_input(failure: EmbedrouteError) -> bool:
    """Return whether one input of a call may have caused its failure.

    Servers respond with a 500, with an invalid vector or with the page of a firewall to single
    texts, and a 4xx may concern anything. A status of overload, a timeout, a broken connection and
    a response without one row per input concern the endpoint.
    """
    if isinstance(failure, InvalidVector | Rejected):
        return True
    if isinstance(failure, InvalidUpstreamResponse):
        return False
    status = failure.upstream_status if isinstance(failure, UpstreamUnavailable) else None
    return status is not None and 500 <= status < 520 and status not in OVERLOADED


DECISIONS: Final[tuple[tuple[type[EmbedrouteError], RetryDecision], ...]] = (
    (UpstreamRejectedInput, RetryDecision.STOP),
    (BatchTooLarge, RetryDecision.HALVE),
    (RateLimited, RetryDecision.NEXT),
    (UpstreamAuthError, RetryDecision.NEXT),
    (UpstreamModelNotFound, RetryDecision.NEXT),
    (UpstreamTimeout, RetryDecision.NEXT),
    (ConnectError, RetryDecision.RETRY),
    (InvalidUpstreamResponse, RetryDecision.RETRY),
    (UpstreamUnavailable, RetryDecision.RETRY),
    (FieldRejected, RetryDecision.REPEAT),
    (RejectedByPage, RetryDecision.BISECT),
    (UpstreamError, RetryDecision.NEXT),
    (Overloaded, RetryDecision.NEXT),
)
"""Error class → decision; the first matching class decides.

Another endpoint may accept what one rejects without a reason, and a connection to it may be open
when this process has no file descriptors left. A timeout is not retried at the same
endpoint: it may be overloaded, and a retry adds load. When no endpoint is left, the dispatcher may
wait for a rate limit to end and try that endpoint again (``Dispatcher._give_up``).
"""


def decide_next(
    failure: EmbedrouteError, attempt: int, policy: RetryPolicy, inputs: int = 1
) -> RetryDecision:
    """Decide what follows the ``attempt``-th failure (counted from 1) at one endpoint.

    The call had ``inputs`` inputs. A retry becomes ``BISECT`` or ``NEXT`` when no attempt is left,
    or when the upstream's Retry-After exceeds ``policy.longest_wait``.
    """
    if is_at_capacity(failure):
        return RetryDecision.NEXT
    decision = next(
        (decision for kind, decision in DECISIONS if isinstance(failure, kind)),
        RetryDecision.STOP,
    )
    exhausted = attempt >= policy.attempts or (failure.retry_after or 0.0) > policy.longest_wait
    if decision is RetryDecision.RETRY and exhausted:
        return decide_without_retry(failure, inputs)
    if inputs == 1 and decision in {RetryDecision.HALVE, RetryDecision.BISECT}:
        return RetryDecision.NEXT
    return decision


def is_at_capacity(failure: EmbedrouteError) -> bool:
    """Return whether an endpoint was only full: it may serve the call when another one ends."""
    if isinstance(failure, EndpointBusy):
        return True
    return isinstance(failure, UpstreamError) and failure.at_capacity and not failure.retry_after


def decide_without_retry(failure: EmbedrouteError, inputs: int) -> RetryDecision:
    """Decide what follows if the same call may not be made again at the same endpoint."""
    if inputs > 1 and may_be_caused_by_input(failure):
        return RetryDecision.BISECT
    return RetryDecision.NEXT


def wait_before(
    failure: EmbedrouteError, attempt: int, policy: RetryPolicy, random: Callable[[], float]
) -> float:
    """Return the seconds to wait before a retry.

    A failed connection is retried at once, because nothing was sent. Other failures use full
    jitter (AWS, "Exponential Backoff and Jitter"), but never less than the upstream's Retry-After.
    """
    if isinstance(failure, ConnectError):
        return 0.0
    return max(
        failure.retry_after or 0.0,
        random() * min(policy.longest_wait, policy.first_wait * 2 ** (attempt - 1)),
    )


def error_to_report(failures: Sequence[EmbedrouteError]) -> EmbedrouteError:
    """Choose the error that the client gets when every endpoint failed.

    Retryable errors of the upstreams come first, then the rate limit or overload that ends first,
    then permanent errors.
    """
    real = [failure for failure in failures if not isinstance(failure, RateLimited | Overloaded)]
    rate_limits = [failure for failure in failures if isinstance(failure, RateLimited)]
    if retryable := [failure for failure in real if failure.retryable]:
        return retryable[0]
    waits = [failure for failure in failures if failure.retryable]
    return min(rate_limits or waits or failures[:1], key=lambda failure: failure.retry_after or 0.0)


def has_called_upstream(failures: Sequence[EmbedrouteError]) -> bool:
    """Return whether at least one rate limit is the response to a call of this request.

    A request that only met cool-downs from earlier calls has not tried an endpoint yet.
    """
    return any(
        isinstance(failure, RateLimited) and not failure.already_recorded for failure in failures
    )


def may_be_repeated(failure: EmbedrouteError) -> bool:
    """Return whether a further call may help after every endpoint has failed.

    A timeout is not repeated: it took its time, and another call adds load.
    """
    if isinstance(failure, NoHealthyEndpoint):
        return True
    return isinstance(failure, UpstreamUnavailable) and not isinstance(failure, UpstreamTimeout)


def full_endpoints(
    candidates: Sequence[ResolvedEndpoint], failures: Sequence[EmbedrouteError]
) -> list[ResolvedEndpoint]:
    """Return the ``candidates`` that can serve the call when another one ends.

    ``failures`` holds the errors of the candidates tried so far, in their order.
    """
    return [
        candidate
        for candidate, failure in zip(candidates, failures, strict=False)
        if is_at_capacity(failure)
    ]


def rate_limited_endpoints(
    candidates: Sequence[ResolvedEndpoint], failures: Sequence[EmbedrouteError]
) -> list[ResolvedEndpoint]:
    """Return the ``candidates`` that are rate limited.

    ``failures`` holds the errors of the candidates tried so far, in their order.
    """
    return [
        candidate
        for candidate, failure in zip(candidates, failures, strict=False)
        if isinstance(failure, RateLimited)
    ]
