"""Measures how long steps of an event loop take, in CPU time of a machine that nothing else uses."""

import asyncio
import json
import mmap
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

OBJECTS = json.dumps([{"type": "text", "text": str(at)} for at in range(2000)])
REFERENCE = 0.001
"""Seconds of CPU that ``seconds_of_reference`` takes on an idle core of the machine that the limits were set on."""


def seconds_of_reference():
    """Measure the CPU that a fixed piece of work of the same kind takes.

    Twice as much where other processes use the caches.
    """
    began = time.process_time()
    for item in json.loads(OBJECTS):
        dict(item, size=len(item["text"]))
    return time.process_time() - began


FRESH_MEMORY = bytes(4 << 20)
FRESH_REFERENCE = 0.002
"""Seconds of CPU that ``seconds_of_fresh_memory`` takes on that core."""


def seconds_of_fresh_memory():
    """Measure the CPU that writing to memory takes which the system has to map first, as for each large string.

    Virtual machines differ in this far more than in other work.
    """
    began = time.process_time()
    with mmap.mmap(-1, len(FRESH_MEMORY)) as memory:
        memory[:] = FRESH_MEMORY
    return time.process_time() - began


def slowness() -> float:
    """Return how many times slower than the references the machine is right now, 1 at least."""
    objects = median(seconds_of_reference() for _ in range(9)) / REFERENCE
    memory = median(seconds_of_fresh_memory() for _ in range(3)) / FRESH_REFERENCE
    return max(1.0, objects, memory)


class Spent:
    """The CPU time of a block, in seconds of the reference machine."""

    seconds = 0.0


@contextmanager
def measured_cpu() -> Iterator[Spent]:
    """Measure the CPU time that this process spends in the body of ``with``."""
    spent = Spent()
    before = slowness()
    began = time.process_time()
    yield spent
    seconds = time.process_time() - began
    spent.seconds = seconds * 2 / (before + slowness())


class Steps:
    """Measures the CPU time between two rounds of the event loop: how long it blocks other tasks.

    Coverage is off meanwhile, in this thread: counting the lines of a step takes longer than the step. ``longest`` is in
    seconds of the reference machine, which is ``slowness`` times faster than this one was meanwhile.
    """

    def __init__(self):
        self.longest = 0.0
        self.slowness = 1.0
        self._last = 0.0
        self._next = None
        self._tracer = None

    def _tick(self):
        now = time.process_time()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        self._next = asyncio.get_running_loop().call_soon(self._tick)

    def __enter__(self):
        self._tracer = sys.gettrace()
        sys.settrace(None)
        self.slowness = slowness()
        self._last = time.process_time()
        self._next = asyncio.get_running_loop().call_soon(self._tick)
        return self

    def __exit__(self, *_):
        self._next.cancel()
        longest = max(self.longest, time.process_time() - self._last)
        self.slowness = (self.slowness + slowness()) / 2
        self.longest = longest / self.slowness
        sys.settrace(self._tracer)
