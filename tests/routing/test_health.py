"""How an endpoint's health follows what its calls did: breaker, rests, the cap learned, percentiles. No clock is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute.errors import LONGEST_HINT
from embedroute.routing.health import SAMPLES, WINDOW, BreakerPolicy, Health, State

POLICY = BreakerPolicy(failures=3, first_rest=5.0, longest_rest=60.0, refused_rest=30.0)


def opened(at: float = 0.0) -> Health:
    health = Health(POLICY)
    for _ in range(POLICY.failures):
        assert health.admit(at)
        health.failed(at)
    return health


def test_enough_failures_in_a_row_open_the_breaker():
    health = Health(POLICY)
    states = []
    for _ in range(4):
        states.append((health.state(0.0), health.admit(0.0)))
        health.failed(0.0)

    assert [(State.CLOSED, True)] * 3 + [(State.OPEN, False)] == states


def test_a_success_in_between_starts_the_count_anew():
    health = Health(POLICY)
    for _ in range(10):
        health.failed(0.0)
        health.failed(0.0)
        health.succeeded(0.0, 0.1, 1)

    assert State.CLOSED is health.state(0.0)


@pytest.mark.parametrize(
    ("now", "state", "ready"),
    [(0.0, State.OPEN, 5.0), (4.9, State.OPEN, 5.0), (5.0, State.HALF_OPEN, 5.0), (9.0, State.HALF_OPEN, 9.0)],
)
def test_an_open_breaker_half_opens_after_its_rest(now, state, ready):
    health = opened()

    assert (state, ready) == (health.state(now), health.ready_at(now))
    assert (state is State.HALF_OPEN) == health.admit(now)


def test_a_half_open_breaker_admits_one_probe_at_a_time():
    health = opened()

    assert [True, False, False] == [health.admit(6.0) for _ in range(3)]


@pytest.mark.parametrize(
    ("end", "then"),
    [
        (lambda health: health.succeeded(6.0, 0.1, 1), (State.CLOSED, [True, True])),
        (lambda health: health.failed(6.0), (State.OPEN, [False, False])),
        (lambda health: health.refused(6.0), (State.OPEN, [False, False])),
        (lambda health: health.released(), (State.HALF_OPEN, [True, False])),
        (lambda health: health.limited(6.0, 0.0), (State.HALF_OPEN, [True, False])),
        (lambda health: health.limited(6.0, 1.0), (State.HALF_OPEN, [False, False])),
    ],
)
def test_how_a_probe_ends_decides_what_follows(end, then):
    """Only a success closes; a probe that brought no news leaves the place to another."""
    health = opened()
    assert health.admit(6.0)
    end(health)

    assert then == (health.state(6.0), [health.admit(6.0), health.admit(6.0)])


def test_rests_double_up_to_the_longest_and_a_success_forgets_them():
    health, now, rests = opened(), 0.0, []
    for _ in range(6):
        rests.append(health.ready_at(now) - now)
        now = health.ready_at(now)
        assert health.admit(now)
        health.failed(now)

    assert [5.0, 10.0, 20.0, 40.0, 60.0, 60.0] == rests
    now = health.ready_at(now)
    health.admit(now)
    health.succeeded(now, 0.1, 1)
    for _ in range(3):
        health.failed(now)
    assert now + 5.0 == health.ready_at(now)


def test_an_outage_of_weeks_is_survived():
    """2 ** 2000 seconds would be more than a float holds."""
    health, now = opened(), 0.0
    for _ in range(2000):
        now = health.ready_at(now)
        assert health.admit(now)
        health.failed(now)

    assert now + 60.0 == health.ready_at(now)


def test_calls_begun_before_the_breaker_opened_do_not_lengthen_its_rest():
    """A burst of a hundred failures at once is one outage, and a breaker first opens for at most 30 s."""
    health = Health(POLICY)
    assert all(health.admit(0.0) for _ in range(100))
    for at in range(100):
        health.failed(at / 1000)

    assert 5.0 + 0.002 == health.ready_at(0.1)


def test_a_refusal_of_our_key_rests_at_once_and_always_alike():
    health, now = Health(POLICY), 0.0
    for _ in range(4):
        assert health.admit(now)
        health.refused(now)
        assert now + 30.0 == health.ready_at(now)
        now += 30.0


@pytest.mark.parametrize(
    ("rests", "ready"),
    [
        ([(0.0, 7.0)], 7.0),
        ([(0.0, 7.0), (1.0, 2.0)], 7.0),
        ([(0.0, 7.0), (1.0, 9.0)], 10.0),
        ([(0.0, 0.0)], 0.0),
        ([(0.0, 1e9)], LONGEST_HINT),
    ],
)
def test_a_rate_limit_rests_for_its_hint(rests, ready):
    """The longest of all hints holds, capped at two minutes; it is no failure, so nothing else changes."""
    health = Health(POLICY)
    for now, rest in rests:
        health.limited(now, rest)

    assert (ready, State.CLOSED, False) == (health.ready_at(0.0), health.state(0.0), health.failing(0.0))
    assert health.admit(ready)


@pytest.mark.parametrize(
    ("event", "significant"),
    [
        (lambda health: health.failed(0.0), True),
        (lambda health: health.refused(0.0), True),
        (lambda health: health.limited(0.0, 1.0), False),
        (lambda health: health.released(), False),
        (lambda health: health.succeeded(0.0, 1.0, 1), False),
    ],
)
def test_only_an_upstreams_own_fault_is_significant(event, significant):
    health = Health(POLICY)
    event(health)

    assert (significant, False) == (health.failing(29.9), health.failing(30.0))


ENDS = {
    "success": lambda health, now: health.succeeded(now, 0.1, 1),
    "failure": lambda health, now: health.failed(now),
    "refused": lambda health, now: health.refused(now),
    "limited": lambda health, now: health.limited(now, 1.0),
    "released": lambda health, now: health.released(),  # noqa: ARG005 - as the others
}


@given(st.lists(st.tuples(st.floats(0, 20), st.sampled_from(list(ENDS)), st.integers(0, 2)), max_size=60))
def test_whatever_happens_no_two_probes_run_at_once(steps):
    """Each step waits, lets callers in, and ends one call; once calls from before the opening are done, one at a time."""
    health, now, flying = opened(), 0.0, 0
    for wait, end, callers in steps:
        now += wait
        closed = health.state(now) is State.CLOSED
        flying += sum(health.admit(now) for _ in range(callers + 1))
        assert closed or flying <= 1
        if closed:
            health.released()
            flying = 0
            health.refused(now)
            continue
        if flying:
            flying = 0
            ENDS[end](health, now)
        assert health.ready_at(now) - now <= LONGEST_HINT


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=200), st.sampled_from([50, 75, 90, 99]))
def test_percentiles_go_by_nearest_rank(latencies, percentile):
    """The smallest measured value that so many per cent of all do not exceed, and never one in between."""
    health = Health(POLICY)
    for latency in latencies:
        health.succeeded(0.0, latency, 100)

    found = health.latency(percentile, 0.0)

    assert found in latencies
    assert sum(it <= found for it in latencies) >= len(latencies) * percentile / 100
    assert sum(it < found for it in latencies) < len(latencies) * percentile / 100
    reached = health.throughput(percentile, 0.0)
    assert sum(100 / it >= reached for it in latencies) >= len(latencies) * percentile / 100


@pytest.mark.parametrize(
    ("count", "p50", "p75", "p90", "p99"),
    [(1, 1, 1, 1, 1), (2, 1, 2, 2, 2), (4, 2, 3, 4, 4), (10, 5, 8, 9, 10), (100, 50, 75, 90, 99)],
)
def test_percentiles_of_the_first_whole_numbers(count, p50, p75, p90, p99):
    health = Health(POLICY)
    for latency in range(count, 0, -1):
        health.succeeded(0.0, float(latency), 1)

    assert [p50, p75, p90, p99] == [health.latency(it, 0.0) for it in (50, 75, 90, 99)]


def test_no_data_is_no_number():
    assert (None, None) == (Health(POLICY).latency(50, 0.0), Health(POLICY).throughput(50, 0.0))


def test_percentiles_forget_after_five_minutes():
    health = Health(POLICY)
    health.succeeded(0.0, 9.0, 1)
    health.succeeded(10.0, 1.0, 1)

    assert [9.0, 1.0, None] == [health.latency(99, now) for now in (WINDOW, WINDOW + 1, WINDOW + 11)]


def test_memory_stays_bounded():
    health = Health(POLICY)
    for at in range(10 * SAMPLES):
        health.succeeded(at / 1000, 1.0, 1)

    assert SAMPLES == len(health._samples)


def test_a_call_of_no_time_is_no_division_by_zero():
    health = Health(POLICY)
    health.succeeded(0.0, 0.0, 5)

    assert 0.0 == health.latency(50, 0.0)
