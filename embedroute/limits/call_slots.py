"""Queues the calls to an endpoint that has as many calls in flight as it can serve."""

import math
from collections.abc import Callable

import anyio

from embedroute.errors import EndpointBusy
from embedroute.limits.concurrency import PER_INPUT, ConcurrencyLimit
from embedroute.limits.fair_queue import SMALL, Entry, FairQueue

MOST_WAITING = 4096
"""Calls that may wait for one endpoint."""
PERCENTILE = 90
MARGIN = 1.15
"""A call may wait only if this percentile of the durations, with a margin, is left after that."""
SHORTEST_RETRY_AFTER = 1.0
"""Seconds that clients are asked to wait at least."""
INTERACTIVE = 10.0
"""Seconds for which large calls are kept short after a small call."""
SHORT_CALL = 0.25
"""Seconds that a large call should take at most beside small ones."""
LEAST_INPUTS = 256
"""Inputs to which large calls are cut for that."""


REFUSED = -1
"""The generation of a call that is refused."""
CHECKED_EVERY = 0.05
"""Seconds after which it is checked again what can still be served in time."""


class Pending:
    """The decision about a waiting call; ``generation`` is that of the calls in flight with it."""

    __slots__ = ("decided", "generation")

    def __init__(self) -> None:
        """Begin undecided: the call is neither admitted nor refused."""
        self.decided: anyio.Event = anyio.Event()
        self.generation: int = REFUSED


class CallSlots:
    """The calls to one endpoint on one event loop: those in flight, and those that wait.

    The fast path is the caller's: if nothing is ``waiting`` and ``calls.in_flight`` is below
    ``calls.limit``, increment ``calls.in_flight``, else ``wait``. Afterwards call ``leave``.
    """

    __slots__ = ("_checked_at", "_clock", "_queue", "_small_at", "calls", "waiting")

    def __init__(
        self, most: int | None, clock: Callable[[], float], *, learns: bool = True
    ) -> None:
        """Allow up to ``most`` calls in flight, or less if it ``learns`` what is served at once."""
        self._clock = clock
        self._checked_at = self._small_at = float("-inf")
        self.calls: ConcurrencyLimit = ConcurrencyLimit(most, learns=learns)
        self.waiting: int = 0
        self._queue: FairQueue[Pending] = FairQueue()

    @property
    def is_full(self) -> bool:
        """Whether a new call must wait."""
        return self.waiting > 0 or self.calls.in_flight >= self.calls.limit

    def expected_wait(self, inputs: int) -> float:
        """Return the seconds until a new call of ``inputs`` inputs can probably begin."""
        calls = self.calls
        in_flight = calls.expect(inputs) / 2
        return (self._queue.cost_before(inputs, calls.expect) + in_flight) / calls.proven

    def can_serve(self, inputs: int, seconds: float) -> bool:
        """Return whether a new call can probably be answered within ``seconds``."""
        calls = self.calls
        duration = calls.usual(inputs, PERCENTILE) if calls.knows(inputs) else calls.expect(inputs)
        wait = self.expected_wait(inputs)
        return self.waiting < MOST_WAITING and MARGIN * (wait + duration) <= seconds

    def most_inputs(self, inputs: int) -> int:
        """Return the inputs of the largest call that is short enough beside small calls.

        It is ``inputs`` if no small call had to wait lately. The last call of a request is smaller
        than the others, so that calls that began together do not all end together.
        """
        most = inputs
        if self._clock() - self._small_at < INTERACTIVE:
            while most > LEAST_INPUTS and self.calls.expect(most) > SHORT_CALL:
                most = -(-most // 2)
        return most if most == inputs else most + most // 8

    def busy_error(self, inputs: int) -> EndpointBusy:
        """Make the error of a call that may not wait for as long as it must."""
        return EndpointBusy(
            "The providers of this model have as many calls in flight as they can serve in time. "
            "Wait before you send it again, or send fewer requests at once.",
            retry_after=max(SHORTEST_RETRY_AFTER, math.ceil(self.expected_wait(inputs))),
        )

    async def wait(self, caller: str, inputs: int, deadline: float) -> int:
        """Wait until the call may begin, count it as in flight, and return its generation.

        It must be answered before the ``deadline``, a time of the clock.

        Raises:
            EndpointBusy: it cannot begin early enough.
        """
        now = self._clock()
        if inputs <= SMALL:
            self._small_at = now
        if not self.can_serve(inputs, deadline - now):
            raise self.busy_error(inputs)
        if not self.waiting:
            self.calls.progress_at = max(self.calls.progress_at, now)
        cost = self.calls.expect(inputs)
        latest = deadline - cost
        pending = Pending()
        entry = self._queue.add(pending, caller, inputs, cost or PER_INPUT * inputs, deadline)
        self.waiting += 1
        try:
            while (now := self._clock()) < latest:
                longest = self.calls.stalled_after(inputs)
                with anyio.move_on_after(min(longest, latest - now)):
                    await pending.decided.wait()
                if pending.generation != REFUSED:
                    return pending.generation
                if pending.decided.is_set():
                    break
                self.calls.give_up_stalled(self._clock(), inputs)
                self.admit()
        except BaseException:
            self._give_up(entry)
            raise
        self._give_up(entry)
        raise self.busy_error(inputs)

    def leave(self, generation: int) -> None:
        """Count a call of this ``generation`` as ended, and begin the next ones."""
        if generation == self.calls.generation:
            self.calls.in_flight -= 1
        if self.waiting:
            self.admit()

    def admit(self) -> None:
        """Begin the calls that wait, as far as the limit allows."""
        calls = self.calls
        while self.waiting and calls.in_flight < calls.limit:
            entry = self._queue.pop()
            if entry is None:
                break
            self.waiting -= 1
            calls.in_flight += 1
            entry.item.generation = calls.generation
            entry.item.decided.set()
        now = self._clock()
        if self.waiting and now - self._checked_at >= CHECKED_EVERY:
            self._checked_at = now
            self._refuse_late(now)

    def _refuse_late(self, now: float) -> None:
        """Refuse at once what can no longer be served in time: the endpoint is slower now."""
        for entry in self._queue.late(now, self.calls.expect, self.calls.limit):
            self._queue.remove(entry)
            self.waiting -= 1
            entry.item.decided.set()

    def _give_up(self, entry: Entry[Pending]) -> None:
        """Leave the queue, or pass the slot on if the call was admitted already."""
        if entry.item.generation != REFUSED:
            self.leave(entry.item.generation)
        elif not entry.has_left:
            self._queue.remove(entry)
            self.waiting -= 1
