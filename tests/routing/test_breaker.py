"""When a breaker opens, whom it admits then, and how it closes. No clock is read."""

import pytest

from embedroute.errors import UpstreamAuthError, UpstreamUnavailable
from embedroute.routing import (
    LAST,
    PERIOD,
    BreakerPolicy,
    CallHistory,
    CircuitBreaker,
    EndpointHealth,
    State,
)

POLICY = BreakerPolicy(initial_cooldown=1.0, longest_cooldown=4.0)


def breaker_after(outcomes, at=0.0, **failure):
    """A breaker after calls of which + was answered and - failed."""
    breaker = CircuitBreaker(POLICY)
    for outcome in outcomes:
        permit = breaker.acquire(at)
        if outcome == "+":
            breaker.record_success(permit, at)
        else:
            breaker.record_failure(permit, at, **failure)
    return breaker


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("-" * 9, State.CLOSED),
        ("-" * 10, State.OPEN),
        ("+" + "-" * 8, State.CLOSED),
        ("+" + "-" * 9, State.OPEN),
        ("++" + "-" * 17, State.CLOSED),
        ("++" + "-" * 18, State.OPEN),
        ("+-" * 200, State.CLOSED),
        ("+---" * 100, State.CLOSED),
        ("+" * LAST + "-" * 19, State.CLOSED),
        ("+" * LAST + "-" * 20, State.OPEN),
    ],
)
def test_a_breaker_opens_by_the_share_of_failed_calls_or_by_twenty_in_a_row(outcomes, state):
    assert state is breaker_after(outcomes).state(0.0)


def test_calls_of_more_than_half_a_minute_ago_do_not_count():
    breaker = breaker_after("-" * 9)
    breaker.record_failure(breaker.acquire(PERIOD + 1.0), PERIOD + 1.0)

    assert State.CLOSED is breaker.state(PERIOD + 1.0)


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [("----", State.CLOSED), ("-----", State.OPEN), ("--+---", State.CLOSED)],
)
def test_five_failed_connections_in_a_row_open_a_breaker(outcomes, state):
    assert state is breaker_after(outcomes, connecting=True).state(0.0)


def test_answered_probes_admit_more_at_a_time_until_the_breaker_closes():
    breaker = breaker_after("-" * 10)
    admitted = []
    while breaker.state(1.0) is not State.CLOSED and len(admitted) < 10:
        permits = []
        while permit := breaker.acquire(1.0):
            permits.append(permit)
        admitted.append(len(permits))
        for permit in permits:
            breaker.record_success(permit, 1.0)

    assert [1, 2, 4, 8] == admitted


def test_a_failed_probe_halves_what_is_admitted():
    breaker = breaker_after("-" * 10)
    for _ in range(3):
        breaker.record_success(breaker.acquire(1.0), 1.0)
    permits = [breaker.acquire(1.0) for _ in range(5)]
    assert [True] * 4 + [False] == [bool(permit) for permit in permits]
    for permit in permits[:3]:
        breaker.record_success(permit, 1.0)
    breaker.record_failure(permits[3], 1.0)

    assert [True, True, False] == [bool(breaker.acquire(1.0)) for _ in range(3)]
    assert State.HALF_OPEN is breaker.state(1.0)


def test_a_probe_that_hangs_holds_the_others_back_for_the_longest_cooldown_only():
    breaker = breaker_after("-" * 10)
    assert breaker.acquire(1.0)

    assert [False, True, False] == [bool(breaker.acquire(now)) for now in (4.9, 5.0, 5.1)]


def test_a_last_resort_is_admitted_while_open_and_its_answer_ends_the_cooldown():
    breaker = breaker_after("-" * 10)
    failed, answered = breaker.acquire_last_resort(), breaker.acquire_last_resort()
    breaker.record_failure(failed, 0.1)
    assert (State.OPEN, 1.0) == (breaker.state(0.1), breaker.open_until)
    breaker.record_success(answered, 0.2)

    assert State.HALF_OPEN is breaker.state(0.2)
    assert [True, True, False] == [bool(breaker.acquire(0.2)) for _ in range(3)]


def test_a_rejected_key_admits_no_last_resort():
    breaker = CircuitBreaker(POLICY)
    breaker.record_rejection(breaker.acquire(0.0), 0.0, UpstreamAuthError("who?"), 30.0)

    assert 0 == breaker.acquire_last_resort()


def test_one_text_that_fails_again_and_again_makes_its_endpoint_suspected_in_the_end():
    suspected = [
        breaker_after("-" * count, by_input=True, counts=False).suspected for count in (19, 20)
    ]

    assert [False, True] == suspected


@pytest.mark.parametrize(("distinct", "state"), [(4, State.CLOSED), (5, State.OPEN)])
def test_an_endpoint_that_cannot_be_checked_opens_after_enough_different_inputs(distinct, state):
    breaker = breaker_after("-" * distinct, by_input=True)
    breaker.confirm_unchecked(0.0)

    assert (state, False) == (breaker.state(0.0), breaker.suspected)


@pytest.mark.parametrize(
    ("answered_at", "state"), [(None, State.OPEN), (7.9, State.OPEN), (8.1, State.CLOSED)]
)
def test_an_endpoint_that_has_just_answered_is_not_opened_by_one_harmless_text(answered_at, state):
    health = EndpointHealth(POLICY)
    if answered_at is not None:
        health.record_success(health.acquire(answered_at), answered_at, 0.1, 1)
    for text in "abcde":
        down = UpstreamUnavailable("down", upstream_status=500)
        health.record_error(health.acquire(10.0), 10.0, down, [text])
    assert health.suspected
    health.confirm(10.0)

    assert (state, False) == (health.state(10.0), health.suspected)


@pytest.mark.parametrize(
    ("answered", "help"),
    [([], True), ([0] * 4, True), ([0] * 5, False), ([1] + [0] * 9, True), ([1] + [0] * 10, False)],
)
def test_retries_help_while_a_tenth_of_them_is_answered(answered, help):
    history = CallHistory()
    for each in answered:
        history.record_retry(0.0, answered=bool(each))

    assert help is history.retries_help(0.0)
    assert history.retries_help(PERIOD + 2.0)


def test_a_history_of_hours_keeps_half_a_minute():
    history = CallHistory()
    for at in range(100_000):
        history.record(at / 10, failed=at % 4 == 0)

    now = 99_999 / 10
    calls, failed = history.counts(now)
    assert 10 * PERIOD <= calls <= 10 * PERIOD + 10
    assert abs(failed - calls / 4) <= 3
    assert (LAST, LAST // 4) == history.last(now)


def test_a_breaker_recovers_from_the_first_answered_probe_on_until_it_closes_or_opens():
    breaker = breaker_after("-" * 10)
    assert not breaker.is_recovering(0.5)
    assert not breaker.is_recovering(1.0)
    probe = breaker.acquire(1.0)
    assert not breaker.is_recovering(1.0)
    breaker.record_success(probe, 1.0)
    assert breaker.is_recovering(1.0)
    for failed in (breaker.acquire(1.0), breaker.acquire(1.0)):
        breaker.record_failure(failed, 1.0)
    assert not breaker.is_recovering(1.0)
    for _ in range(20):
        breaker.record_success(breaker.acquire(9.0), 9.0)
    assert breaker.state(9.0) is State.CLOSED
    assert not breaker.is_recovering(9.0)
