"""The learned number of calls that an endpoint gets at a time, rule by rule."""

import pytest

from embedroute.limits import (
    BETWEEN_TIMEOUTS,
    FIRST,
    FIRST_DURATION,
    IGNORED,
    LEAST,
    MOST,
    PATIENT_ROUNDS,
    PER_INPUT,
    QUIET,
    QUIET_AFTER_HINT,
    REMEMBERED,
    STALLED,
    STALLED_AT_FIRST,
    ConcurrencyLimit,
)
from tests.support.reachable import count_reachable


def filled(calls: ConcurrencyLimit, in_flight: int | None = None) -> ConcurrencyLimit:
    """Put as many calls in flight as the limit allows, or ``in_flight``."""
    calls.in_flight = calls.limit if in_flight is None else in_flight
    return calls


def answer_rounds(calls, rounds, now=0.0, seconds=0.02):
    """Answer as many calls as the limit allows, ``rounds`` times, while it is always reached."""
    for _ in range(rounds):
        for _ in range(calls.limit):
            filled(calls).record_answer(now, 1, seconds, calls.limit)


def refuse_down_to(calls, served, now=0.0):
    """Refuse all calls in flight but those that the endpoint serves at a time."""
    while calls.in_flight > served:
        calls.record_rate_limit(now, has_hint=False)
        calls.in_flight -= 1


@pytest.mark.parametrize(
    ("most", "learns", "expected"),
    [(None, True, FIRST), (4, True, 4), (1000, True, FIRST), (4, False, 4), (None, False, MOST)],
)
def test_the_limit_at_first(most, learns, expected):
    assert ConcurrencyLimit(most, learns=learns).limit == expected


def test_a_round_of_answers_at_the_limit_doubles_it_up_to_the_configured_one():
    calls = ConcurrencyLimit(100)
    answer_rounds(calls, 1)
    assert calls.limit == 2 * FIRST
    answer_rounds(calls, 3)
    assert calls.limit == 100


def test_answers_below_the_limit_change_nothing():
    calls = filled(ConcurrencyLimit(), FIRST - 1)
    for _ in range(1000):
        calls.record_answer(0.0, 1, 0.02, FIRST - 1)
    assert calls.limit == FIRST


def test_refusals_lower_the_limit_to_what_is_served_at_a_time():
    calls = filled(ConcurrencyLimit())
    refuse_down_to(calls, 8)
    assert calls.limit == 8


def test_a_429_that_comes_alone_is_no_limit_of_calls_at_a_time():
    calls = filled(ConcurrencyLimit(), 1)
    assert not calls.record_rate_limit(0.0, has_hint=False)
    assert calls.limit == FIRST


def test_a_limit_that_was_learned_is_tried_upwards_after_many_rounds_and_in_larger_steps():
    calls = filled(ConcurrencyLimit())
    refuse_down_to(calls, 8)
    answer_rounds(calls, PATIENT_ROUNDS - 1, now=QUIET)
    assert calls.limit == 8
    answer_rounds(calls, 1, now=QUIET)
    assert calls.limit == 9
    answer_rounds(calls, PATIENT_ROUNDS, now=QUIET)
    assert calls.limit == 11
    answer_rounds(calls, PATIENT_ROUNDS, now=QUIET)
    assert calls.limit == 15
    filled(calls)
    refuse_down_to(calls, 8, now=QUIET)
    answer_rounds(calls, PATIENT_ROUNDS, now=2 * QUIET)
    assert calls.limit == 9


@pytest.mark.parametrize(("has_hint", "quiet"), [(False, QUIET), (True, QUIET_AFTER_HINT)])
def test_the_limit_does_not_rise_soon_after_a_refusal(has_hint, quiet):
    calls = filled(ConcurrencyLimit())
    assert calls.record_rate_limit(0.0, has_hint=has_hint)
    answer_rounds(calls, 2 * PATIENT_ROUNDS, now=quiet - 0.01)
    assert calls.limit == FIRST - 1
    answer_rounds(calls, PATIENT_ROUNDS, now=quiet)
    assert calls.limit == FIRST


def test_an_overload_that_comes_alone_restores_the_limit_and_is_then_ignored():
    """The endpoint fails at random: fewer calls at a time do not help."""
    calls = filled(ConcurrencyLimit())
    while calls.in_flight > 1:
        assert calls.record_overload(0.0)
        calls.in_flight -= 1
    assert calls.limit == 1
    assert not calls.record_overload(0.0)
    assert calls.limit == FIRST
    filled(calls)
    assert not calls.record_overload(IGNORED - 0.01)
    assert calls.limit == FIRST
    answer_rounds(calls, 1)
    assert calls.limit == 2 * FIRST
    assert calls.record_overload(IGNORED)


def test_timeouts_halve_the_limit_at_most_once_a_second():
    calls = filled(ConcurrencyLimit())
    for now in (0.0, 0.5, BETWEEN_TIMEOUTS - 0.01):
        calls.record_timeout(now)
    assert calls.limit == FIRST // 2
    for at in range(1, 9):
        calls.record_timeout(at * BETWEEN_TIMEOUTS)
    assert calls.limit == LEAST


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        # Three times as slow: too many calls at a time. Twice: enough. Less: it may rise.
        (0.35, int(FIRST * 0.8)),
        (0.25, FIRST),
        (0.15, 2 * FIRST),
    ],
)
def test_the_limit_follows_how_much_slower_calls_are_than_at_low_load(seconds, expected):
    calls = ConcurrencyLimit()
    calls.in_flight = 1
    for _ in range(16):
        calls.record_answer(0.0, 1, 0.1, 1)
    answer_rounds(calls, 1, seconds=seconds)
    assert calls.limit == expected


