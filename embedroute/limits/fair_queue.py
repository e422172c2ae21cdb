"""Orders the calls that wait for an endpoint: by lane, by caller, and by deadline.

Small calls have a lane of their own and go first, but while large ones wait, those get at least one
part in ``SHARE`` of the endpoint's time. Within a lane, callers share the time equally (start-time
fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996), and the calls of one caller are ordered by their
deadlines.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Final, Generic, TypeVar

SMALL: Final = 32
"""Inputs of the largest call in the lane of small calls."""
SHARE: Final = 8

T = TypeVar("T")


class Entry(Generic[T]):
    """An item that waits: its inputs, its cost in seconds, and its deadline."""

    __slots__ = ("cost", "deadline", "has_left", "inputs", "item")

    def __init__(self, item: T, inputs: int, cost: float, deadline: float) -> None:
        """Create an entry that waits."""
        self.item: T = item
        self.inputs: int = inputs
        self.cost: float = cost
        self.deadline: float = deadline
        self.has_left: bool = False


class _Flow(Generic[T]):
    """The entries of one caller in one lane. ``start`` is the virtual start time of the first."""

    __slots__ = ("_entries", "start")

    def __init__(self, start: float) -> None:
        self.start = start
        self._entries: list[tuple[float, int, Entry[T]]] = []

    def add(self, entry: Entry[T], number: int) -> None:
        heapq.heappush(self._entries, (entry.deadline, number, entry))

    def entries(self) -> list[Entry[T]]:
        return [entry for _, _, entry in self._entries if not entry.has_left]

    def pop(self) -> Entry[T] | None:
        """Remove and return the entry with the earliest deadline that has not left."""
        while self._entries:
            entry = heapq.heappop(self._entries)[2]
            if not entry.has_left:
                return entry
        return None


class _Lane(Generic[T]):
    """The flows of one lane; ``sizes`` counts the entries by the bit length of their inputs.

    The virtual time is the start of the flow that was served last. A flow without entries stays
    until the virtual time has reached its start, so that its caller gains nothing by a pause. When
    nothing waits, all is forgotten.
    """

    __slots__ = ("_flows", "_numbers", "_order", "_virtual_time", "sizes", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.sizes: Counter[int] = Counter()
        self._virtual_time = 0.0
        self._flows: dict[str, _Flow[T]] = {}
        self._order: list[tuple[float, int, str]] = []
        self._numbers = count()

    def add(self, caller: str, entry: Entry[T]) -> None:
        flow = self._flows.get(caller)
        if flow is None:
            flow = self._flows[caller] = _Flow(self._virtual_time)
            self._queue(caller, flow)
        flow.add(entry, next(self._numbers))
        self.waiting += 1
        self.sizes[entry.inputs.bit_length()] += 1

    def leave(self, entry: Entry[T]) -> None:
        entry.has_left = True
        self.waiting -= 1
        self.sizes[entry.inputs.bit_length()] -= 1
        if not self.waiting:
            self._flows.clear()
            self._order.clear()

    def cost(self, expect: Callable[[int], float]) -> float:
        """Return the seconds that all entries take, by the expected seconds of each size."""
        return sum(number * expect(1 << bits >> 1) for bits, number in self.sizes.items() if number)

    def entries(self) -> list[Entry[T]]:
        """Return the entries in the order of their deadlines."""
        found = [entry for flow in self._flows.values() for entry in flow.entries()]
        return sorted(found, key=lambda entry: entry.deadline)

    def pop(self) -> Entry[T] | None:
        """Remove and return the next entry, or None if there is none."""
        while self._order:
            start, _, caller = heapq.heappop(self._order)
            flow = self._flows[caller]
            self._virtual_time = start
            entry = flow.pop()
            if entry is not None:
                flow.start = start + entry.cost
                self._queue(caller, flow)
                self.leave(entry)
                return entry
            del self._flows[caller]
        return None

    def _queue(self, caller: str, flow: _Flow[T]) -> None:
        heapq.heappush(self._order, (flow.start, next(self._numbers), caller))


class FairQueue(Generic[T]):
    """The items that wait for one endpoint."""

    def __init__(self) -> None:
        """Create an empty queue."""
        self._small: _Lane[T] = _Lane()
        self._large: _Lane[T] = _Lane()
        self._owed = 0.0

    def __len__(self) -> int:
        """Return the number of items that wait."""
        return self._small.waiting + self._large.waiting

    @property
    def large(self) -> int:
        """The number of items in the lane of large calls."""
        return self._large.waiting

    def add(self, item: T, caller: str, inputs: int, cost: float, deadline: float) -> Entry[T]:
        """Add an item: a call of ``inputs`` inputs that takes ``cost`` seconds."""
        entry = Entry(item, inputs, cost, deadline)
        self._lane(entry).add(caller, entry)
        return entry

    def remove(self, entry: Entry[T]) -> None:
        """Remove an entry that waits no longer."""
        if not entry.has_left:
            self._lane(entry).leave(entry)

    def pop(self) -> Entry[T] | None:
        """Remove and return the next entry, or None if the queue is empty."""
        small, large = self._small, self._large
        if not small.waiting or not large.waiting:
            self._owed = 0.0
            return small.pop() if small.waiting else large.pop()
        entry = large.pop() if self._owed > 0.0 else small.pop()
        if entry is not None:
            self._owed += -entry.cost if entry.inputs > SMALL else entry.cost / (SHARE - 1)
        return entry

    def cost_before(self, inputs: int, expect: Callable[[int], float]) -> float:
        """Return the seconds that the calls before a new one of ``inputs`` inputs take.

        ``expect`` returns the seconds of a call by its inputs.
        """
        cost = self._small.cost(expect)
        return cost if inputs <= SMALL else cost + self._large.cost(expect)

    def late(self, now: float, expect: Callable[[int], float], at_once: int) -> list[Entry[T]]:
        """Return the entries that cannot be answered before their deadlines.

        ``at_once`` calls are served at a time.
        """
        before = 0.0
        late: list[Entry[T]] = []
        for entry in (*self._small.entries(), *self._large.entries()):
            cost = expect(entry.inputs)
            if now + before / at_once + cost > entry.deadline:
                late.append(entry)
            else:
                before += cost
        return late

    def _lane(self, entry: Entry[T]) -> _Lane[T]:
        return self._small if entry.inputs <= SMALL else self._large
