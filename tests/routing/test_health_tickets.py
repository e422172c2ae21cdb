"""Only the outcome of the probe changes an open breaker; stale permits do not. No clock is read."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute.errors import LONGEST_RETRY_AFTER, UpstreamAuthError
from embedroute.routing import BreakerPolicy, EndpointHealth, State

POLICY = BreakerPolicy(
    failures=3,
    minimum_calls=3,
    slow_start=1,
    initial_cooldown=5.0,
    longest_cooldown=60.0,
    rejection_cooldown=30.0,
)

ENDS = {
    "success": lambda health, ticket, now: health.record_success(ticket, now, 0.1, 1),
    "failure": lambda health, ticket, now: health.record_failure(ticket, now),
    "refused": lambda health, ticket, now: health.record_rejection(
        ticket, now, UpstreamAuthError("late")
    ),
    "limited": lambda health, ticket, now: health.record_rate_limit(ticket, now, 0.0),
    "released": lambda health, ticket, _: health.release(ticket),
}
"""Every possible outcome of a call."""


def opened(late: int = 0) -> tuple[EndpointHealth, list[int]]:
    """A breaker that opened at 0 s for 5 s, and the permits of calls that started before."""
    health = EndpointHealth(POLICY)
    tickets = [health.acquire(0.0) for _ in range(late)]
    for _ in range(POLICY.failures):
        health.record_failure(health.acquire(0.0), 0.0)
    return health, tickets


def test_a_half_open_breaker_admits_one_probe_at_a_time():
    health, _ = opened()

    assert [True, False, False] == [bool(health.acquire(6.0)) for _ in range(3)]


class Probe(NamedTuple):
    """The outcome of a probe, and at 6 s.

    The state, when it is available, and which of two calls are admitted.
    """

    end: str
    state: State
    ready: float
    admitted: list[bool]


PROBES = [
    Probe("success", State.CLOSED, 6.0, [True, True]),
    Probe("failure", State.OPEN, 16.0, [False, False]),
    Probe("refused", State.OPEN, 36.0, [False, False]),
    Probe("limited", State.HALF_OPEN, 6.0, [True, False]),
    Probe("released", State.HALF_OPEN, 6.0, [True, False]),
]


@pytest.mark.parametrize("late", [None, *ENDS])
@pytest.mark.parametrize(Probe._fields, PROBES)
def test_only_the_outcome_of_the_probe_changes_the_breaker(end, state, ready, admitted, late):
    """With any outcome, before, during or after the probe."""
    health, tickets = opened(late=9)

    def come_late():
        for _ in range(3 if late else 0):
            ENDS[late](health, tickets.pop(), 6.0)

    come_late()
    probe = health.acquire(6.0)
    come_late()
    assert not health.acquire(6.0)
    ENDS[end](health, probe, 6.0)
    come_late()

    assert (state, ready) == (health.state(6.0), health.available_at(6.0))
    assert admitted == [bool(health.acquire(6.0)) for _ in range(2)]


@pytest.mark.parametrize("late", ENDS)
@pytest.mark.parametrize("now", [0.0, 4.9])
def test_no_late_call_opens_or_closes_an_open_breaker(late, now):
    health, tickets = opened(late=5)
    for ticket in tickets:
        ENDS[late](health, ticket, now)

    assert (State.OPEN, 5.0) == (health.state(now), health.available_at(now))
    assert "healthy" in str(health.unavailable_error(now))
    assert (State.HALF_OPEN, True) == (health.state(5.0), bool(health.acquire(5.0)))


@pytest.mark.parametrize("late", ENDS)
def test_a_late_call_does_not_count_after_the_breaker_has_closed(late):
    """It neither counts as a failure nor resets the count as a success."""
    health, tickets = opened(late=5)
    health.record_success(health.acquire(6.0), 6.0, 0.1, 1)
    health.record_failure(health.acquire(6.0), 6.0)
    health.record_failure(health.acquire(6.0), 6.0)
    for ticket in tickets:
        ENDS[late](health, ticket, 6.0)
    assert State.CLOSED is health.state(6.0)
    health.record_failure(health.acquire(6.0), 6.0)

    assert State.OPEN is health.state(6.0)


@pytest.mark.parametrize("first", ["limited", "released"])
@pytest.mark.parametrize("then", ENDS)
def test_a_released_probe_is_stale(first, then):
    """The next probe is admitted; the same permit has no effect a second time."""
    health, _ = opened()
    probe = health.acquire(6.0)
    ENDS[first](health, probe, 6.0)
    following = health.acquire(6.0)
    ENDS[then](health, probe, 6.0)

    assert (State.HALF_OPEN, 0) == (health.state(6.0), health.acquire(6.0))
    health.record_success(following, 6.0, 0.1, 1)
    assert State.CLOSED is health.state(6.0)


def test_the_permit_of_a_probe_that_closed_the_breaker_is_stale():
    health, _ = opened()
    probe = health.acquire(6.0)
    health.record_success(probe, 6.0, 0.1, 1)
    for _ in range(POLICY.failures):
        health.record_failure(probe, 6.0)

    assert State.CLOSED is health.state(6.0)


def test_a_late_call_still_updates_latency_failures_and_rate_limits():
    """Its latency, the time of its failure, and its Retry-After."""
    health, tickets = opened(late=3)
    health.record_success(tickets[0], 6.0, 0.1, 1)
    assert 0.1 == health.latency(50, 6.0)
    assert not bool(health.failure_share(31.0))
    health.record_failure(tickets[1], 6.0)
    assert bool(health.failure_share(31.0))
    health.record_rate_limit(tickets[2], 6.0, 9.0)

    assert 15.0 == health.available_at(6.0)


STEPS = st.tuples(
    st.floats(0, 20), st.sampled_from(list(ENDS)), st.integers(0, 1000), st.integers(0, 3)
)


@given(st.lists(STEPS, max_size=80))
def test_two_probes_never_run_at_once(steps):
    """Each step waits, admits callers, and ends one of the running calls.

    A stale outcome changes nothing.
    """
    health, now, under_way, probe = EndpointHealth(POLICY), 0.0, [], None
    for wait, end, which, callers in steps:
        now += wait
        closed = health.state(now) is State.CLOSED
        let_in = [ticket for _ in range(callers) if (ticket := health.acquire(now))]
        assert closed or len(let_in) <= (probe is None)
        probe = let_in[0] if let_in and not closed else probe
        under_way += let_in
        if not under_way:
            continue
        ticket = under_way.pop(which % len(under_way))
        before = health.state(now)
        ENDS[end](health, ticket, now)
        if before is not State.CLOSED and ticket != probe:
            assert before is health.state(now)
        elif ticket == probe:
            probe = None
        assert health.available_at(now) - now <= LONGEST_RETRY_AFTER
