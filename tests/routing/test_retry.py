"""What follows a failed attempt, how long the backoff is, and which error is reported."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute.errors import (
    BatchTooLarge,
    ConfigError,
    ConnectError,
    ContextTooLong,
    EmbedrouteError,
    FieldRejected,
    InvalidUpstreamResponse,
    InvalidVector,
    NoHealthyEndpoint,
    Overloaded,
    RateLimited,
    Rejected,
    RejectedByPage,
    ResourcesExhausted,
    TLSError,
    UpstreamAuthError,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.routing import (
    RetryDecision,
    RetryPolicy,
    decide_next,
    error_to_report,
    wait_before,
)


@pytest.mark.parametrize(
    ("failure", "attempt", "then"),
    [
        (UpstreamRejectedInput("bad"), 1, RetryDecision.STOP),
        (ContextTooLong("long"), 1, RetryDecision.STOP),
        (FieldRejected("encoding_format"), 1, RetryDecision.OMIT_FIELD),
        (Rejected("flagged"), 1, RetryDecision.NEXT),
        (RejectedByPage("blocked"), 1, RetryDecision.NEXT),
        (BatchTooLarge("many"), 1, RetryDecision.NEXT),
        (RateLimited("slow down"), 1, RetryDecision.NEXT),
        (UpstreamAuthError("who?"), 1, RetryDecision.NEXT),
        (UpstreamModelNotFound("what?"), 1, RetryDecision.NEXT),
        (UpstreamTimeout("slow"), 1, RetryDecision.NEXT),
        (TLSError("self-signed"), 1, RetryDecision.NEXT),
        (ConnectError("refused"), 1, RetryDecision.RETRY),
        (ConnectError("refused"), 2, RetryDecision.RETRY),
        (ConnectError("refused"), 3, RetryDecision.NEXT),
        (InvalidUpstreamResponse("NaN"), 1, RetryDecision.RETRY),
        (InvalidUpstreamResponse("NaN"), 3, RetryDecision.NEXT),
        (UpstreamUnavailable("reset"), 2, RetryDecision.RETRY),
        (UpstreamUnavailable("reset"), 3, RetryDecision.NEXT),
        (UpstreamUnavailable("reset"), 4, RetryDecision.NEXT),
        (UpstreamUnavailable("busy", retry_after=2), 1, RetryDecision.RETRY),
        (UpstreamUnavailable("busy", retry_after=2.1), 1, RetryDecision.NEXT),
        (UpstreamError("?"), 1, RetryDecision.NEXT),
        (ResourcesExhausted("no descriptors"), 1, RetryDecision.NEXT),
        (ConfigError(["extra"]), 1, RetryDecision.STOP),
        (EmbedrouteError("?"), 1, RetryDecision.STOP),
    ],
)
def test_the_error_class_decides_what_follows(failure, attempt, then):
    """Only upstream failures are retried at the same endpoint, except timeouts."""
    assert then is decide_next(failure, attempt, RetryPolicy(repeats=0, attempts=3))


DOWN = UpstreamUnavailable("broken", upstream_status=500)


@pytest.mark.parametrize(
    ("failure", "attempt", "then"),
    [
        (BatchTooLarge("many"), 1, RetryDecision.HALVE),
        (BatchTooLarge("many"), 3, RetryDecision.HALVE),
        (DOWN, 1, RetryDecision.RETRY),
        (DOWN, 3, RetryDecision.BISECT),
        (UpstreamUnavailable("busy", upstream_status=503), 3, RetryDecision.NEXT),
        (UpstreamUnavailable("proxy", upstream_status=522), 3, RetryDecision.NEXT),
        (UpstreamUnavailable("reset"), 3, RetryDecision.NEXT),
        (InvalidVector("zero"), 3, RetryDecision.BISECT),
        (InvalidUpstreamResponse("2 rows for 3 inputs"), 3, RetryDecision.NEXT),
        (RejectedByPage("blocked"), 1, RetryDecision.BISECT),
        (Rejected("flagged"), 1, RetryDecision.NEXT),
        (UpstreamRejectedInput("empty"), 1, RetryDecision.STOP),
        (UpstreamTimeout("slow"), 1, RetryDecision.NEXT),
    ],
)
def test_a_call_of_several_inputs_may_be_divided(failure, attempt, then):
    assert then is decide_next(failure, attempt, RetryPolicy(repeats=0, attempts=3), inputs=2)


def test_a_policy_of_one_attempt_never_retries():
    assert RetryDecision.NEXT is decide_next(
        UpstreamUnavailable("reset"), 1, RetryPolicy(repeats=0, attempts=1)
    )


@given(st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_the_backoff_is_full_jitter_with_a_doubling_bound(attempt, chance):
    policy = RetryPolicy(repeats=0, first_wait=0.05, longest_wait=2.0)
    bound = min(2.0, 0.05 * 2 ** (attempt - 1))

    assert chance * bound == wait_before(
        UpstreamUnavailable("reset"), attempt, policy, lambda: chance
    )
    assert 0.0 == wait_before(ConnectError("refused"), attempt, policy, lambda: chance)


@pytest.mark.parametrize(
    ("retry_after", "wait"), [(1.5, 1.5), (0.01, 0.025), (0.0, 0.025), (None, 0.025)]
)
def test_the_backoff_is_at_least_the_retry_after(retry_after, wait):
    """A 503 may carry Retry-After; calling earlier would be useless."""
    policy = RetryPolicy(repeats=0, first_wait=0.05)

    assert wait == wait_before(
        UpstreamUnavailable("busy", retry_after=retry_after), 1, policy, lambda: 0.5
    )


LIMIT_9, LIMIT_2, LIMIT = (
    RateLimited("9", retry_after=9),
    RateLimited("2", retry_after=2),
    RateLimited("?"),
)
DOWN, BAD, KEY, REST = (
    UpstreamUnavailable("down"),
    InvalidUpstreamResponse("bad"),
    UpstreamAuthError("key"),
    NoHealthyEndpoint("rest", retry_after=3),
)
BUSY = Overloaded("busy", retry_after=1)


@pytest.mark.parametrize(
    ("failures", "reported"),
    [
        ([DOWN], DOWN),
        ([DOWN, BAD], DOWN),
        ([LIMIT_9, DOWN], DOWN),
        ([KEY, DOWN], DOWN),
        ([KEY], KEY),
        ([REST, KEY], REST),
        ([KEY, BUSY, REST], BUSY),
        ([KEY, LIMIT_2], LIMIT_2),
        ([LIMIT_9, LIMIT_2], LIMIT_2),
        ([LIMIT_9, LIMIT], LIMIT),
        ([REST, LIMIT_9], LIMIT_9),
        ([REST, BUSY], BUSY),
        ([REST], REST),
    ],
)
def test_the_most_helpful_error_is_reported(failures, reported):
    """A retryable failure, or one that blames an input; else the shortest wait; a rejected key last."""
    assert reported is error_to_report(failures)


@pytest.mark.parametrize("kind", [RateLimited, UpstreamUnavailable])
def test_an_endpoint_that_is_full_is_not_called_again_after_a_random_wait(kind):
    """It is called again as soon as another call ends, or another endpoint is called."""
    failure = kind("x", upstream_status=503)
    failure.at_capacity = True
    assert decide_next(failure, 1, RetryPolicy()) is RetryDecision.NEXT
