"""What is due after equally many seconds comes in order, at its time, and not at all once it has left."""

import asyncio
import gc
import time
from contextlib import suppress
from contextvars import ContextVar
from weakref import ref

import pytest
import uvloop

from embedroute import Config, Gateway, tasks
from embedroute.due import _LINES, Line, line_of
from embedroute.testing import ScriptedBackend

LOOPS = [asyncio.run, uvloop.run]


class Guest:
    """Notes when its time comes, in ``comes``, which is everybody's."""

    def __init__(self, comes, name):
        self.comes, self.name = comes, name

    def come(self):
        self.comes.append((self.name, time.perf_counter()))


async def joined(comes, gaps, seconds):
    """Join one after the other, with ``gaps`` in seconds before each; returns the guests and when each began."""
    loop, guests, began = asyncio.get_running_loop(), [], []
    for name, gap in enumerate(gaps):
        await asyncio.sleep(gap)
        guests.append(Guest(comes, name))
        began.append(time.perf_counter())
        line_of(loop, seconds).join(loop, guests[-1])
    return guests, began


@pytest.mark.parametrize("run", LOOPS)
@pytest.mark.parametrize("gaps", [[0], [0, 0, 0], [0, 0.02, 0.02], [0, 0.15, 0, 0.15]])
def test_each_comes_at_its_own_time(run, gaps):
    """Whether the timer was set for it, or for one before it, or the line was empty for a while."""
    comes = []

    async def main():
        _, began = await joined(comes, gaps, 0.1)
        await asyncio.sleep(0.15)
        return began

    began = run(main())

    assert list(range(len(gaps))) == [name for name, _ in comes]
    # uvloop counts in whole milliseconds.
    assert all(at - since > 0.098 for (_, at), since in zip(comes, began, strict=True))


@pytest.mark.parametrize("run", LOOPS)
@pytest.mark.parametrize("leaving", [[0], [1], [0, 1], [2], [0, 1, 2]])
def test_who_has_left_is_not_called(run, leaving):
    """The others are, though the timer may have been set for who has left."""
    comes = []

    async def main():
        guests, _ = await joined(comes, [0, 0.01, 0.01], 0.5)
        line = line_of(asyncio.get_running_loop(), 0.5)
        for at in [*leaving, *leaving]:
            line.leave(guests[at])
        await asyncio.sleep(0.6)

    run(main())

    assert [it for it in range(3) if it not in leaving] == [name for name, _ in comes]


@pytest.mark.parametrize("run", LOOPS)
def test_loops_and_durations_have_lines_of_their_own_that_go_with_them(run):
    comes, loops = [], []

    async def main():
        loop = asyncio.get_running_loop()
        loops.append(ref(loop))
        assert line_of(loop, 60) is line_of(loop, 60)
        await joined(comes, [0], 60)
        await joined(comes, [0], 0.01)
        await asyncio.sleep(0.05)
        assert line_of(loop, 60) is not line_of(loop, 0.01)

    for _ in range(2):
        run(main())
        gc.collect()

    assert 2 == len(comes)
    assert [None, None] == [it() for it in loops]


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_that_is_closed_with_somebody_waiting_goes_too(new_loop):
    async def wait():
        with tasks.within(60):
            await asyncio.Event().wait()

    def close_one():
        loop = new_loop()
        task = loop.create_task(wait())
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        task._log_destroy_pending = False
        return ref(loop)

    loops = [close_one() for _ in range(3)]
    gc.collect()

    assert [None] * 3 == [it() for it in loops]


@pytest.mark.parametrize("run", LOOPS)
def test_what_the_first_request_knew_is_let_go_of_with_it(run):
    """Though others wait in its line for as long as there is load; a timer keeps the context in which it is set."""
    known = ContextVar("known")

    class Session:
        pass

    async def first():
        known.set(session := Session())
        with tasks.within(0.3):
            await asyncio.sleep(0)
        return ref(session)

    async def load():
        for _ in range(20):
            with suppress(TimeoutError), tasks.within(0.3):  # a collection may take as long
                await asyncio.sleep(0.02)

    async def main():
        session = await asyncio.create_task(first())
        others = [asyncio.create_task(load()) for _ in range(2)]
        await asyncio.sleep(0.35)
        gc.collect()
        held, busy = session(), len(line_of(asyncio.get_running_loop(), 0.3)._waiting)
        await asyncio.gather(*others)
        assert 2 == busy
        return held

    assert run(main()) is None


