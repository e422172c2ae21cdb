"""The bounded map: keys in use are kept, and the number of entries is bounded."""

import pytest

from embedroute.errors import InvalidUpstreamResponse
from embedroute.execution import WidthRegistry
from embedroute.routing import MOST, BoundedMap, HealthRegistry
from tests.routing.factories import candidate
from tests.support.reachable import count_reachable


def test_memory_stays_bounded():
    recent = BoundedMap()
    for at in range(5 * MOST):
        recent.get_or_insert(at, at)

    assert MOST <= len(recent) + len(recent.earlier) <= 2 * MOST


@pytest.mark.parametrize(("others", "known"), [(0, 1), (MOST - 1, 1), (MOST, 1), (2 * MOST, 2)])
def test_a_key_in_use_survives_many_new_keys(others, known):
    recent = BoundedMap()
    for first in (1, 2):
        found = recent.get_or_insert("it", first)
        for at in range(others):
            recent.get_or_insert((first, at), 0)

    assert known == found


def test_a_key_that_is_always_in_use_is_never_dropped():
    recent = BoundedMap()
    for at in range(5 * MOST):
        recent.get_or_insert(at, at)
        if at % MOST == 0:
            recent.get_or_insert("it", at)

    assert 0 == recent.get_or_insert("it", 1)


def test_invented_model_names_do_not_evict_the_health_of_an_endpoint_in_use():
    healths, item = HealthRegistry(), candidate("it")
    ill = healths.get(item)
    sizes = []
    for at in range(5 * MOST):
        healths.get(candidate("it", model=f"made-up-{at}"))
        assert ill is healths.get(item)
        if at % MOST == MOST - 1:
            sizes.append(count_reachable(healths))

    assert sizes[-1] < 2 * sizes[0]


def test_invented_model_names_do_not_evict_the_width_of_a_space_in_use():
    widths = WidthRegistry()
    sizes = []
    for at in range(5 * MOST):
        widths.check("it", "float", 8)
        widths.check(f"made-up-{at}", "float", at)
        if at % MOST == MOST - 1:
            sizes.append(count_reachable(widths))

    with pytest.raises(
        InvalidUpstreamResponse,
        match="returned 4-dimensional vectors; earlier vectors of this model have 8",
    ):
        widths.check("it", "float", 4)
    assert sizes[-1] < 2 * sizes[0]
