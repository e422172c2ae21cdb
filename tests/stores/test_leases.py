"""How a limit is divided among processes: one arithmetic, the same in all stores, that never exceeds the limit."""

import math
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedroute import StoreSettings
from embedroute.backend import Secret
from embedroute.limits import LeasedUnits
from embedroute.stores import Demand, Grant, Lease, Pool, lease, make_store

LEASE = 5.0


def demand(least, most=None, *, spent=0, capacity=100, refill=1.0, counter="c"):
    return Demand(
        counter=counter,
        capacity=capacity,
        refill=refill,
        spent=spent,
        least=least,
        most=least if most is None else most,
    )


EMPTY = Pool()
ROWS = {
    "what is needed": (EMPTY, demand(1), Grant(1, 99)),
    "and some more": (EMPTY, demand(1, 10), Grant(10, 90)),
    "at most a quarter of the rest": (Pool(used=80), demand(4, 50), Grant(8, 12)),
    "all that is left": (Pool(used=90), demand(10, 50), Grant(10, 0)),
    "nothing if it is too little": (Pool(used=91), demand(10, 50), Grant(0, 9)),
    "what has refilled": (Pool(used=100, at=-7.0), demand(7), Grant(7, 0)),
    "never more than the capacity": (Pool(used=1, at=-1000.0), demand(100), Grant(100, 0)),
    "no refill below what is leased": (
        Pool(used=40, at=-1000.0, leases={"b": Lease(40, 9.0)}),
        demand(60),
        Grant(60, 0),
    ),
    "a lease is replaced": (
        Pool(used=60, leases={"a": Lease(20, 9.0)}),
        demand(10, spent=15),
        Grant(10, 35),
    ),
    "a lease is given back": (
        Pool(used=60, leases={"a": Lease(20, 9.0)}),
        demand(0, spent=5),
        Grant(0, 55),
    ),
    "what is held is kept": (
        Pool(used=100, leases={"a": Lease(20, 9.0)}),
        demand(30, spent=5),
        Grant(15, 0),
    ),
    "more was used than held": (
        Pool(used=20, leases={"a": Lease(20, 9.0)}),
        demand(1, spent=50),
        Grant(1, 49),
    ),
    "less was used": (Pool(used=50), demand(0, spent=-30), Grant(0, 80)),
    "an expired lease counts as used": (
        Pool(used=50, at=-10.0, leases={"b": Lease(50, -1.0)}),
        demand(51),
        Grant(0, 50),
    ),
    "a clock that goes back": (Pool(used=50, at=1000.0), demand(0), Grant(0, 50)),
    "concurrent requests": (
        Pool(leases={"b": Lease(97, 9.0)}),
        demand(2, refill=0),
        Grant(2, 1),
    ),
    "too many concurrent requests": (
        Pool(leases={"b": Lease(97, 9.0), "a": Lease(2, 9.0)}),
        demand(4, refill=0),
        Grant(2, 1),
    ),
    "concurrent requests of a process that has died": (
        Pool(leases={"b": Lease(97, -1.0)}),
        demand(2, refill=0),
        Grant(2, 98),
    ),
}


@pytest.mark.parametrize(("pool", "wanted", "grant"), ROWS.values(), ids=ROWS.keys())
def test_a_lease_has(pool, wanted, grant):
    after, granted = lease(pool, wanted, "a", 0.0, LEASE)

    assert grant == granted
    assert after.leases.get("a") == (Lease(grant.units, LEASE) if grant.units else None)
    assert wanted.capacity - after.used == grant.available


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),  # the process
        st.sampled_from(["take", "end", "give back", "give excess back", "renew"]),
        st.sampled_from([1, 2, 10, 50, 97, 100]),  # units, in percent of the capacity
        st.floats(0, 4),  # seconds since the step before
    ),
    max_size=80,
)


USED_AFTER_A_REFILL = [
    (0, "take", 1, 0.0),
    (0, "take", 2, 4.0),
    *[(0, "take", percent, 0.0) for percent in (1, 98, 1, 1)],
]


