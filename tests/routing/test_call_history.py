"""The expected latency of a call, estimated from answered calls of a similar size."""

import pytest

from embedroute.routing import FIRST, PER_INPUT, REMEMBERED, SHORTEST, UsualLatency
from tests.support.reachable import count_reachable


def recorded(*calls, endpoint="a:m"):
    usual = UsualLatency()
    for inputs, seconds in calls:
        usual.record(endpoint, inputs, seconds)
    return usual


@pytest.mark.parametrize(
    ("calls", "inputs", "expected"),
    [
        # Nothing is known of calls of that size.
        ([], 1, FIRST + PER_INPUT),
        ([], 2048, FIRST + 2048 * PER_INPUT),
        ([(2048, 60.0)] * 10, 1, FIRST + PER_INPUT),
        ([(1, 2.0)] * 10, 2048, FIRST + 2048 * PER_INPUT),
        # Nine of ten take no longer.
        ([(1, 2.0)], 1, 2.0),
        ([(1, float(at)) for at in range(1, 11)], 1, 9.0),
        ([(1, float(at)) for at in range(20, 0, -1)], 1, 18.0),
        ([(1, 2.0), (2048, 60.0)], 1, 2.0),
        ([(1, 2.0), (2048, 60.0)], 2048, 60.0),
        # Calls of a size, by powers of two, are alike.
        ([(4, 3.0)], 7, 3.0),
        ([(4, 3.0)], 8, FIRST + 8 * PER_INPUT),
        # A short wait costs less than a second call.
        ([(1, 0.01)] * 10, 1, SHORTEST),
        # What was long ago counts no more.
        ([(1, 60.0)] * REMEMBERED + [(1, 2.0)] * REMEMBERED, 1, 2.0),
    ],
)
def test_expected_latency_is_the_90th_percentile_of_calls_of_that_size(calls, inputs, expected):
    assert expected == recorded(*calls).expect("a:m", inputs)


def test_each_endpoint_has_its_own_expected_latency():
    assert recorded((1, 9.0), endpoint="b:m").expect("a:m", 1) == FIRST + PER_INPUT


def test_memory_stays_bounded():
    few, many = recorded(*[(1, 2.0)] * REMEMBERED), recorded(*[(1, 2.0)] * 1000)
    usual, sizes = recorded(), []
    for at in range(10_000):
        usual.record(f"endpoint {at}", 1, 2.0)
        if at % 2048 == 2047:
            sizes.append(count_reachable(usual))

    assert count_reachable(few) == count_reachable(many)
    assert sizes[-1] < 2 * sizes[0]
