"""What is due after equally many seconds comes in order, at its time, and not at all once it has left."""

import asyncio
import gc
import time
from weakref import ref

import pytest
import uvloop

from embedroute import Config, Gateway, tasks
from embedroute.due import _LINES, line_of
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
        guests, _ = await joined(comes, [0, 0.01, 0.01], 0.05)
        line = line_of(asyncio.get_running_loop(), 0.05)
        for at in [*leaving, *leaving]:
            line.leave(guests[at])
        await asyncio.sleep(0.1)

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
