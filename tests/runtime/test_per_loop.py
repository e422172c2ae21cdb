"""What belongs to a loop is made once, at first use, and closed when the loop ends or sooner."""

import asyncio
import gc
import threading
import weakref
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from embedroute.runtime import PerLoop, tasks

BACKENDS = ["asyncio", "trio"]


class Shop:
    """Makes things and notes when each was made and closed."""

    def __init__(self):
        self.made, self.closed = [], []
        self.perloop = PerLoop("shop", self.make)

    def make(self, stack):
        thing = f"thing {len(self.made)}"
        self.made.append(thing)
        stack.push_async_callback(self.close, thing)
        return thing

    async def close(self, thing):
        # A real close waits for the network, also where the loop is going down and cancels all it can.
        await anyio.lowlevel.checkpoint()
        await anyio.sleep(0.001)
        self.closed.append(thing)


@pytest.mark.anyio
async def test_the_first_users_of_a_loop_share_one():
    shop, got = Shop(), []

    async def get():
        got.append(await shop.perloop.get())

    await tasks.gather([get] * 5, at_once=5)

    assert got == ["thing 0"] * 5
    assert shop.closed == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_lifespan_it_is_closed_when_its_loop_ends(backend):
    shop = Shop()

    for at in range(3):
        assert anyio.run(shop.perloop.get, backend=backend) == f"thing {at}"
        assert shop.closed == shop.made


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_closed_even_when_the_loop_ends_by_an_error(backend):
    shop = Shop()

    async def fail():
        await shop.perloop.get()
        raise LookupError

    with pytest.raises(LookupError):
        anyio.run(fail, backend=backend)
    assert shop.closed == ["thing 0"]


@pytest.mark.anyio
async def test_closing_makes_room_for_another():
    shop = Shop()
    first = await shop.perloop.get()
    await shop.perloop.close(first)
    await shop.perloop.close(first)
    await shop.perloop.get()
    await shop.perloop.close(first)

    assert shop.made == ["thing 0", "thing 1"]
    assert shop.closed == ["thing 0"]


@pytest.mark.anyio
async def test_what_is_closed_by_two_at_once_is_closed_once():
    shop = Shop()
    close = partial(shop.perloop.close, await shop.perloop.get())

    await tasks.gather([close, close], at_once=2)
    assert shop.closed == ["thing 0"]


@pytest.mark.anyio
async def test_what_is_made_while_another_is_being_closed_is_kept():
    """It would be made anew for the next, and closed by the collector while a late request still uses it."""
    closed = []

    def make(stack):
        stack.push_async_callback(slowly, made := object())
        return made

    async def slowly(made):
        await anyio.sleep(0.05)
        closed.append(made)

    perloop = PerLoop("slow", make)
    first, late = await perloop.get(), []

    async def come_late():
        await anyio.sleep(0.01)
        late.append(await perloop.get())

    await tasks.gather([partial(perloop.close, first), come_late], at_once=2)
    gc.collect()
    await anyio.sleep(0.1)

    assert [late[0]] == [await perloop.get()]
    assert [first] == closed


@pytest.mark.anyio
async def test_a_failure_to_make_is_forgotten():
    faults = [OSError("no"), None]

    def make(_stack):
        if fault := faults.pop(0):
            raise fault
        return "made"

    perloop = PerLoop("faulty", make)
    with pytest.raises(OSError, match="no"):
        await perloop.get()

    assert await perloop.get() == "made"


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_loops_in_two_threads_have_one_each(backend):
    shop, meet, got = Shop(), threading.Barrier(2, timeout=60), []

    async def use():
        thing = await shop.perloop.get()
        meet.wait()
        got.append((thing, await shop.perloop.get()))

    threads = [
        threading.Thread(target=anyio.run, args=[use], kwargs={"backend": backend})
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(got) == [("thing 0", "thing 0"), ("thing 1", "thing 1")]
    assert sorted(shop.closed) == ["thing 0", "thing 1"]


def test_two_of_one_name_do_not_meet():
    shops = [Shop(), Shop()]

    async def use():
        return [await shop.perloop.get() for shop in shops]

    assert asyncio.run(use()) == ["thing 0", "thing 0"]
    assert [shop.closed for shop in shops] == [["thing 0"], ["thing 0"]]


def test_no_loop_is_kept_alive():
    shop = Shop()

    async def use():
        await shop.perloop.get()
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(use())
    gc.collect()

    assert loop() is None
