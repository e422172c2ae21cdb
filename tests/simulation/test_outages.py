"""A gateway is never worse than none while its upstreams fail, stall and recover: in virtual time."""

from itertools import pairwise
from random import Random

import pytest

from tests.simulation.traffic import (
    BROKEN,
    DOWN,
    HEALTHY,
    REFUSING,
    STALLED,
    brown_out,
    simulate,
)
from tests.support.slow import slow_unless, thorough_unless

pytestmark = pytest.mark.uncounted


@pytest.mark.parametrize("per_second", slow_unless(lambda rate: rate == 50, [5, 50, 200]))
@pytest.mark.parametrize("status", thorough_unless((503).__eq__, [500, 503]))
@pytest.mark.parametrize(
    ("shares", "goal"), [([0.4, 0.4], 0.99), ([0.5], 0.93), ([0.3], 0.99), ([0.5, 0.0], 0.999)]
)
def test_brown_outs_are_answered_as_by_plain_retries(shares, goal, status, per_second):
    """Calls that fail at random are repeated, at no more than twice the calls."""
    schedules = [[(0.0, brown_out(share, status))] for share in shares]
    result = simulate(*schedules, seconds=1000 / per_second, per_second=per_second)

    assert result.answered() >= goal
    assert result.calls <= 2.2 * len(result.outcomes)


@pytest.mark.parametrize("mode", [DOWN, REFUSING, BROKEN], ids=["503", "refused", "500"])
@pytest.mark.parametrize("upstreams", thorough_unless((2).__eq__, [1, 2]))
@pytest.mark.parametrize("per_second", slow_unless(lambda rate: rate == 50, [50, 200]))
def test_an_outage_gets_few_calls_and_fast_errors(mode, upstreams, per_second):
    schedule = [(0.0, HEALTHY), (10.0, mode)]
    result = simulate(*[schedule] * upstreams, seconds=40, per_second=per_second)

    calls = sum(at >= 10.0 for upstream in result.upstreams for at in upstream.calls)
    during = sorted(outcome.seconds for outcome in result.outcomes if outcome.at >= 12.0)
    requests = sum(outcome.at >= 10.0 for outcome in result.outcomes)
    assert calls <= 0.3 * requests
    assert during[int(len(during) * 0.99)] <= 0.1


@pytest.mark.parametrize(
    "mode", [DOWN, REFUSING, BROKEN, STALLED], ids=["503", "no", "500", "hang"]
)
@pytest.mark.parametrize(
    "outage", slow_unless(lambda outage: outage < 60, [1.0, 10.0, 60.0, 600.0])
)
def test_the_first_answer_comes_soon_after_an_outage_of_any_length(mode, outage):
    end = 5.0 + outage
    schedule = [(0.0, HEALTHY), (5.0, mode), (end, HEALTHY)]
    result = simulate(schedule, seconds=end + 10.0, per_second=20, deadline=5.0)

    first = min(
        outcome.at + outcome.seconds
        for outcome in result.outcomes
        if outcome.at + outcome.seconds > end + 0.001 and outcome.status == 200
    )
    assert first <= end + 2.0
    assert result.answered(end + 4.0) == 1.0


def test_an_endpoint_that_fails_a_little_keeps_its_share():
    """10 % failures take nothing away from an endpoint; a quarter does (as OpenRouter has it)."""
    schedules = [[(0.0, brown_out(0.1))], [(0.0, HEALTHY)]]
    result = simulate(*schedules, seconds=60, per_second=50)

    assert len(result.upstreams[0].calls) >= 0.45 * len(result.outcomes)
    assert result.answered() >= 0.999


def test_an_endpoint_that_fails_often_is_tried_after_the_others():
    schedules = [[(0.0, brown_out(0.5))], [(0.0, HEALTHY)]]
    result = simulate(*schedules, seconds=60, per_second=50)

    assert len(result.upstreams[0].calls) <= 0.2 * len(result.outcomes)


MODES = [HEALTHY, DOWN, REFUSING, BROKEN, brown_out(0.3), brown_out(0.7, 500)]


@pytest.mark.parametrize(
    "seed",
    [
        *thorough_unless(lambda seed: seed < 4, range(12)),
        *slow_unless(lambda _seed: False, range(12, 2000)),
    ],
)
def test_requests_are_answered_whenever_an_endpoint_is_healthy(seed):
    """Two seconds after an endpoint has become healthy, and while it stays so."""
    random = Random(seed)
    changes = [0.0, *sorted(random.uniform(0.0, 30.0) for _ in range(4))]
    schedules = [
        [(at, random.choice(MODES)) for at in changes] for _ in range(random.choice([1, 2, 3]))
    ]
    rate = random.choice([3, 10, 40])
    result = simulate(*schedules, seconds=30.0, per_second=rate, seed=seed)

    bounds = [*changes, float("inf")]
    for begin, end in pairwise(bounds):
        modes = [upstream.mode(begin) for upstream in result.upstreams]
        if HEALTHY not in modes:
            continue
        failed = [
            outcome
            for outcome in result.outcomes
            if begin + 2.0 <= outcome.at
            and outcome.at + outcome.seconds < end
            and outcome.status != 200
        ]
        assert not failed, (begin, end, failed[:3])


def test_a_slow_endpoint_that_answers_again_serves_all_requests():
    """Its breaker admits few calls at a time at first; the others are made as a last resort."""
    slow = HEALTHY._replace(seconds=0.5)
    schedule = [(0.0, HEALTHY), (2.0, DOWN), (12.0, slow)]
    result = simulate(schedule, seconds=20.0, per_second=20)

    assert result.answered(14.5, 19.0) == 1.0
