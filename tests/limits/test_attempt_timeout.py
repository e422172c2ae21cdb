"""How long a call may take while another endpoint can be used: pure, from the calls so far."""

import pytest

from embedroute.limits import ConcurrencyLimit, attempt_timeout


def calls_of(answered):
    """Return a limit to which calls were answered: pairs of their inputs and seconds."""
    calls = ConcurrencyLimit()
    for inputs, seconds in answered:
        calls.record_answer(0.0, inputs, seconds, 1)
    return calls


FAST = [(1, 0.02), (1, 0.03)]
SLOW = [(1, 0.02), (1, 1.5)]


@pytest.mark.parametrize(
    ("answered", "inputs", "letters", "expected"),
    [
        pytest.param([], 1, 0, 10.01, id="nothing is known"),
        pytest.param(FAST, 1, 0, 2.01, id="a fast endpoint"),
        pytest.param(SLOW, 1, 0, 4.5, id="the slowest call counts three times"),
        pytest.param(FAST, 1, 32_000, 10.01, id="a long text"),
        pytest.param([(32, 1.0)], 40, 0, 3.0, id="a call of the same size class"),
        pytest.param([(256, 1.0)], 1, 0, 3.0, id="only larger calls were answered"),
        pytest.param([(1, 0.5)], 8, 0, 12.0, id="only smaller calls were answered"),
        pytest.param([(1, 9.0), *FAST * 500], 1, 0, 2.01, id="old calls are forgotten"),
    ],
)
def test_a_call_may_take_three_times_as_long_as_the_slowest(answered, inputs, letters, expected):
    assert attempt_timeout(calls_of(answered), inputs, letters) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answered", "expected"),
    [
        pytest.param([], 2.01, id="nothing is known"),
        pytest.param(SLOW, 2.01, id="an endpoint with slow calls"),
        pytest.param([(1, 4.0)], 4.0, id="one that needs more than two seconds"),
    ],
)
def test_a_probe_gets_no_more_than_its_size_needs(answered, expected):
    timeout = attempt_timeout(calls_of(answered), 1, 0, is_probe=True)

    assert timeout == pytest.approx(expected)


def test_a_call_that_was_given_up_counts_only_if_others_are_answered():
    calls = calls_of(FAST)
    calls.record_slow_call(2.01, 1, 2.01)
    assert attempt_timeout(calls, 1, 0) == pytest.approx(2.01)
    calls.record_answer(3.9, 1, 0.02, 1)
    calls.record_slow_call(4.0, 1, 2.01)

    assert attempt_timeout(calls, 1, 0) == pytest.approx(6.03)
