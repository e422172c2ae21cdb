"""Decides what follows a failed attempt: a decision table and a jittered backoff.

``execution/dispatcher.py`` carries the decisions out, within the limits of ``retry_budget.py``.
Time and randomness are arguments.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final, TypeGuard

from embedroute.config import RetryPolicy
from embedroute.errors import (
    BatchTooLarge,
    ConnectError,
    EmbedrouteError,
    EndpointBusy,
    FieldRejected,
    InvalidUpstreamResponse,
    InvalidVector,
    MissingRows,
    NoHealthyEndpoint,
    Overloaded,
    PoolTimeout,
    RateLimited,
    Rejected,
    RejectedByPage,
    TLSError,
    UpstreamAuthError,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.routing.registry import ResolvedEndpoint


class RetryDecision(StrEnum):
    """What follows a failed attempt at an endpoint."""

    RETRY = "retry"
    """Make the same call again at the same endpoint, after a backoff."""
    OMIT_FIELD = "omit_field"
    """Call the same endpoint again at once, without the field that it has rejected."""
    NEXT = "next"
    """Call the next endpoint."""
    HALVE = "halve"
    """Make two calls with half of the inputs each. With one input, ``NEXT`` is decided instead."""
    BISECT = "bisect"
    """Find the inputs that fail alone. With one input, ``NEXT`` is decided instead."""
    STOP = "stop"
    """Report the error to the client: no endpoint can serve the request."""


OVERLOADED: Final = frozenset({502, 503, 504})
"""Statuses of an upstream that is overloaded, restarting or unreachable behind a proxy."""


def may_be_caused_by_input(failure: EmbedrouteError) -> bool:
    """Return whether one input of a call may have caused its failure, which does not say so.

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


def depends_on_inputs(failure: EmbedrouteError) -> TypeGuard[UpstreamError]:
    """Return whether a call with fewer inputs may succeed, or show which input has failed.

    The upstream blames an input or the size of the call, or an input may have caused the failure.
    """
    is_explained = isinstance(failure, UpstreamRejectedInput | BatchTooLarge)
    return is_explained or may_be_caused_by_input(failure)


def may_be_broken_by_input(failure: EmbedrouteError) -> TypeGuard[UpstreamError]:
    """Return whether an input may have broken the server that was called, or be left out by it.

    A server that crashes resets the connection, or a proxy in front of it answers 502. Far more
    often the endpoint itself fails, so this is examined only when nothing else is left to try.
    Any other invalid response, such as vectors of a wrong width, is the endpoint's fault. So is a
    response with Retry-After, and until then no call may be made.
    """
    if not isinstance(failure, UpstreamUnavailable) or is_at_capacity(failure):
        return False
    if failure.retry_after:
        return False
    if isinstance(failure, InvalidUpstreamResponse):
        return isinstance(failure, MissingRows) and not failure.already_recorded
    others = ConnectError | UpstreamTimeout | PoolTimeout
    return not isinstance(failure, others) and not failure.already_recorded


def may_concern_request(failure: EmbedrouteError) -> bool:
    """Return whether what all inputs of a call have in common may have caused its failure.

    This is an unexplained 4xx. The page of a firewall concerns single inputs.
    """
    return isinstance(failure, Rejected) and not isinstance(failure, RejectedByPage)


DECISIONS: Final[tuple[tuple[type[EmbedrouteError], RetryDecision], ...]] = (
    (UpstreamRejectedInput, RetryDecision.STOP),
    (BatchTooLarge, RetryDecision.HALVE),
    # When no endpoint is left, the dispatcher may wait for a rate limit to end.
    (RateLimited, RetryDecision.NEXT),
    (UpstreamAuthError, RetryDecision.NEXT),
    (UpstreamModelNotFound, RetryDecision.NEXT),
    # The endpoint may be overloaded, and a retry adds load.
    (UpstreamTimeout, RetryDecision.NEXT),
    (TLSError, RetryDecision.NEXT),
    (ConnectError, RetryDecision.RETRY),
    (InvalidUpstreamResponse, RetryDecision.RETRY),
    (UpstreamUnavailable, RetryDecision.RETRY),
    (FieldRejected, RetryDecision.OMIT_FIELD),
    # The page of a firewall may be the response to one input.
    (RejectedByPage, RetryDecision.BISECT),
    # Another endpoint may accept what this one rejects without a reason.
    (UpstreamError, RetryDecision.NEXT),
    # A connection to another endpoint may be open although this process can open none.
    (Overloaded, RetryDecision.NEXT),
)
"""Error class → decision; the first matching class decides, and ``STOP`` if there is none."""


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

    The first of these that exists:

    1. the first failure that blames an input, or that is retryable and neither a rate limit nor an
       overload
    2. the rate limit that ends first
    3. the overload that ends first
    4. the first failure
    """
    rate_limits = [failure for failure in failures if isinstance(failure, RateLimited)]
    overloads = [failure for failure in failures if isinstance(failure, Overloaded)]
    for failure in failures:
        is_wait = isinstance(failure, RateLimited | Overloaded)
        blames_input = isinstance(failure, UpstreamRejectedInput)
        if blames_input or (failure.retryable and not is_wait):
            return failure
    waits = rate_limits or overloads or failures[:1]
    return min(waits, key=lambda failure: failure.retry_after or 0.0)


def was_rate_limited(failures: Sequence[EmbedrouteError]) -> bool:
    """Return whether an upstream has answered a call of this request with a rate limit.

    The other rate limits among ``failures`` are cool-downs after earlier calls: of these endpoints,
    none was called.
    """
    return any(
        isinstance(failure, RateLimited) and not failure.already_recorded for failure in failures
    )


def allows_last_resort(failure: EmbedrouteError) -> bool:
    """Return whether a further call may help after every endpoint has failed.

    Not after a timeout: it took its time, and another call adds load. Nor after a failure of TLS,
    which does not change.
    """
    if isinstance(failure, NoHealthyEndpoint):
        return True
    is_final = isinstance(failure, UpstreamTimeout | TLSError)
    return isinstance(failure, UpstreamUnavailable) and not is_final


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
