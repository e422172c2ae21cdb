"""Tests of PerLoop: a value is made at first use, and closed when the loop ends or sooner."""

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


class Resources:
    """Makes values, and records which were made and closed."""

    def __init__(self):
        self.made, self.closed = [], []
        self.per_loop = PerLoop("resources", self.make)

    def make(self, stack):
        thing = f"thing {len(self.made)}"
        self.made.append(thing)
        stack.push_async_callback(self.close, thing)
        return thing

    async def close(self, thing):
        # A real close awaits the network, also while the loop ends and cancels its tasks.
        await anyio.lowlevel.checkpoint()
        await anyio.sleep(0.001)
        self.closed.append(thing)


@pytest.mark.anyio
async def test_concurrent_first_users_share_one_value():
    resources, got = Resources(), []

    async def get():
        got.append(await resources.per_loop.get())

    await tasks.gather([get] * 5, at_once=5)

    assert got == ["thing 0"] * 5
    assert resources.closed == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_lifespan_the_value_is_closed_when_its_loop_ends(backend):
    resources = Resources()

    for at in range(3):
        assert anyio.run(resources.per_loop.get, backend=backend) == f"thing {at}"
        assert resources.closed == resources.made


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_value_is_closed_when_the_loop_ends_with_an_error(backend):
    resources = Resources()

    async def fail():
        await resources.per_loop.get()
        raise LookupError

    with pytest.raises(LookupError):
        anyio.run(fail, backend=backend)
    assert resources.closed == ["thing 0"]


@pytest.mark.anyio
async def test_after_close_the_next_get_makes_a_new_value():
    resources = Resources()
    first = await resources.per_loop.get()
    await resources.per_loop.close(first)
    await resources.per_loop.close(first)
    await resources.per_loop.get()
    await resources.per_loop.close(first)

    assert resources.made == ["thing 0", "thing 1"]
    assert resources.closed == ["thing 0"]


@pytest.mark.anyio
async def test_concurrent_calls_of_close_close_the_value_once():
    resources = Resources()
    close = partial(resources.per_loop.close, await resources.per_loop.get())

    await tasks.gather([close, close], at_once=2)
    assert resources.closed == ["thing 0"]


@pytest.mark.anyio
async def test_a_value_made_while_another_is_closing_is_kept():
    """Otherwise the garbage collector would close it while a late request uses it."""
    closed = []

    def make(stack):
        stack.push_async_callback(slowly, made := object())
        return made

    async def slowly(made):
        await anyio.sleep(0.05)
        closed.append(made)

    per_loop = PerLoop("slow", make)
    first, late = await per_loop.get(), []

    async def come_late():
        await anyio.sleep(0.01)
        late.append(await per_loop.get())

    await tasks.gather([partial(per_loop.close, first), come_late], at_once=2)
    gc.collect()
    await anyio.sleep(0.1)

    assert [late[0]] == [await per_loop.get()]
    assert [first] == closed


@pytest.mark.anyio
async def test_get_retries_after_make_has_failed():
    faults = [OSError("no"), None]

    def make(_stack):
        if fault := faults.pop(0):
            raise fault
        return "made"

    per_loop = PerLoop("faulty", make)
    with pytest.raises(OSError, match="no"):
        await per_loop.get()

    assert await per_loop.get() == "made"


@pytest.mark.parametrize("backend", BACKENDS)
def test_loops_in_two_threads_have_separate_values(backend):
    resources, meet, got = Resources(), threading.Barrier(2, timeout=60), []

    async def use():
        thing = await resources.per_loop.get()
        meet.wait()
        got.append((thing, await resources.per_loop.get()))

    threads = [
        threading.Thread(target=anyio.run, args=[use], kwargs={"backend": backend})
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(got) == [("thing 0", "thing 0"), ("thing 1", "thing 1")]
    assert sorted(resources.closed) == ["thing 0", "thing 1"]


def test_instances_with_the_same_name_are_independent():
    all_resources = [Resources(), Resources()]

    async def use():
        return [await resources.per_loop.get() for resources in all_resources]

    assert asyncio.run(use()) == ["thing 0", "thing 0"]
    assert [resources.closed for resources in all_resources] == [["thing 0"], ["thing 0"]]


def test_does_not_keep_a_loop_alive():
    resources = Resources()

    async def use():
        await resources.per_loop.get()
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(use())
    gc.collect()

    assert loop() is None