def test_a_slowdown_that_nobody_notices_does_not_count():
    calls = ConcurrencyLimit()
    calls.in_flight = 1
    for _ in range(16):
        calls.record_answer(0.0, 1, 0.005, 1)
    answer_rounds(calls, 1, seconds=0.09)
    assert calls.limit == 2 * FIRST


def test_a_few_slow_calls_do_not_count():
    calls = ConcurrencyLimit()
    calls.in_flight = 1
    for _ in range(16):
        calls.record_answer(0.0, 1, 0.02, 1)
    for number in range(FIRST):
        filled(calls).record_answer(0.0, 1, 2.0 if number % 9 == 0 else 0.02, FIRST)
    assert calls.limit == 2 * FIRST


def test_the_duration_at_low_load_follows_a_lasting_change():
    calls = ConcurrencyLimit()
    calls.in_flight = 1
    for number in range(100):
        calls.record_answer(0.0, 1, 0.1 if number < 90 else 0.5, 1)
    answer_rounds(calls, 1, seconds=0.55)
    assert calls.limit == 2 * FIRST


def test_an_endpoint_that_has_become_slow_for_good_is_compared_with_itself():
    """At the lowest limit, all calls are made at low load."""
    calls = ConcurrencyLimit()
    calls.in_flight = 1
    for _ in range(16):
        calls.record_answer(0.0, 1, 0.1, 1)
    limits = []
    for now in range(100):
        answer_rounds(calls, 1, now=float(now), seconds=0.5)
        limits.append(calls.limit)
    assert min(limits) == LEAST
    assert limits[-1] > FIRST


def test_calls_in_flight_are_given_up_when_none_is_answered_for_too_long():
    calls = ConcurrencyLimit()
    calls.record_answer(10.0, 1, 0.02, 1)
    filled(calls)
    calls.give_up_stalled(10.0 + STALLED - 0.01, 1)
    assert (calls.in_flight, calls.limit, calls.generation) == (FIRST, FIRST, 0)
    calls.give_up_stalled(10.0 + STALLED, 1)
    assert (calls.in_flight, calls.limit, calls.generation) == (0, 1, 1)
    answer_rounds(calls, 10, now=12.0)
    assert calls.limit >= FIRST


@pytest.mark.parametrize(
    ("durations", "inputs", "expected"),
    [
        ([], 1, STALLED_AT_FIRST),
        ([0.02], 1, STALLED),
        ([2.0], 1, 6.0),
        ([2.0], 8, STALLED_AT_FIRST),
    ],
)
def test_the_time_without_an_answer_that_is_too_long(durations, inputs, expected):
    calls = ConcurrencyLimit()
    for seconds in durations:
        calls.record_answer(0.0, 1, seconds, 1)
    assert calls.stalled_after(inputs) == expected


def test_a_limit_that_does_not_learn_stays():
    calls = filled(ConcurrencyLimit(8, learns=False))
    assert not calls.record_rate_limit(0.0, has_hint=False)
    assert not calls.record_overload(0.0)
    calls.record_timeout(0.0)
    calls.give_up_stalled(1e9, 1)
    answer_rounds(calls, 100, seconds=9.0)
    assert (calls.limit, calls.in_flight) == (8, 8)


@pytest.mark.parametrize(
    ("durations", "inputs", "expected"),
    [
        # Nothing is known of calls of that size.
        ([], 1, FIRST_DURATION + PER_INPUT),
        ([], 2048, FIRST_DURATION + 2048 * PER_INPUT),
        ([(2048, 60.0)] * 10, 1, FIRST_DURATION + PER_INPUT),
        # Nine of ten take no longer.
        ([(1, 2.0)], 1, 2.0),
        ([(1, float(at)) for at in range(1, 11)], 1, 9.0),
        ([(1, float(at)) for at in range(20, 0, -1)], 1, 18.0),
        ([(1, 2.0), (2048, 60.0)], 2048, 60.0),
        # Calls are grouped by size, in powers of two.
        ([(4, 3.0)], 7, 3.0),
        ([(4, 3.0)], 8, FIRST_DURATION + 8 * PER_INPUT),
        # What was long ago counts no more.
        ([(1, 60.0)] * REMEMBERED + [(1, 2.0)] * REMEMBERED, 1, 2.0),
    ],
)
def test_the_usual_duration_is_a_percentile_of_calls_of_that_size(durations, inputs, expected):
    assert recorded(durations).usual(inputs, 90) == expected


@pytest.mark.parametrize(
    ("durations", "inputs", "expected"),
    [
        ([], 2048, 0.0),
        ([(1, 0.1)] * 9 + [(1, 0.5)] * 9, 1, 0.5),
        ([(1, 0.1)] * 9 + [(1, 0.5)] * 4, 1, 0.1),
        # A quarter of a call of four times the size; at least what a smaller one takes.
        ([(2048, 0.4)], 512, 0.1),
        ([(1, 0.1)], 2048, 0.1),
        ([(1, 0.1), (2048, 0.4)], 1024, 0.2),
    ],
)
def test_the_expected_duration_is_that_of_the_last_calls(durations, inputs, expected):
    assert recorded(durations).expect(inputs) == expected


def test_memory_stays_bounded():
    few, many = recorded([(1, 2.0)] * 1000), recorded([(1, 2.0)] * 9000)
    assert count_reachable(few) == count_reachable(many)


def recorded(durations):
    calls = ConcurrencyLimit()
    for inputs, seconds in durations:
        calls.record_answer(0.0, inputs, seconds, 1)
    return calls