def test_a_backlog_that_is_due_at_once_is_gone_through_once():
    """Ten times as many take ten times as long, and not a hundred times."""

    def ring(many):
        comes, line = [], Line(0.0)
        loop = asyncio.new_event_loop()
        for at in range(many):
            line.join(loop, Guest(comes, at))
        began = time.process_time()
        line._ring(loop)
        took = time.process_time() - began
        loop.close()
        assert list(range(many)) == [name for name, _ in comes]
        return took

    assert min(ring(30_000) for _ in range(3)) < 40 * min(ring(3_000) for _ in range(3))


def test_who_leaves_when_another_has_come_is_not_called():
    comes, line = [], Line(0.0)

    class Leaving(Guest):
        def come(self):
            super().come()
            line.leave(second)

    async def main():
        loop = asyncio.get_running_loop()
        for guest in (Leaving(comes, "first"), second, Guest(comes, "third")):
            line.join(loop, guest)
        await asyncio.sleep(0.05)

    second = Guest(comes, "second")
    asyncio.run(main())

    assert ["first", "third"] == [name for name, _ in comes]


@pytest.mark.parametrize("run", LOOPS)
def test_a_line_rings_once_for_each_that_is_due(run):
    """Where a loop counts in whole milliseconds, it would ring on and on until the next one."""
    rings, comes = [], []

    class Counting(Line):
        __slots__ = ()

        def _ring(self, loop):
            rings.append(1)
            super()._ring(loop)

    async def main():
        line = Counting(0.05)
        for name in range(20):
            line.join(asyncio.get_running_loop(), Guest(comes, name))
            await asyncio.sleep(0.004)
        await asyncio.sleep(0.1)

    run(main())

    assert (20, True) == (len(comes), len(rings) <= 22)


def test_one_that_fails_when_its_time_comes_holds_nobody_up():
    comes, told = [], []

    class Failing(Guest):
        def come(self):
            raise LookupError

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(type(context["exception"])))
        line = Line(0.02)
        line.join(loop, Failing(comes, "failing"))
        line.join(loop, Guest(comes, "next"))
        await asyncio.sleep(0.1)

    asyncio.run(main())

    assert (["next"], [LookupError]) == ([name for name, _ in comes], told)


@pytest.mark.parametrize("run", LOOPS)
def test_a_hundred_bounds_set_one_timer(run):
    """Which is what all this is for."""

    def timers():
        return sum(type(it).__name__ == "TimerHandle" for it in gc.get_objects())

    async def main():
        before = timers()
        bounds = [tasks.within(60) for _ in range(100)]
        after = timers()
        for bound in bounds:
            bound.__exit__(None, None, None)
        return after - before

    assert 1 == run(main())


@pytest.mark.parametrize("run", LOOPS)
def test_a_bound_of_its_own_leaves_no_line_and_no_timer_behind(run):
    """The time that is left for a call is never twice the same."""

    def things():
        timers = [it for it in gc.get_objects() if type(it).__name__ == "TimerHandle"]
        return len([it for it in timers if not it.cancelled()])

    async def main():
        loop = asyncio.get_running_loop()
        before, lines = things(), len(_LINES.get(loop, {}))
        for at in range(100):
            with tasks.within(60 + at / 1000, alone=True):
                await asyncio.sleep(0)
        with pytest.raises(TimeoutError), tasks.within(0.01, alone=True):
            await asyncio.sleep(1)
        return things() - before, len(_LINES.get(loop, {})) - lines

    assert (0, 0) == run(main())


def test_calls_to_local_models_leave_no_lines_behind():
    """Each has a time of its own."""
    gateway = Gateway(Config(gateway={"auth": "open"}, providers={"one": {"backend": ScriptedBackend(width=4)}}))

    async def main():
        for at in range(20):
            await gateway.embed(f"t{at}", model="one/m")
        return len(_LINES[asyncio.get_running_loop()])

    assert 1 == asyncio.run(main())
