"""The order in which waiting calls are admitted: lanes, callers, deadlines."""

from collections import Counter

import pytest

from embedroute.limits import SHARE, SMALL, FairQueue
from tests.support.reachable import count_reachable


def drained(queue):
    items = []
    while (entry := queue.pop()) is not None:
        items.append(entry.item)
    return items


def test_the_calls_of_one_caller_are_ordered_by_their_deadlines():
    queue = FairQueue()
    for deadline in (3.0, 1.0, 2.0):
        queue.add(deadline, "caller", 1, 0.1, deadline)
    assert drained(queue) == [1.0, 2.0, 3.0]


def test_small_calls_go_first():
    queue = FairQueue()
    queue.add("large", "caller", SMALL + 1, 1.0, 1.0)
    queue.add("small", "caller", SMALL, 1.0, 9.0)
    assert drained(queue) == ["small", "large"]


def test_large_calls_get_their_share_however_many_small_ones_wait():
    queue = FairQueue()
    served = Counter()
    for number in range(2000):
        queue.add("small", f"caller {number % 7}", 1, 0.02, 1.0)
        queue.add("large", f"caller {number % 3}", 2048, 0.4, 1.0)
        entry = queue.pop()
        served[entry.item] += entry.cost
    assert served["large"] / served.total() == pytest.approx(1 / SHARE, rel=0.06)


def test_small_calls_are_not_delayed_by_a_share_that_was_owed_long_ago():
    queue = FairQueue()
    queue.add("large", "a", 2048, 100.0, 9.0)
    queue.add("small", "b", 1, 0.1, 9.0)
    assert drained(queue) == ["small", "large"]
    queue.add("large", "a", 2048, 100.0, 9.0)
    queue.add("small", "b", 1, 0.1, 9.0)
    assert drained(queue) == ["small", "large"]


def test_callers_share_the_time_equally_whatever_they_send():
    queue = FairQueue()
    served = Counter()
    for number in range(3000):
        queue.add("many", "many", 1, 0.1, float(number))
        queue.add("long", "long", 1, 0.4, float(number))
        if number % 4 == 0:
            queue.add("few", "few", 1, 0.1, float(number))
        entry = queue.pop()
        served[entry.item] += entry.cost
    assert served["many"] == pytest.approx(served["long"], rel=0.05)
    # It gets all that it asks for, as that is less than a third.
    assert served["few"] == pytest.approx(75.0, rel=0.02)


def test_a_caller_gains_nothing_by_a_pause_and_loses_nothing():
    queue = FairQueue()
    for number in range(100):
        queue.add("steady", "steady", 1, 0.1, float(number))
    assert [queue.pop().item for _ in range(50)] == ["steady"] * 50
    for number in range(4):
        queue.add("late", "late", 1, 0.1, float(number))
    assert Counter(queue.pop().item for _ in range(4)) == {"steady": 2, "late": 2}


def test_what_has_left_is_neither_served_nor_counted():
    queue = FairQueue()
    entries = [queue.add(number, f"caller {number % 2}", 1, 0.1, 1.0) for number in range(6)]
    for entry in entries[::2]:
        queue.remove(entry)
        queue.remove(entry)
    assert len(queue) == 3
    assert queue.cost_before(1, lambda _: 0.1) == pytest.approx(0.3)
    assert sorted(drained(queue)) == [1, 3, 5]
    assert len(queue) == 0
    assert queue.pop() is None


def test_a_new_call_waits_for_those_of_its_lane_and_a_large_one_for_all():
    queue = FairQueue()
    queue.add("small", "a", 1, 0.1, 1.0)
    queue.add("large", "a", 2048, 0.4, 1.0)
    seconds = {1: 0.02, 2048: 0.5}

    def expect(inputs):
        return seconds[inputs]

    assert queue.cost_before(SMALL, expect) == pytest.approx(0.02)
    assert queue.cost_before(SMALL + 1, expect) == pytest.approx(0.52)


def test_calls_that_cannot_be_served_in_time_are_found_and_the_others_are_not():
    queue = FairQueue()
    for number in range(10):
        queue.add(number, "caller", 1, 0.1, 1.0)
    # Two at a time, each 0.3 s: those after the first six end later than 1 s.
    late = queue.late(0.1, lambda _: 0.3, 2)
    assert [entry.item for entry in late] == [5, 6, 7, 8, 9]
    assert queue.late(0.1, lambda _: 0.01, 2) == []


def test_callers_that_wait_no_longer_are_forgotten():
    queue = FairQueue()
    sizes = []
    for number in range(3000):
        queue.add(number, f"caller {number}", 1, 0.1, 1.0)
        queue.pop()
        if number % 1000 == 500:
            sizes.append(count_reachable(queue))
    assert sizes[2] == sizes[1]
