"""Every built-in store counts exactly: what is reserved and spent never exceeds a limit."""

import threading

import pytest

from embedroute import StoreSettings
from embedroute.backend import Secret
from embedroute.stores import Charge, MemoryBudgets, Refusal, make_store

HOUR = 3600.0


@pytest.fixture
def make_budgets(store_or_memory):
    """Return a function that opens the counters once more, as another process does."""
    url = store_or_memory
    if url is None:
        budgets = MemoryBudgets()
        yield lambda: budgets
        return
    opened = []

    def make():
        store = make_store(StoreSettings(url=Secret(url)))
        store.open()
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


def charge(amount, *, counter="key:a:total", limit=100):
    return Charge(counter, limit, amount)


def test_a_charge_that_does_not_fit_is_refused_with_what_is_left(make_budgets):
    budgets = make_budgets()
    assert budgets.reserve("1", [charge(60)], HOUR) is None
    assert Refusal(0, 40) == budgets.reserve("2", [charge(41)], HOUR)
    assert budgets.reserve("3", [charge(40)], HOUR) is None
    assert Refusal(0, 0) == budgets.reserve("4", [charge(1)], HOUR)


def test_what_was_spent_replaces_the_reservation(make_budgets):
    budgets = make_budgets()
    budgets.reserve("1", [charge(90)], HOUR)
    budgets.settle("1", [("key:a:total", 30)])
    budgets.settle("unknown", [("key:a:total", 5)])

    assert Refusal(0, 65) == make_budgets().reserve("2", [charge(66)], HOUR)
    assert budgets.reserve("3", [charge(65)], HOUR) is None


def test_a_reservation_that_nobody_settles_expires(make_budgets):
    budgets = make_budgets()
    assert budgets.reserve("1", [charge(100)], 0.05) is None
    assert Refusal(0, 0) == budgets.reserve("2", [charge(100)], HOUR)
    threading.Event().wait(0.1)
    assert budgets.reserve("3", [charge(100)], HOUR) is None


def test_all_charges_are_reserved_or_none(make_budgets):
    budgets = make_budgets()
    both = [charge(50), charge(50, counter="gateway:total", limit=60)]
    assert budgets.reserve("1", both, HOUR) is None
    assert Refusal(1, 10) == budgets.reserve("2", both, HOUR)
    assert budgets.reserve("3", [charge(50)], HOUR) is None, "the second has reserved nothing"


def test_large_amounts_are_exact(make_budgets):
    most = 10**15
    budgets = make_budgets()
    assert Refusal(0, most) == budgets.reserve("0", [charge(most + 1, limit=most)], HOUR)
    assert budgets.reserve("1", [charge(most - 1, limit=most)], HOUR) is None
    budgets.settle("1", [("key:a:total", most - 1)])
    assert Refusal(0, 1) == budgets.reserve("2", [charge(2, limit=most)], HOUR)
    assert budgets.reserve("3", [charge(1, limit=most)], HOUR) is None


def test_concurrent_reservations_of_several_processes_never_exceed_a_limit(make_budgets):
    """Four of them reserve the only unit of each of 64 counters at the same time."""
    together = threading.Barrier(4)
    admitted = []

    def reserve(worker, budgets):
        for number in range(64):
            together.wait()
            only = [charge(1, counter=f"key:{number}", limit=1)]
            if budgets.reserve(f"{worker}-{number}", only, HOUR) is None:
                admitted.append(number)

    threads = [
        threading.Thread(target=reserve, args=(worker, make_budgets())) for worker in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert list(range(64)) == sorted(admitted)
