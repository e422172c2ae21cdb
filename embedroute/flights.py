"""Keys being computed now: equal inputs of concurrent requests are computed once.

Invariant: shared work goes on for whoever still waits. No task is started here: the request that comes first
leads and computes; one that waits takes over when its leader is cancelled or runs out of time.
"""

import math
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Self, TypeVar, TypeVarTuple

import anyio

from embedroute.errors import DeadlineExceeded, EmbedrouteError, InputRefused, RateLimited, TimedOut
from embedroute.inputs import Input
from embedroute.routing.plan import Embedded, Key

Work = Mapping[Key, Input]
Land = Callable[[Mapping[Key, Embedded]], None]
"""Takes vectors as they land."""

T = TypeVar("T")
Given = TypeVarTuple("Given")
Compute = Callable[[*Given, Work, Land], Awaitable[None]]
"""Takes what is given to it and work, and computes that; each part goes to its last argument as it lands."""


def without(work: Work, found: Container[Key] | None) -> Work:
    """Take the keys that were ``found`` out of work; nearly always those are none."""
    return {key: item for key, item in work.items() if key not in found} if found else work


class Flight:
    """One key on its way; ``terms`` is what a waiter must share with its leader to share its error too.

    ``group`` is all that the leader computes: any of them may be the one that an upstream finds fault with.
    """

    __slots__ = ("_end", "error", "group", "landed", "over", "terms")

    def __init__(self, terms: object, group: Work) -> None:
        """Take off."""
        self._end: anyio.Event | None = None
        self.over = False
        self.terms = terms
        self.group = group
        self.landed: Embedded | None = None
        self.error: EmbedrouteError | None = None

    async def wait(self) -> None:
        """Wait until it is over; nearly no flight is waited for, so only a waiter makes the event."""
        if not self.over:
            self._end = self._end or anyio.Event()
            await self._end.wait()

    def end(self) -> None:
        """It is over: landed, failed, or left by its leader."""
        self.over = True
        if self._end is not None:
            self._end.set()

    def error_for(self, terms: object, asked: AbstractSet[Key]) -> EmbedrouteError | None:
        """The leader's error, if it is also that of a request for ``asked`` on ``terms``."""
        if self.terms != terms or (isinstance(self.error, InputRefused) and not self.group.keys() <= asked):
            return None
        return self.error


class Flights:
    """The flights of one event loop."""

    def __init__(self) -> None:
        """Begin with none."""
        self._flights: dict[Key, Flight] = {}

    def __len__(self) -> int:
        """Count the keys under way."""
        return len(self._flights)

    async def share(
        self, missing: Work, terms: object, compute: Compute[*Given], given: tuple[*Given], patience: float = math.inf
    ) -> tuple[dict[Key, Embedded], int]:
        """Get every key of ``missing``: lead those that nobody computes, and wait for the others.

        Whoever computes on other ``terms`` is waited for ``patience`` seconds at most: it may be stuck at an endpoint that
        is none of this request's. Returns what was asked for, and how many keys this request led. Terms of None share
        with nobody.

        Raises:
            EmbedrouteError: this request's own, or its leader's if both asked on the same ``terms``.
        """
        if terms is None:
            return await _alone(missing, compute, given), len(missing)
        found: dict[Key, Embedded] = {}
        led, until, left = 0, 0.0, missing
        slow: Sequence[Flight] = ()
        while left:
            awaited = self._under_way(left, slow)
            if own := without(left, awaited):
                led += len(own)
                with _Led(self._flights, own, terms) as lead:
                    await compute(*given, own, lead.land)
                found |= lead.found
            if awaited:
                until = until or anyio.current_time() + patience
                found |= await _landings(awaited, terms, missing.keys(), until)
                slow = [*slow, *_still(awaited)]
            left = without(left, found)
        return found, led

    def _under_way(self, keys: Iterable[Key], slow: Sequence[Flight]) -> dict[Key, Flight]:
        return {key: flight for key in keys if (flight := self._flights.get(key)) and flight not in slow}


class _Led:
    """The flights of one leader, on the board that all look at until they are over; ``found`` is what has landed."""

    __slots__ = ("_board", "_own", "found")

    def __init__(self, board: dict[Key, Flight], work: Work, terms: object) -> None:
        self._board = board
        self._own = {key: Flight(terms, work) for key in work}
        self.found: dict[Key, Embedded] = {}
        board |= self._own

    def land(self, landed: Mapping[Key, Embedded]) -> None:
        self.found.update(landed)
        for key, item in landed.items():
            self._own[key].landed = item
            self._end(key, self._own[key])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        told = error if isinstance(error, EmbedrouteError) and not _hangs_on_time(error) else None
        for key, flight in self._own.items():
            flight.error = told
            if not flight.over:
                self._end(key, flight)

    def _end(self, key: Key, flight: Flight) -> None:
        flight.end()
        if self._board.get(key) is flight:
            del self._board[key]


def _hangs_on_time(error: EmbedrouteError) -> bool:
    """Whether it was told for want of time: whoever waits has its own deadline, and leads anew.

    A rest that does not fit into one deadline may fit into another; where it does not, the endpoint rests and is not
    called. One of no seconds fits into any, so that it was not time that the leader lacked.
    """
    if isinstance(error, RateLimited):
        return error.retry_after != 0
    return isinstance(error, DeadlineExceeded | TimedOut)


def _still(flights: Mapping[Key, Flight]) -> list[Flight]:
    return [flight for flight in flights.values() if not flight.over]


async def _alone(work: Work, compute: Compute[*Given], given: tuple[*Given]) -> dict[Key, Embedded]:
    found: dict[Key, Embedded] = {}
    await compute(*given, work, found.update)
    return found


async def _landings(awaited: Mapping[Key, Flight], terms: object, asked: AbstractSet[Key], until: float) -> dict[Key, Embedded]:
    found: dict[Key, Embedded] = {}
    for key, flight in awaited.items():
        with anyio.CancelScope(deadline=math.inf if flight.terms == terms else until):
            await flight.wait()
        if flight.landed is not None:
            found[key] = flight.landed
        elif error := flight.error_for(terms, asked):
            raise error
    return found
