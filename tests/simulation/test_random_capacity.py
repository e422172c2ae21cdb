"""Upstreams of random capacity under random load: invariants that do not depend on them."""

from random import Random

import pytest

from embedroute.limits import SHARE
from tests.simulation.capacity import Load, Outcome, Upstream, simulate

KINDS = ("queue", "share", 429, 503)
CHANGE, END = 6.0, 11.0
"""Seconds at which the load falls to half of the capacity, and at which it ends."""


def answered(outcomes: list[Outcome], begin: float, end: float) -> int:
    return sum(
        outcome.status == 200 and begin <= outcome.at + outcome.seconds < end
        for outcome in outcomes
    )


def seeds(default: int, slow: int) -> list[object]:
    return [
        *range(default),
        *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(default, slow)),
    ]


@pytest.mark.parametrize("seed", seeds(6, 60))
@pytest.mark.thorough
def test_capacity_is_used_and_never_exceeded_for_long(seed):
    random = Random(seed)
    upstreams = [
        Upstream(random.randint(2, 16), random.uniform(0.02, 0.3), random.choice(KINDS))
        for _ in range(random.randint(1, 3))
    ]
    capacity = sum(upstream.workers / upstream.seconds for upstream in upstreams)
    offered = min(capacity * random.choice([0.3, 0.7, 1.5, 4.0]), 800.0)
    later = min(capacity / 2, 400.0)
    deadline = random.choice([1.5, 3.0, 10.0])
    loads = [Load(0, CHANGE, rate=offered), Load(CHANGE, END, rate=later)]
    outcomes = simulate(upstreams, loads, deadline=deadline, seed=seed)

    # Each request has ended in time.
    assert all(outcome.seconds <= deadline + 0.1 for outcome in outcomes)
    # What can be served is served.
    sent = sum(2.0 <= outcome.at < CHANGE for outcome in outcomes)
    expected = min(sent, capacity * (CHANGE - 2.0))
    assert answered(outcomes, 2.0, CHANGE) >= 0.8 * expected - 5
    # Nothing is refused or fails soon after an overload.
    late = [outcome for outcome in outcomes if outcome.at >= CHANGE + 2.5]
    assert sum(outcome.status == 200 for outcome in late) >= 0.99 * len(late)
    # Upstreams get few calls that they do not answer.
    calls = sum(upstream.calls for upstream in upstreams)
    assert calls <= 1.25 * answered(outcomes, 0.0, END + deadline) + 64 * len(upstreams)
    # Refusals say when to come back.
    refused = [outcome for outcome in outcomes if outcome.status in {429, 503}]
    assert all(outcome.retry_after for outcome in refused)


@pytest.mark.parametrize("seed", seeds(2, 12))
def test_no_caller_waits_for_ever(seed):
    """Callers of different greed, with small and large calls, at one overloaded upstream."""
    random = Random(seed)
    upstream = Upstream(random.randint(2, 8), 0.02, "queue", per_input=0.001)
    loads = [
        Load(
            0.0,
            8.0,
            clients=random.randint(1, 40),
            inputs=random.choice([1, 1, 8, 100]),
            caller=f"caller {number}",
            stream=f"caller {number}",
        )
        for number in range(4)
    ]
    outcomes = simulate([upstream], loads, deadline=60.0, seed=seed)

    assert all(outcome.status == 200 for outcome in outcomes)
    longest = {load.stream: 0.0 for load in loads}
    for outcome in outcomes:
        longest[outcome.stream] = max(longest[outcome.stream], outcome.seconds)
    # At most 40 large calls of 0.12 s wait at a time, and get at least one part in eight.
    assert max(longest.values()) <= 1.5 * SHARE * 40 * 0.12 / upstream.workers
