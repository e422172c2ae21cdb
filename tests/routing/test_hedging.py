"""When a call is hedged, and how often. No clock is read."""

import pytest

from embedroute.routing import CallTimes, HedgeBudget, hedge_delay


def full_budget():
    budget = HedgeBudget()
    for _ in range(1000):
        budget.record_call()
    return budget


def test_the_budget_allows_two_further_calls_and_then_one_in_twenty():
    budget = HedgeBudget()
    assert [budget.allow() for _ in range(3)] == [True, True, False]
    allowed = 0
    for _ in range(1000):
        budget.record_call()
        allowed += budget.allow()

    assert 49 <= allowed <= 50


def test_ten_further_calls_can_be_saved_up():
    budget = full_budget()

    assert 10 == sum(budget.allow() for _ in range(100))


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        pytest.param([], None, id="no call"),
        pytest.param([0.05], 0.15, id="three times as long as the only call"),
        pytest.param([0.5, 2.0, 0.05], 0.15, id="few calls, some of them slow"),
        pytest.param([0.05] * 100, 0.1, id="twice as long as the median"),
        pytest.param([0.05] * 90 + [0.3] * 10, 0.3, id="the 95th percentile"),
        pytest.param([0.001] * 100, 0.01, id="at least ten milliseconds"),
        pytest.param([9.0] * 100 + [0.05] * 128, 0.1, id="old calls are forgotten"),
    ],
)
def test_a_call_is_hedged_when_it_is_slower_than_most(times, expected):
    calls = CallTimes()
    for seconds in times:
        calls.record(1, seconds)

    assert hedge_delay(calls, full_budget(), 1) == pytest.approx(expected)
    assert hedge_delay(calls, full_budget(), 2) is None


def test_only_the_slowest_calls_are_hedged_while_the_budget_is_low():
    calls = CallTimes()
    for _ in range(100):
        calls.record(1, 0.05)
    budget = full_budget()
    delays = []
    for _ in range(7):
        delays.append(hedge_delay(calls, budget, 1))
        budget.allow()

    assert delays == [0.1] * 6 + [0.2]
