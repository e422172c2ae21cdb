"""The slowest requests while an endpoint stalls, recovers or has slow calls: in virtual time."""

import pytest

from tests.simulation.traffic import DOWN, HEALTHY, REFUSING, STALLED, Mode, brown_out, simulate

UNHURRIED = Mode(seconds=1.5)
SLUGGISH = Mode(seconds=3.0)


def slowest(result, begin=0.0, end=float("inf")):
    return max(outcome.seconds for outcome in result.outcomes if begin <= outcome.at < end)


def test_a_stalled_endpoint_costs_a_few_requests_one_attempt_timeout():
    schedules = [[(0.0, HEALTHY), (5.0, STALLED)], [(0.0, HEALTHY)]]
    result = simulate(*schedules, seconds=30, per_second=20, deadline=60.0)

    assert result.answered() == 1.0
    assert 2.0 <= slowest(result) <= 2.1
    assert slowest(result, 10.0) < 0.1


def test_a_stalled_endpoint_that_never_answered_costs_ten_seconds():
    result = simulate([(0.0, STALLED)], [(0.0, HEALTHY)], seconds=30, per_second=5, deadline=60.0)

    assert result.answered() == 1.0
    assert 10.0 <= slowest(result) <= 10.1


def test_the_attempt_timeout_can_be_configured():
    schedules = [[(0.0, HEALTHY), (5.0, STALLED)], [(0.0, HEALTHY)]]
    result = simulate(
        *schedules, seconds=20, per_second=20, deadline=60.0, provider={"attempt_timeout": 0.5}
    )

    assert result.answered() == 1.0
    assert 0.5 <= slowest(result) <= 0.6


def test_a_configured_attempt_timeout_also_holds_for_the_last_endpoint():
    result = simulate(
        [(0.0, STALLED)], seconds=10, per_second=5, deadline=60.0, provider={"attempt_timeout": 0.5}
    )

    assert result.answered() == 0.0
    assert slowest(result) <= 0.6


def test_the_last_endpoint_may_take_the_rest_of_the_deadline():
    schedule = [(0.0, HEALTHY), (5.0, SLUGGISH)]
    result = simulate(schedule, seconds=20, per_second=5, deadline=60.0)

    assert result.answered() == 1.0
    assert result.calls == len(result.outcomes)


def test_endpoints_that_become_slower_are_given_more_time():
    schedules = [[(0.0, HEALTHY), (20.0, SLUGGISH)]] * 2
    result = simulate(*schedules, seconds=90, per_second=1, deadline=60.0)

    assert result.answered() == 1.0
    assert slowest(result, 60.0) <= 3.1


def test_an_endpoint_without_a_usable_fallback_may_take_the_rest_of_the_deadline():
    """The breaker of the other endpoint is open, so giving up a slow call would not help."""
    schedules = [[(0.0, HEALTHY), (20.0, SLUGGISH)], [(0.0, REFUSING)]]
    result = simulate(*schedules, seconds=60, per_second=3, deadline=60.0)

    assert result.answered(20.0) == 1.0


def test_a_probe_of_a_stalled_endpoint_costs_less_than_its_usual_timeout():
    """Calls take 1.5 s and may take 4.5 s, but after the outage has begun a probe gets 2 s."""
    schedules = [[(0.0, UNHURRIED), (20.0, REFUSING), (22.0, STALLED)], [(0.0, UNHURRIED)]]
    result = simulate(*schedules, seconds=120, per_second=8, deadline=60.0)

    assert result.answered(23.0) == 1.0
    assert [at for at in result.upstreams[0].calls if at >= 40.0]
    assert 2.0 + 1.5 <= slowest(result, 40.0) <= 2.1 + 1.5


TAIL = Mode(slow=0.03)
HEDGED = {"hedge": True}


def quantile(result, share):
    return sorted(outcome.seconds for outcome in result.outcomes)[int(share * len(result.outcomes))]


@pytest.mark.parametrize("upstreams", [1, 2, 3])
@pytest.mark.thorough
def test_hedging_cuts_the_tail_of_slow_calls_with_few_further_calls(upstreams):
    """Three calls in a hundred take two seconds more."""
    schedules = [[(0.0, TAIL)]] * upstreams
    unhedged = simulate(*schedules, seconds=60, per_second=50)
    hedged = simulate(*schedules, seconds=60, per_second=50, model=HEDGED)

    assert hedged.answered() == 1.0
    assert quantile(hedged, 0.999) <= 0.25 * quantile(unhedged, 0.999)
    assert len(hedged.outcomes) < hedged.calls <= 1.05 * len(hedged.outcomes)
    assert unhedged.calls <= 1.01 * len(unhedged.outcomes)


def test_hedges_are_a_twentieth_of_the_calls_however_slow_the_endpoints_are():
    """A fifth of the calls is slow, so the budget is spent; a few calls are given up besides."""
    schedules = [[(0.0, Mode(slow=0.2))]] * 2
    result = simulate(*schedules, seconds=60, per_second=50, model=HEDGED)

    assert result.answered() == 1.0
    assert 1.03 * len(result.outcomes) <= result.calls <= 1.05 * len(result.outcomes) + 30


@pytest.mark.thorough
def test_hedging_makes_no_calls_to_an_endpoint_in_an_outage():
    """The endpoint that fails is tried last, so all its calls are fallbacks or hedges."""
    schedules = [[(0.0, TAIL)], [(0.0, brown_out(0.5))]]
    unhedged = simulate(*schedules, seconds=120, per_second=20)
    hedged = simulate(*schedules, seconds=120, per_second=20, model=HEDGED)

    assert hedged.answered() >= 0.999
    assert len(hedged.upstreams[1].calls) <= len(unhedged.upstreams[1].calls) + 20


def test_a_hedged_model_survives_an_outage_with_few_calls():
    schedule = [(0.0, TAIL), (10.0, DOWN)]
    result = simulate(*[schedule] * 2, seconds=40, per_second=50, model=HEDGED)

    calls = sum(at >= 10.0 for upstream in result.upstreams for at in upstream.calls)
    assert calls <= 0.3 * sum(outcome.at >= 10.0 for outcome in result.outcomes)


@pytest.mark.thorough
def test_a_cancelled_call_does_not_count_against_its_endpoint():
    """The endpoint with slow calls keeps its share of the requests."""
    schedules = [[(0.0, Mode(slow=0.04))], [(0.0, HEALTHY)]]
    result = simulate(*schedules, seconds=60, per_second=50, model=HEDGED)

    assert quantile(result, 0.999) <= 0.5
    assert len(result.upstreams[0].calls) >= 0.45 * len(result.outcomes)
