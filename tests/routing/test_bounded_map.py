"""What is remembered by names that clients choose: all that is in use, and no more than so many."""

import pytest

from embedroute.errors import BadAnswer
from embedroute.execution import Widths
from embedroute.routing import MOST, BreakerPolicy, Healths, Recent
from tests.routing.factories import candidate


def test_memory_stays_bounded():
    recent = Recent()
    for at in range(5 * MOST):
        recent.recall(at, at)

    assert MOST <= len(recent) + len(recent.earlier) <= 2 * MOST


@pytest.mark.parametrize(("others", "known"), [(0, 1), (MOST - 1, 1), (MOST, 1), (2 * MOST, 2)])
def test_what_is_asked_for_while_others_come_in_is_not_forgotten(others, known):
    recent = Recent()
    for first in (1, 2):
        found = recent.recall("it", first)
        for at in range(others):
            recent.recall((first, at), 0)

    assert known == found


def test_what_is_always_asked_for_is_never_forgotten():
    recent = Recent()
    for at in range(5 * MOST):
        recent.recall(at, at)
        if at % MOST == 0:
            recent.recall("it", at)

    assert 0 == recent.recall("it", 1)


def test_the_health_of_an_endpoint_in_use_outlives_those_of_names_that_clients_made_up():
    healths, it = Healths(BreakerPolicy(failures=1)), candidate("it")
    ill = healths.of(it)
    for at in range(5 * MOST):
        healths.of(candidate("it", model=f"made-up-{at}"))
        assert ill is healths.of(it)

    assert len(healths._healths) <= MOST


def test_the_width_of_a_space_in_use_outlives_those_of_names_that_clients_made_up():
    widths = Widths()
    for at in range(5 * MOST):
        widths.agree("it", "float", 8)
        widths.agree(f"made-up-{at}", "float", at)

    with pytest.raises(BadAnswer, match="4 numbers where others of this model have 8"):
        widths.agree("it", "float", 4)
    assert len(widths._widths) <= MOST
