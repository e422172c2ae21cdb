"""The health of an endpoint: breaker, cool-downs and percentiles. No clock is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute.errors import (
    LONGEST_RETRY_AFTER,
    BatchTooLarge,
    ConnectError,
    EmbedrouteError,
    InvalidUpstreamResponse,
    NoHealthyEndpoint,
    PoolTimeout,
    QuotaExhausted,
    RateLimited,
    Rejected,
    RejectedByPage,
    UpstreamAuthError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.routing import SAMPLES, SUSPECTS, WINDOW, BreakerPolicy, EndpointHealth, State
from tests.support.reachable import count_reachable

POLICY = BreakerPolicy(
    failures=3,
    minimum_calls=3,
    slow_start=1,
    initial_cooldown=5.0,
    longest_cooldown=60.0,
    rejection_cooldown=30.0,
)


def counted(failure):
    failure.already_recorded = True
    return failure


def opened(at: float = 0.0) -> EndpointHealth:
    health = EndpointHealth(POLICY)
    for _ in range(POLICY.failures):
        health.record_failure(health.acquire(at), at)
    return health


def test_enough_failures_in_a_row_open_the_breaker():
    health = EndpointHealth(POLICY)
    states = []
    for _ in range(4):
        ticket = health.acquire(0.0)
        states.append((health.state(0.0), bool(ticket)))
        health.record_failure(ticket, 0.0)

    assert [(State.CLOSED, True)] * 3 + [(State.OPEN, False)] == states


def test_a_success_resets_the_failure_count():
    health = EndpointHealth(POLICY)
    for _ in range(10):
        health.record_failure(health.acquire(0.0), 0.0)
        health.record_failure(health.acquire(0.0), 0.0)
        health.record_success(health.acquire(0.0), 0.0, 0.1, 1)

    assert State.CLOSED is health.state(0.0)


@pytest.mark.parametrize(
    ("now", "state", "ready"),
    [
        (0.0, State.OPEN, 5.0),
        (4.9, State.OPEN, 5.0),
        (5.0, State.HALF_OPEN, 5.0),
        (9.0, State.HALF_OPEN, 9.0),
    ],
)
def test_an_open_breaker_half_opens_after_its_cooldown(now, state, ready):
    health = opened()

    assert (state, ready) == (health.state(now), health.available_at(now))
    assert (state is State.HALF_OPEN) == bool(health.acquire(now))


def test_cooldowns_double_up_to_the_longest_and_a_success_resets_them():
    health, now, rests = opened(), 0.0, []
    for _ in range(6):
        rests.append(health.available_at(now) - now)
        now = health.available_at(now)
        health.record_failure(health.acquire(now), now)

    assert [5.0, 10.0, 20.0, 40.0, 60.0, 60.0] == rests
    now = health.available_at(now)
    health.record_success(health.acquire(now), now, 0.1, 1)
    for _ in range(3):
        health.record_failure(health.acquire(now), now)
    assert now + 5.0 == health.available_at(now)


def test_an_outage_of_weeks_does_not_overflow_the_cooldown():
    """2 ** 2000 seconds would be more than a float holds."""
    health, now = opened(), 0.0
    for _ in range(2000):
        now = health.available_at(now)
        health.record_failure(health.acquire(now), now)

    assert now + 60.0 == health.available_at(now)


def test_calls_from_before_the_breaker_opened_do_not_extend_its_cooldown():
    """A burst of a hundred failures at once is one outage, and a breaker first opens for at most 30 s."""
    health = EndpointHealth(POLICY)
    tickets = [health.acquire(0.0) for _ in range(100)]
    for at, ticket in enumerate(tickets):
        health.record_failure(ticket, at / 1000)

    assert 5.0 + 0.002 == health.available_at(0.1)


def test_a_rejected_key_opens_the_breaker_at_once_for_a_fixed_time():
    health, now = EndpointHealth(POLICY), 0.0
    for _ in range(4):
        health.record_rejection(health.acquire(now), now)
        assert now + 30.0 == health.available_at(now)
        now += 30.0


@pytest.mark.parametrize(
    ("end", "reported"),
    [
        (lambda health, ticket: health.release(ticket), UpstreamAuthError),
        (lambda health, ticket: health.record_failure(ticket, 30.0), NoHealthyEndpoint),
        (
            lambda health, ticket: health.record_rejection(
                ticket, 30.0, UpstreamModelNotFound("what?")
            ),
            UpstreamModelNotFound,
        ),
        (lambda health, ticket: health.record_rate_limit(ticket, 30.0, 5.0), RateLimited),
        (lambda health, ticket: health.record_success(ticket, 30.0, 0.1, 1), NoHealthyEndpoint),
    ],
)
def test_a_rejection_is_reported_until_a_probe_succeeds(end, reported):
    health = EndpointHealth(POLICY)
    health.record_rejection(health.acquire(0.0), 0.0, UpstreamAuthError("who?"))
    assert UpstreamAuthError is type(health.unavailable_error(29.0))
    end(health, health.acquire(30.0))

    assert reported is type(health.unavailable_error(30.0))


@pytest.mark.parametrize("kind", [UpstreamAuthError, UpstreamModelNotFound])
def test_a_stored_rejection_does_not_quote_the_upstream(kind):
    health, refusal = (
        EndpointHealth(POLICY),
        kind("The upstream answered 404: what is 'CANARY'?", upstream_status=404),
    )
    refusal.provider, refusal.matched_text = "acme", "CANARY"
    refusal.__cause__ = ValueError("CANARY")
    health.record_error(health.acquire(0.0), 0.0, refusal)

    reported, again = health.unavailable_error(1.0), health.unavailable_error(1.0)

    assert (kind, kind.code, "acme", 404) == (
        type(reported),
        reported.code,
        reported.provider,
        reported.upstream_status,
    )
    assert reported.message.startswith("The provider acme ")
    assert "CANARY" not in repr(
        (vars(health._breaker.refusal), health._breaker.refusal, vars(reported), reported)
    )
    assert (None, None, None) == (reported.__cause__, reported.__context__, reported.__traceback__)
    assert reported is not again


@pytest.mark.parametrize(
    ("rests", "ready"),
    [
        ([(0.0, 7.0)], 7.0),
        ([(0.0, 7.0), (1.0, 2.0)], 7.0),
        ([(0.0, 7.0), (1.0, 9.0)], 10.0),
        ([(0.0, 0.0)], 0.0),
        ([(0.0, 1e9)], LONGEST_RETRY_AFTER),
    ],
)
def test_a_rate_limit_cools_down_for_its_retry_after(rests, ready):
    """The longest Retry-After applies, up to two minutes.

    It is not a failure, so nothing else changes.
    """
    health = EndpointHealth(POLICY)
    tickets = [health.acquire(0.0) for _ in rests]
    for ticket, (now, rest) in zip(tickets, rests, strict=True):
        health.record_rate_limit(ticket, now, rest)

    assert (ready, State.CLOSED, False) == (
        health.available_at(0.0),
        health.state(0.0),
        bool(health.failure_share(0.0)),
    )
    assert health.acquire(ready)


@pytest.mark.parametrize(
    ("event", "significant"),
    [
        (lambda health, ticket: health.record_failure(ticket, 0.0), True),
        (lambda health, ticket: health.record_rejection(ticket, 0.0), True),
        (lambda health, ticket: health.record_rate_limit(ticket, 0.0, 1.0), False),
        (lambda health, ticket: health.release(ticket), False),
        (lambda health, ticket: health.record_success(ticket, 0.0, 1.0, 1), False),
    ],
)
def test_only_upstream_failures_move_an_endpoint_back(event, significant):
    health = EndpointHealth(POLICY)
    event(health, health.acquire(0.0))
    event(health, health.acquire(0.0))

    assert (significant, False) == (bool(health.outage(29.9)), bool(health.outage(31.0)))


@pytest.mark.parametrize(
    ("failure", "state", "ready", "significant"),
    [
        (UpstreamUnavailable("down"), State.OPEN, 6.0, True),
        (InvalidUpstreamResponse("nonsense"), State.CLOSED, 1.0, True),
        (UpstreamTimeout("slow"), State.OPEN, 6.0, True),
        (PoolTimeout("full"), State.CLOSED, 1.0, False),
        (counted(UpstreamUnavailable("down")), State.CLOSED, 1.0, False),
        (UpstreamAuthError("who?"), State.OPEN, 31.0, True),
        (UpstreamModelNotFound("what?"), State.OPEN, 31.0, True),
        (RateLimited("rest", retry_after=7), State.CLOSED, 8.0, False),
        (RateLimited("rest"), State.CLOSED, 2.0, False),
        (UpstreamRejectedInput("bad"), State.CLOSED, 1.0, False),
        (BatchTooLarge("many"), State.CLOSED, 1.0, False),
        (Rejected("flagged"), State.CLOSED, 1.0, False),
        (RejectedByPage("blocked"), State.CLOSED, 1.0, False),
        (EmbedrouteError("?"), State.CLOSED, 1.0, False),
    ],
)
def test_errors_change_the_health_by_their_class(failure, state, ready, significant):
    """One more upstream failure opens this breaker.

    Errors of the input or of another call do not count.
    """
    health = EndpointHealth(
        BreakerPolicy(
            failures=1,
            minimum_calls=1,
            slow_start=1,
            initial_cooldown=5.0,
            longest_cooldown=60.0,
            rejection_cooldown=30.0,
        )
    )
    health.record_error(health.acquire(1.0), 1.0, failure)

    assert (state, ready, significant) == (
        health.state(1.0),
        health.available_at(1.0),
        bool(health.failure_share(1.0)),
    )


THREE_OPEN = BreakerPolicy(
    failures=3,
    minimum_calls=3,
    slow_start=1,
    initial_cooldown=5.0,
    longest_cooldown=60.0,
    rejection_cooldown=30.0,
)
DOWN, ODD, RESET = (
    UpstreamUnavailable("down", upstream_status=500),
    InvalidUpstreamResponse("NaN"),
    UpstreamUnavailable("reset"),
)
SLOW, DEAD = UpstreamTimeout("slow"), ConnectError("refused")


@pytest.mark.parametrize(
    ("failure", "works", "suspected", "state"),
    [
        (DOWN, ["a", "a", "a", "a", "a"], False, State.CLOSED),
        (ODD, ["a", "a", "a", "a", "a"], False, State.CLOSED),
        (DOWN, ["a", "ab", "ac", "da", "ea"], False, State.CLOSED),
        (DOWN, ["a", "b", "a", "b", "a"], False, State.CLOSED),
        (DOWN, ["a", "b", "c"], True, State.CLOSED),
        (ODD, ["a", "b", "c"], True, State.CLOSED),
        (DOWN, ["a", "bc", "de"], True, State.CLOSED),
        (DOWN, ["a", "b", "", "c"], False, State.CLOSED),
        (DOWN, ["a", "", "a", "b", "c"], True, State.CLOSED),
        (RESET, ["a", "a", "a"], False, State.OPEN),
        (SLOW, ["a", "a", "a"], False, State.OPEN),
        (DEAD, ["a", "a", "a"], False, State.OPEN),
    ],
)
def test_a_failure_that_an_input_may_have_caused_counts_once_per_input(
    failure, works, suspected, state
):
    """Letters are the inputs of failed calls.

    An empty string is an answered call, which resets the count. Enough failures that inputs may
    have caused make the endpoint suspected; others open its breaker.
    """
    health = EndpointHealth(THREE_OPEN)
    for work in works:
        if work:
            health.record_error(health.acquire(0.0), 0.0, failure, list(work))
        else:
            health.record_success(health.acquire(0.0), 0.0, 0.1, 1)

    assert (suspected, state) == (health.suspected, health.state(0.0))


def suspected_health():
    health = EndpointHealth(THREE_OPEN)
    for text in "abc":
        health.record_error(health.acquire(0.0), 0.0, DOWN, [text])
    assert health.suspected
    return health


def test_a_suspected_endpoint_opens_only_if_it_fails_for_a_harmless_text():
    health = suspected_health()
    health.confirm(1.0)
    assert (State.OPEN, False) == (health.state(1.0), health.suspected)

    health = suspected_health()
    health.clear(1.0)
    assert (State.CLOSED, False) == (health.state(1.0), health.suspected)
    health.record_error(health.acquire(1.0), 1.0, DOWN, ["d"])
    assert not health.suspected

    health = suspected_health()
    health.withdraw()
    assert (State.CLOSED, False) == (health.state(1.0), health.suspected)
    health.record_error(health.acquire(1.0), 1.0, DOWN, ["d"])
    assert health.suspected


@pytest.mark.parametrize("settle", ["confirm", "clear", "withdraw"])
def test_a_text_that_fails_as_the_probe_does_not_prolong_the_outage(settle):
    """A half-open breaker admits one probe. Its failure may be due to its input."""
    health = suspected_health()
    health.confirm(0.0)
    ready = health.available_at(0.0)
    permit = health.acquire(ready)
    health.record_error(permit, ready, DOWN, ["bad"])
    assert (True, 0) == (health.suspected, health.acquire(ready))

    if settle == "withdraw":
        health.withdraw()
    else:
        getattr(health, settle)(ready)
    states = {"confirm": State.OPEN, "clear": State.CLOSED, "withdraw": State.HALF_OPEN}
    assert states[settle] is health.state(ready)
    assert bool(health.acquire(ready)) is (settle != "confirm")


@pytest.mark.parametrize(
    ("timeout", "answers", "state"),
    [
        (0.1, [], State.CLOSED),
        (5.0, [], State.OPEN),
        (0.1, [0.05] * 20, State.OPEN),
        (0.1, [0.2] * 20, State.CLOSED),
        (5.0, [60.0] * 20, State.OPEN),
    ],
)
def test_a_timeout_counts_if_the_endpoint_usually_answers_in_that_time(timeout, answers, state):
    """``answers`` are the durations of earlier calls in seconds."""
    health = EndpointHealth(BreakerPolicy(failures=1, minimum_calls=1, slow_start=1))
    for seconds in answers:
        health.record_success(health.acquire(0.0), 0.0, seconds, 1)
    health.record_error(health.acquire(0.0), 0.0, UpstreamTimeout("slow"), ["a"], timeout)

    assert (state is State.OPEN) == bool(health.failure_share(0.0))


def test_a_spent_account_rests_for_longer_each_time():
    health = EndpointHealth(BreakerPolicy(quota_cooldown=300.0, longest_quota_cooldown=1000.0))
    rests = []
    now = 0.0
    for _ in range(4):
        health.record_error(health.acquire(now), now, QuotaExhausted("spent"))
        rests.append(health.available_at(now) - now)
        now = health.available_at(now)

    assert [300.0, 600.0, 1000.0, 1000.0] == rests
    assert isinstance(health.unavailable_error(now), QuotaExhausted)


def test_a_repeated_failing_input_does_not_move_its_endpoint_back():
    health = EndpointHealth(THREE_OPEN)
    for now in (0.0, 20.0, 40.0):
        health.record_error(health.acquire(now), now, DOWN, ["a"])

    assert (True, False) == (bool(health.failure_share(29.0)), bool(health.failure_share(41.0)))


def test_a_failed_probe_opens_the_breaker_unless_its_input_may_be_the_cause():
    health = opened()
    health.record_error(health.acquire(6.0), 6.0, DEAD, ["a"])
    now = health.available_at(6.0)
    assert now > 6.0
    health.record_error(health.acquire(now), now, DOWN, ["a"])

    assert (True, 0) == (health.suspected, health.acquire(now))
    health.confirm(now)
    assert State.OPEN is health.state(now)


def test_bad_inputs_after_an_outage_do_not_open_the_breaker_again():
    health = opened()
    for now in (6.0, 7.0, 8.0):
        health.record_error(health.acquire(now), now, DOWN, [now])
        health.clear(now)

        assert State.CLOSED is health.state(now)


def test_a_failed_harmless_text_opens_the_breaker_also_without_a_suspicion():
    health = EndpointHealth(THREE_OPEN)
    health.confirm(0.0)

    assert (State.OPEN, 5.0) == (health.state(0.0), health.available_at(0.0))


def test_rejected_fields_are_left_out_for_a_while():
    health = EndpointHealth(POLICY)
    health.learn_omitted({"user"}, 0.0)
    health.learn_omitted({"encoding_format"}, 300.0)

    assert {"user", "encoding_format"} == health.omitted(599.0)
    assert {"encoding_format"} == health.omitted(600.0)
    assert not health.omitted(900.0)


@pytest.mark.parametrize("kind", [Rejected, RejectedByPage])
@pytest.mark.parametrize(
    ("works", "served", "suspected"),
    [
        (["a"], None, False),
        (["a", "a", "a"], None, False),
        (["a", "ab", "ca"], None, False),
        (["a", "b"], None, True),
        (["a", "bc"], None, True),
        (["a", "", "b"], None, False),
        (["a", "b", "c", "d"], -29.0, False),
        (["a", "b"], -30.0, True),
    ],
)
def test_two_different_rejected_inputs_in_a_row_make_an_endpoint_suspected(
    kind, works, served, suspected
):
    """Letters are the inputs of rejected calls, an empty string is an answered call.

    ``served`` is the time of an earlier answer. The breaker opens if a harmless text is rejected
    too, and every caller then gets a neutral copy of the reason.
    """
    health = EndpointHealth(POLICY)
    if served is not None:
        health.record_success(health.acquire(served), served, 0.1, 1)
    for work in works:
        if work:
            health.record_error(health.acquire(0.0), 0.0, kind("no"), list(work))
        else:
            health.record_success(health.acquire(0.0), 0.0, 0.1, 1)

    assert (suspected, 0.0, False) == (
        health.suspected,
        health.available_at(0.0),
        bool(health.failure_share(0.0)),
    )
    if suspected:
        health.confirm(0.0)
        assert 30.0 == health.available_at(0.0)
        error = health.unavailable_error(0.0)
        assert (kind, True) == (type(error), error.is_neutral)


def test_a_success_between_two_rejections_keeps_the_breaker_closed():
    health = EndpointHealth(POLICY)
    health.record_error(health.acquire(0.0), 0.0, Rejected("no"), ["a"])
    health.record_success(health.acquire(5.0), 5.0, 0.1, 1)
    health.record_error(health.acquire(40.0), 40.0, Rejected("no"), ["b"])
    assert 40.0 == health.available_at(40.0)
    health.record_error(health.acquire(40.0), 40.0, Rejected("no"), ["c"])
    health.confirm(40.0)

    assert 70.0 == health.available_at(40.0)


def test_the_number_of_remembered_failed_inputs_is_bounded():
    health, sizes = (
        EndpointHealth(BreakerPolicy(failures=1000, minimum_calls=1000, slow_start=1)),
        [],
    )
    for at in range(1000, 1100):  # each number is an object of its own
        health.record_error(health.acquire(0.0), 0.0, DOWN, [at])
        health.record_error(health.acquire(0.0), 0.0, Rejected("no"), [0])
        sizes.append(count_reachable(health))

    assert sizes[0] < sizes[SUSPECTS - 1] == sizes[-1]


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=200), st.sampled_from([50, 75, 90, 99]))
def test_percentiles_use_the_nearest_rank(latencies, percentile):
    """The smallest measured value that so many per cent do not exceed.

    Values are not interpolated.
    """
    health = EndpointHealth(POLICY)
    for latency in latencies:
        health.record_success(health.acquire(0.0), 0.0, latency, 100)

    found = health.latency(percentile, 0.0)

    assert found in latencies
    assert sum(item <= found for item in latencies) >= len(latencies) * percentile / 100
    assert sum(item < found for item in latencies) < len(latencies) * percentile / 100
    reached = health.throughput(percentile, 0.0)
    assert sum(100 / item >= reached for item in latencies) >= len(latencies) * percentile / 100


@pytest.mark.parametrize(
    ("count", "p50", "p75", "p90", "p99"),
    [(1, 1, 1, 1, 1), (2, 1, 2, 2, 2), (4, 2, 3, 4, 4), (10, 5, 8, 9, 10), (100, 50, 75, 90, 99)],
)
def test_percentiles_of_the_first_whole_numbers(count, p50, p75, p90, p99):
    health = EndpointHealth(POLICY)
    for latency in range(count, 0, -1):
        health.record_success(health.acquire(0.0), 0.0, float(latency), 1)

    assert [p50, p75, p90, p99] == [health.latency(item, 0.0) for item in (50, 75, 90, 99)]


def test_percentiles_without_data_are_none():
    assert (None, None) == (
        EndpointHealth(POLICY).latency(50, 0.0),
        EndpointHealth(POLICY).throughput(50, 0.0),
    )


def test_percentiles_forget_after_five_minutes():
    health = EndpointHealth(POLICY)
    health.record_success(health.acquire(0.0), 0.0, 9.0, 1)
    health.record_success(health.acquire(10.0), 10.0, 1.0, 1)

    assert [9.0, 1.0, None] == [
        health.latency(99, now) for now in (WINDOW, WINDOW + 1, WINDOW + 11)
    ]


def test_memory_stays_bounded():
    health, sizes = EndpointHealth(POLICY), []
    for at in range(10 * SAMPLES):
        health.record_success(health.acquire(at / 1000), at / 1000, 1.0, 1)
        if at % SAMPLES == SAMPLES - 1:
            sizes.append(count_reachable(health))

    assert SAMPLES < sizes[0]
    assert sizes[-1] < 1.1 * sizes[0]


def test_a_call_of_zero_seconds_does_not_divide_by_zero():
    health = EndpointHealth(POLICY)
    health.record_success(health.acquire(0.0), 0.0, 0.0, 5)

    assert 0.0 == health.latency(50, 0.0)


def with_random_failures(calls, failures, every=0.1):
    """Return the health after calls of which some failed and were answered when repeated, and the time."""
    health, now = EndpointHealth(BreakerPolicy()), 0.0
    for number in range(calls):
        now = number * every
        health.record_success(health.acquire(now), now, 0.01, 1)
        if number < failures:
            health.record_retry(now, answered=True)
    return health, now


@pytest.mark.parametrize(
    ("calls", "failures", "least", "most"),
    [
        (0, 0, 0.01, 0.01),
        (1000, 0, 0.01, 0.01),
        (1, 1, 0.9, 0.9),
        (20, 1, 0.05, 0.25),
        (2000, 40, 0.02, 0.06),
        (200, 50, 0.5, 0.6),
    ],
)
def test_the_share_of_random_failures_is_estimated_from_repeated_calls(
    calls, failures, least, most
):
    health, now = with_random_failures(calls, failures)

    assert least <= health.random_share(now) <= most


def test_repeated_calls_that_fail_again_are_not_random():
    health, now = with_random_failures(20, 0)
    for _ in range(10):
        health.record_retry(now, answered=False)

    assert health.random_share(now) == 0.01


def test_random_failures_are_forgotten_after_some_time():
    """The share stays about the same at first, because the calls are forgotten too."""
    health, now = with_random_failures(400, 8)
    first = health.random_share(now)

    assert first == health.random_share(now)
    assert first < health.random_share(now + 300) < 2 * first
    assert health.random_share(now + 3000) == 0.01


@pytest.mark.parametrize("pause", [0.0, 5.0])
def test_each_random_failure_is_counted_once(pause):
    """However often the share is asked for, within a second and later."""
    health, now = with_random_failures(100, 10, every=0.001)
    first = health.random_share(now)
    for number in range(20):
        later = now + pause + number / 1000
        assert health.random_share(later) == pytest.approx(first, rel=0.02)


def test_an_endpoint_after_its_cool_down_is_less_bad_than_one_in_it_and_then_the_share_decides():
    in_cool_down, after_it = opened(at=3.0), opened(at=0.0)
    fails_half = EndpointHealth(POLICY)
    fails_half.record_success(fails_half.acquire(0.0), 0.0, 0.1, 1)
    fails_half.record_failure(fails_half.acquire(0.0), 0.0)
    ranked = sorted([in_cool_down, after_it, fails_half], key=lambda health: health.rank(5.0))

    assert ranked == [fails_half, after_it, in_cool_down]