@given(steps=STEPS, capacity=st.sampled_from([1, 7, 100, 3200]))
@example(steps=USED_AFTER_A_REFILL, capacity=3200)
def test_no_steps_of_processes_use_more_than_a_rate_allows(steps, capacity):
    """In any period, at most the capacity and what refills in the period."""
    pool, now, used = Pool(), 0.0, []
    refill = capacity / 60
    processes = [LeasedUnits("c", capacity, refill) for _ in range(3)]
    for number, step, percent, pause in steps:
        now += pause
        process = processes[number]
        units = max(capacity * percent // 100, 1)
        if step == "take":
            if not process.can_take(now, units):
                wanted = process.ask_for(units)
                pool, grant = lease(pool, wanted, str(number), now, LEASE)
                process.record(grant, now)
            if process.can_take(now, units):
                process.take(units)
                used.append((now, units))
        elif step != "end":
            wanted = {"give back": process.give_back, "renew": process.renew}.get(
                step, process.give_excess_back
            )()
            pool, grant = lease(pool, wanted, str(number), now, LEASE)
            process.record(grant, now)
    for first, (began, _) in enumerate(used):
        for last in range(first, len(used)):
            total = sum(units for _, units in used[first : last + 1])
            assert total <= capacity + refill * (used[last][0] - began) + 1e-3


@given(steps=STEPS, capacity=st.integers(1, 8))
def test_no_steps_of_processes_have_more_requests_in_progress_than_a_limit(steps, capacity):
    pool, now = Pool(), 0.0
    processes = [LeasedUnits("c", capacity) for _ in range(3)]
    for number, step, _, pause in steps:
        now += pause
        for other, each in enumerate(processes):  # as every process does in time
            if each.must_renew(now) and not each.is_empty:
                pool, grant = lease(pool, each.renew(), str(other), now - pause, LEASE)
                each.record(grant, now - pause)
        process = processes[number]
        if step == "take":
            if not process.can_take(now, 1):
                pool, grant = lease(pool, process.ask_for(1), str(number), now, LEASE)
                process.record(grant, now)
            if process.can_take(now, 1):
                process.take(1)
        elif step == "end" and process.spent:
            process.take(-1)
        elif step in {"give back", "give excess back"}:
            wanted = process.give_back() if step == "give back" else process.give_excess_back()
            pool, grant = lease(pool, wanted, str(number), now, LEASE)
            process.record(grant, now)
        assert sum(each.spent for each in processes) <= capacity


@pytest.fixture
def store(store_url):
    store = make_store(StoreSettings(url=Secret(store_url)))
    store.open()
    yield store
    store.close()


SCRIPT = [
    ("a", demand(1, 10)),
    ("b", demand(40)),
    ("a", demand(5, 20, spent=9)),
    ("c", demand(46)),
    ("c", demand(20, 30)),
    ("b", demand(50, spent=3)),
    ("b", demand(0, spent=40)),
    ("a", demand(0, spent=-2)),
    ("c", demand(30, spent=120)),
    ("c", demand(0, spent=-150)),
    ("a", demand(100)),
]


@pytest.mark.parametrize("refill", [0.0, 1e-12], ids=["concurrent requests", "rate"])
def test_every_store_has_the_same_arithmetic(store, refill):
    pool = Pool()
    for number, (holder, wanted) in enumerate(SCRIPT):
        changed = demand(
            wanted.least, wanted.most, spent=wanted.spent if refill else 0, refill=refill
        )
        pool, expected = lease(pool, changed, holder, 0.0, 1000.0)
        (granted,) = store.lease(holder, [changed], 1000.0)
        assert granted.units == expected.units, number
        assert granted.available == pytest.approx(expected.available, abs=1e-6), number


def test_limits_of_one_call_are_independent(store):
    wanted = [demand(7, counter="a"), demand(200, counter="b"), demand(0, counter="c")]

    assert [7, 0, 0] == [grant.units for grant in store.lease("a", wanted, LEASE)]
    assert 7 == store.lease("b", [demand(93, counter="a")], LEASE)[0].available + 7


def test_large_numbers_are_exact_enough(store):
    most = 10**12
    (grant,) = store.lease("a", [demand(1, most, capacity=most, refill=most / 60)], LEASE)
    assert grant.units == pytest.approx(most / 4, rel=1e-6)
    (rest,) = store.lease("b", [demand(0, capacity=most, refill=most / 60)], LEASE)
    assert rest.available == pytest.approx(most - grant.units, rel=0.01)


def test_places_of_a_process_that_has_died_are_free_after_the_lease(store):
    wanted = demand(1, capacity=1, refill=0)
    assert 1 == store.lease("dead", [wanted], 0.2)[0].units
    assert 0 == store.lease("a", [wanted], LEASE)[0].units
    threading.Event().wait(0.3)
    assert 1 == store.lease("a", [wanted], LEASE)[0].units


def test_units_refill_by_the_clock_of_the_store(store):
    store.lease("a", [demand(100, refill=20.0)], LEASE)
    store.lease("a", [demand(0, spent=100, refill=20.0)], LEASE)
    threading.Event().wait(0.5)
    (grant,) = store.lease("a", [demand(0, refill=20.0)], LEASE)
    assert 10 <= grant.available < math.inf
