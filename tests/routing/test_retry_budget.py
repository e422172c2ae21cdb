"""The budget of retries and bisections. No clock is read."""

from hypothesis import given
from hypothesis import strategies as st

from embedroute.routing import RetryBudget


def count_allowed(budget, now, most=1000):
    """Count how many retries are allowed at one time."""
    return next(count for count in range(most) if not budget.allow(now))


def test_a_few_retries_are_allowed_without_an_answer():
    budget = RetryBudget(refilled=3)

    assert 3 == count_allowed(budget, 0.0)


def test_time_refills_the_budget_up_to_its_floor():
    budget = RetryBudget(refilled=3, per_second=0.5)
    assert 3 == count_allowed(budget, 100.0)

    assert [0, 1, 2] == [count_allowed(budget, now) for now in (101.0, 102.0, 106.0)]
    assert 3 == count_allowed(budget, 1000.0)


def test_each_answer_allows_one_retry_up_to_a_hundred():
    budget = RetryBudget(refilled=0)
    for _ in range(5):
        budget.answered += 1
    assert 5 == count_allowed(budget, 0.0)
    for _ in range(500):
        budget.answered += 1

    assert 100 == count_allowed(budget, 0.0)


def test_a_saved_budget_does_not_shrink():
    budget = RetryBudget(refilled=2)
    for _ in range(5):
        budget.answered += 1

    assert 7 == count_allowed(budget, 50.0)


def test_a_reserved_retry_is_granted_once():
    budget = RetryBudget(refilled=2, per_second=0.0)

    assert budget.allow(0.0)
    enter = budget.reserve_one()

    assert [True, True, False] == [enter(0.0) for _ in range(3)]


def test_bisections_have_an_allowance_of_their_own():
    budget = RetryBudget(refilled=0)
    allowed = sum(budget.allow_bisection(0.0) for _ in range(1000))
    assert not budget.allow(0.0)
    assert 200 < allowed < 1000

    budget.answered += 1
    assert [True] * 4 + [False] == [budget.allow_bisection(0.0) for _ in range(5)]
    assert budget.allow_bisection(60.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=300))
def test_retries_never_exceed_the_floor_the_time_and_the_answers(steps):
    budget, now, answers, retries = RetryBudget(refilled=5), 0.0, 0, 0
    for wait, answered in steps:
        now += wait
        if answered:
            budget.answered += 1
            answers += 1
        else:
            retries += budget.allow(now)
            assert retries <= 5 + now + answers + 1e-6
