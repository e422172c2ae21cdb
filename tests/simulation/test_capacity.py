"""Overload, limits of calls at a time, and fairness, in virtual time."""

import pytest

from tests.simulation.capacity import Load, Outcome, Upstream, simulate
from tests.simulation.traffic import brown_out
from tests.simulation.traffic import simulate as simulate_failures
from tests.support.slow import slow_unless, thorough_unless

WORKERS = 8
OVERLOADED = range(1, 7)
SEEDS = [*thorough_unless((0).__eq__, [0, 1]), *slow_unless(lambda _seed: False, [2, 3])]


def overload(upstream: Upstream, seed: int) -> list[Outcome]:
    """Half of the capacity of 80 requests per second, four times as much, and half again."""
    begin, end = OVERLOADED.start, OVERLOADED.stop
    loads = [
        Load(0, begin, rate=40),
        Load(begin, end, rate=320, stream="overload"),
        Load(end, end + 4, rate=40, stream="after"),
    ]
    return simulate([upstream], loads, deadline=1.0, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beyond", ["queue", "share", 429, 503])
@pytest.mark.thorough
def test_an_overloaded_upstream_serves_its_capacity_and_the_rest_is_refused_early(beyond, seed):
    upstream = Upstream(WORKERS, 0.1, beyond)
    outcomes = overload(upstream, seed)

    begin, end = OVERLOADED.start, OVERLOADED.stop
    answered = [
        outcome
        for outcome in outcomes
        if outcome.status == 200 and begin <= outcome.at + outcome.seconds < end
    ]
    assert len(answered) >= 0.95 * 80 * (end - begin)
    refused = [each for each in outcomes if each.stream == "overload" and each.status != 200]
    announced = [each for each in refused if each.status == 503 and each.retry_after]
    # A call that an upstream begins although it is too late is a 504.
    late = 0 if isinstance(beyond, int) else 0.005 * len(refused)
    assert len(refused) - len(announced) <= late
    # What was begun before the gateway knew how slow the upstream is may be refused late.
    assert sum(each.seconds > 0.01 for each in refused) <= 0.1 * len(refused)
    after = [each for each in outcomes if each.stream == "after" and each.at >= end + 2]
    assert all(each.status == 200 for each in after)
    # It was never called for what it could not serve.
    assert upstream.calls <= 1.25 * len([each for each in outcomes if each.status == 200])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("upstreams", [1, 2])
@pytest.mark.parametrize("retry_after", [None, 1.0])
def test_an_upstream_that_serves_some_calls_at_a_time_is_used_fully(upstreams, retry_after, seed):
    limited = [Upstream(WORKERS, 0.2, 429, retry_after=retry_after) for _ in range(upstreams)]
    load = Load(0, 10, clients=3 * WORKERS * upstreams, pause=0.1)
    outcomes = simulate(limited, [load], seed=seed)

    answered = [each for each in outcomes if each.status == 200]
    late = [each for each in answered if each.at + each.seconds > 2]
    assert len(late) / 8 >= 0.95 * upstreams * WORKERS / 0.2
    assert sum(each.calls for each in limited) <= 1.25 * len(answered)
    # The first calls find out what it serves; one more is tried now and then.
    for each in limited:
        assert max(each.at_once_at(begin, begin + 0.2) for begin in range(2, 10)) <= WORKERS + 2
    assert len(outcomes) - len(answered) <= (0 if retry_after is None else 2 * WORKERS * upstreams)


@pytest.mark.parametrize(
    ("share", "rate", "seconds", "least"),
    [(0.4, 500, 0.05, 0.99), (0.5, 500, 0.05, 0.93), (0.4, 100, 0.3, 0.95), (0.4, 50, 0.02, 0.98)],
)
@pytest.mark.thorough
def test_random_errors_of_overload_do_not_lower_the_limit_for_long(share, rate, seconds, least):
    mode = brown_out(share)._replace(seconds=seconds)
    result = simulate_failures([(0.0, mode)], seconds=20, per_second=rate)
    assert result.answered() >= least
    waits = sorted(outcome.seconds for outcome in result.outcomes)
    assert waits[len(waits) // 2] <= 3 * seconds + 0.05


def test_a_busy_caller_does_not_starve_the_others():
    upstream = Upstream(4, 0.1, "queue")
    loads = [
        Load(0, 10, clients=200, stream="busy"),
        Load(1, 10, rate=5, caller="quiet", stream="quiet"),
    ]
    outcomes = simulate([upstream], loads)
    quiet = sorted(each.seconds for each in outcomes if each.stream == "quiet")
    assert all(each.status == 200 for each in outcomes if each.stream == "quiet")
    assert quiet[-1] <= 4.0
    assert quiet[len(quiet) // 2] <= 1.0


def test_requests_go_to_the_endpoint_with_room_when_another_is_full():
    small, large = Upstream(2, 0.2, 429), Upstream(64, 0.2, 429)
    outcomes = simulate([small, large], [Load(0, 10, clients=40, pause=0.1)])
    assert all(each.status == 200 for each in outcomes)
    assert len(small.answered) / 10 >= 0.9 * 2 / 0.2
    assert len(outcomes) / 10 >= 0.95 * 40 / 0.2
