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
    UpstreamAuthError,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.routing import (
    RetryBudget,
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
        (FieldRejected("encoding_format"), 1, RetryDecision.REPEAT),
        (Rejected("flagged"), 1, RetryDecision.NEXT),
        (RejectedByPage("blocked"), 1, RetryDecision.NEXT),
        (BatchTooLarge("many"), 1, RetryDecision.NEXT),
        (RateLimited("slow down"), 1, RetryDecision.NEXT),
        (UpstreamAuthError("who?"), 1, RetryDecision.NEXT),
        (UpstreamModelNotFound("what?"), 1, RetryDecision.NEXT),
        (UpstreamTimeout("slow"), 1, RetryDecision.NEXT),
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
        (ConfigError(["extra"]), 1, RetryDecision.STOP),
        (EmbedrouteError("?"), 1, RetryDecision.STOP),
    ],
)
def test_the_error_class_decides_what_follows(failure, attempt, then):
    """Only upstream failures are retried at the same endpoint, except timeouts."""
    assert then is decide_next(failure, attempt, RetryPolicy(attempts=3))


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
    assert then is decide_next(failure, attempt, RetryPolicy(attempts=3), inputs=2)


def test_bisections_have_an_allowance_of_their_own():
    budget = RetryBudget(share=0.0, floor=0)
    allowed = sum(budget.allow_bisection(0.0) for _ in range(1000))
    assert not budget.allow(0.0)
    assert 200 < allowed < 1000

    budget.record_call(0.0)
    assert budget.allow_bisection(0.0)
    assert budget.allow_bisection(60.0)


def test_a_policy_of_one_attempt_never_retries():
    assert RetryDecision.NEXT is decide_next(
        UpstreamUnavailable("reset"), 1, RetryPolicy(attempts=1)
    )


@given(st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_the_backoff_is_full_jitter_with_a_doubling_bound(attempt, chance):
    policy = RetryPolicy(first_wait=0.05, longest_wait=2.0)
    bound = min(2.0, 0.05 * 2 ** (attempt - 1))

    assert chance * bound == wait_before(
        UpstreamUnavailable("reset"), attempt, policy, lambda: chance
    )
    assert 0.0 == wait_before(ConnectError("refused"), attempt, policy, lambda: chance)


@pytest.mark.parametrize(
    ("asked", "wait"), [(1.5, 1.5), (0.01, 0.025), (0.0, 0.025), (None, 0.025)]
)
def test_the_backoff_is_at_least_the_retry_after(asked, wait):
    """A 503 may carry Retry-After; calling earlier would be useless."""
    policy = RetryPolicy(first_wait=0.05)

    assert wait == wait_before(
        UpstreamUnavailable("busy", retry_after=asked), 1, policy, lambda: 0.5
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
    ("failures", "told"),
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
def test_the_most_helpful_error_is_reported(failures, told):
    """The first retryable error, else the shortest cool-down; a rejected gateway key comes last."""
    assert told is error_to_report(failures)


def test_retries_are_a_share_of_recent_calls_over_a_floor():
    budget = RetryBudget(share=0.2, floor=3, window=10.0)

    assert [True] * 3 + [False] == [budget.allow(0.0) for _ in range(4)]
    for _ in range(10):
        budget.record_call(0.0)
    assert [True, True, False] == [budget.allow(0.0) for _ in range(3)]


def test_a_reserved_retry_is_granted_once():
    budget = RetryBudget(share=0.0, floor=2)

    assert budget.allow(0.0)
    enter = budget.reserve_one()

    assert [True, True, False] == [enter(0.0) for _ in range(3)]


def test_the_budget_forgets_after_its_window():
    budget = RetryBudget(share=0.5, floor=0, window=10.0)
    assert not budget.allow(0.0)
    budget.record_call(0.0)
    budget.record_call(0.0)

    assert [True, False] == [budget.allow(5.0), budget.allow(5.0)]
    assert not budget.allow(10.1)
    budget.record_call(16.0)
    assert not budget.allow(16.0)
    budget.record_call(16.0)
    assert [True, False] == [budget.allow(16.0), budget.allow(16.0)]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=300))
def test_a_retry_storm_stays_within_the_budget(steps):
    """In any window the retries stay within the floor and a fifth of the calls."""
    budget, now, calls, retries = RetryBudget(share=0.2, floor=5, window=10.0), 0.0, [], []
    for wait, calling in steps:
        now += wait
        if calling:
            budget.record_call(now)
            calls.append(now)
        elif budget.allow(now):
            retries.append(now)
            recent = sum(now - at <= 10.0 for at in calls)
            assert sum(now - at <= 10.0 for at in retries) <= 5 + 0.2 * recent
