"""Single-flight: equal inputs of concurrent requests are computed once per event loop.

The request that comes first leads and computes; the others wait. No task is started here: a waiter
leads anew when its leader is cancelled, runs out of time, or takes longer than the waiter's own
call would. A waiter that takes its leader's error gets a neutral copy of it, since the upstream's
message may quote other inputs of the leader's.
"""

import math
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Final, Generic, Self, TypeVar, TypeVarTuple

import anyio

from embedroute.errors import RateLimited, UpstreamError, UpstreamTimeout
from embedroute.inputs import Input
from embedroute.routing import CacheKey, EmbeddedInput
from embedroute.runtime import tasks
from embedroute.upstream_errors import BLAMES_INPUTS
from embedroute.upstream_errors.neutral import neutral

Work = Mapping[CacheKey, Input]
OnResult = Callable[[Mapping[CacheKey, EmbeddedInput]], None]
"""Takes vectors as they land."""

T = TypeVar("T")
Given = TypeVarTuple("Given")
Compute = Callable[[*Given, Work, OnResult], Awaitable[None]]
"""Takes what is given to it and work, and computes that; each part goes to its last argument as it lands."""
Expect = Callable[[*Given, int], float]
"""Takes what ``Compute`` is given and a number of inputs; returns the seconds they usually take."""


def missing_keys(work: Work, found: Container[CacheKey] | None) -> Work:
    """Take the keys that were ``found`` out of work; nearly always those are none."""
    return {key: item for key, item in work.items() if key not in found} if found else work


class InFlight:
    """One key that is being computed.

    ``sharing_key`` is what a waiter must share with its leader to share its error too.
    ``group`` is all that the leader computes: an upstream may refuse the group because of any of
    them. ``error`` is neutral: it is kept for others. ``replaced`` is the flight of a slow leader,
    whose waiters get this result too.
    """

    __slots__ = ("error", "group", "landed", "over", "replaced", "sharing_key", "waited")

    def __init__(
        self, sharing_key: object, group: Work, replaced: "InFlight | None" = None
    ) -> None:
        """Begin; neither landed nor failed yet."""
        self.waited: anyio.Event | None = None
        self.over = False
        self.sharing_key = sharing_key
        self.group = group
        self.replaced = replaced
        self.landed: EmbeddedInput | None = None
        self.error: UpstreamError | None = None

    async def wait(self) -> None:
        """Wait until it is over; nearly no flight is waited for, so only a waiter makes the event."""
        if not self.over:
            self.waited = self.waited or anyio.Event()
            await self.waited.wait()

    def error_for(
        self, sharing_key: object, context: AbstractSet[CacheKey]
    ) -> UpstreamError | None:
        """Copy the leader's error, if it is also that of a request for ``context`` on ``sharing_key``.

        Each waiter gets a copy of its own: what raises an error adds its frames to it.
        """
        if self.error is None or self.sharing_key != sharing_key:
            return None
        if isinstance(self.error, BLAMES_INPUTS) and not self.group.keys() <= context:
            return None
        return neutral(self.error)


Flying = Mapping[CacheKey, InFlight]
_NONE: Final[Flying] = {}


def never_expected(*_: object) -> float:
    """Expect no call to end, so that every leader is waited for."""
    return math.inf


class SingleFlight(Generic[*Given]):
    """The flights of one event loop.

    ``expect`` tells how long a request's own call would usually take. A leader on other terms may
    be stuck at an endpoint that the waiter does not use, and a leader that computes more keys than
    the waiter asks for may take longer than the waiter's own call, so the wait for either is
    bounded. After that the waiter computes the keys itself, and takes whichever result comes first.
    """

    def __init__(self, expect: Expect[*Given] = never_expected) -> None:
        """Begin with none."""
        self._flights: dict[CacheKey, InFlight] = {}
        self._expect = expect

    def __len__(self) -> int:
        """Count the keys under way."""
        return len(self._flights)

    def lead(self, missing: Work, terms: object, slow: Flying = _NONE) -> "Lead":
        """Claim the keys of ``missing`` that nobody computes, for as long as the context manager is open.

        Terms of None share with nobody. Leaders in ``slow`` were waited for long enough.
        """
        board = {} if terms is None else self._flights
        if board.keys().isdisjoint(missing):
            return Lead(board, missing, terms, slow, _NONE)
        awaited = {
            key: flight
            for key in missing
            if (flight := board.get(key)) and flight is not slow.get(key)
        }
        return Lead(board, missing_keys(missing, awaited), terms, slow, awaited)

    async def run(
        self,
        missing: Work,
        sharing_key: object,
        compute: Compute[*Given],
        given: tuple[*Given],
        patience: float = math.inf,
    ) -> tuple[dict[CacheKey, EmbeddedInput], int]:
        """Get every key of ``missing``: lead those that nobody computes, and wait for the others.

        ``patience`` bounds the wait for a leader on other ``sharing_key`` or of a larger group, in seconds.
        Returns what was found, and how many keys were led.

        Raises:
            EmbedrouteError: its own, or a neutral copy of that of its leader on the same ``sharing_key``.
        """
        with self.lead(missing, sharing_key) as lead:
            if lead.work:
                await compute(*given, lead.work, lead.land)
        found, led = await self.follow(lead, missing, compute, given, patience)
        return {**lead.found, **found}, led

    async def follow(
        self,
        lead: "Lead",
        missing: Work,
        compute: Compute[*Given],
        given: tuple[*Given],
        patience: float = math.inf,
    ) -> tuple[dict[CacheKey, EmbeddedInput], int]:
        """Get the keys of ``missing`` that others computed when ``lead`` began; lead those that they left.

        Returns what was found besides that of ``lead``, and how many keys were led in all.
        """
        found: dict[CacheKey, EmbeddedInput] = {}
        led, began, slow = len(lead.work), 0.0, _NONE
        terms, awaited = lead.terms, lead.awaited
        left = missing_keys(missing, lead.found)
        while left:
            if awaited:
                began = began or anyio.current_time()
                await _wait(self._bounds(awaited, terms, len(missing), given, patience), began)
                found |= _landings(awaited, terms, missing.keys())
                slow = {**slow, **_still(awaited)}
                left = missing_keys(left, found)
            with self.lead(left, terms, slow) as next_lead:
                if next_lead.work:
                    led += len(next_lead.work)
                    work = compute(*given, next_lead.work, next_lead.land)
                    await (_unless_landed(next_lead, next_lead.work, slow, work) if slow else work)
            found |= next_lead.found
            awaited = next_lead.awaited
            left = missing_keys(left, found)
        return found, led

    def _bounds(
        self,
        awaited: Flying,
        sharing_key: object,
        context: int,
        given: tuple[*Given],
        patience: float,
    ) -> dict[float, list[InFlight]]:
        """Group flights by the seconds for which they are waited for at most."""
        larger = sum(len(flight.group) > context for flight in awaited.values())
        usual = min(self._expect(*given, larger), patience) if larger else math.inf
        bounds: dict[float, list[InFlight]] = {}
        for flight in awaited.values():
            others = math.inf if flight.sharing_key == sharing_key else patience
            bounds.setdefault(usual if len(flight.group) > context else others, []).append(flight)
        return bounds


class Lead:
    """The keys that one request computes, on the board that all look at until they are over.

    ``work`` is what it computes, ``found`` what has landed, ``awaited`` what others compute already.
    """

    __slots__ = ("_board", "_own", "awaited", "found", "terms", "work")

    def __init__(
        self,
        board: dict[CacheKey, InFlight],
        work: Work,
        terms: object,
        slow: Flying,
        awaited: Flying,
    ) -> None:
        """Claim the keys of ``work``."""
        self.work = work
        self.terms = terms
        self.awaited = awaited
        self.found: dict[CacheKey, EmbeddedInput] = {}
        self._board = board
        self._own: dict[CacheKey, InFlight] = {}
        for key in work:
            board[key] = self._own[key] = InFlight(terms, work, slow.get(key) if slow else None)

    def land(self, landed: Mapping[CacheKey, EmbeddedInput]) -> None:
        """Take vectors as they come: their waiters get them at once."""
        self.found.update(landed)
        for key, item in landed.items():
            flight: InFlight | None = self._own[key]
            while flight is not None:
                flight.landed = item
                self._end(key, flight)
                flight = flight.replaced

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if len(self.found) == len(self._own):
            return
        shared = None
        if isinstance(error, UpstreamError) and not _is_deadline_specific(error):
            shared = neutral(error)
        for key, flight in self._own.items():
            if not flight.over:
                flight.error = shared
                self._end(key, flight)

    def _end(self, key: CacheKey, flight: InFlight) -> None:
        flight.over = True
        if flight.waited is not None:
            flight.waited.set()
        if self._board.get(key) is flight:
            del self._board[key]


def _is_deadline_specific(error: UpstreamError) -> bool:
    """Whether an error is due to the leader's own deadline.

    A waiter has a deadline of its own, and leads anew.
    A rest that does not fit into one deadline may fit into another; where it does not, the endpoint
    rests and is not called. A rest of no seconds fits into any deadline, so the leader did not lack
    time.
    """
    if isinstance(error, RateLimited):
        return error.retry_after != 0
    return isinstance(error, UpstreamTimeout)


def _still(flights: Flying) -> Flying:
    return {key: flight for key, flight in flights.items() if not flight.over}


async def _wait(bounds: Mapping[float, list[InFlight]], began: float) -> None:
    """Wait for flights, each for its seconds after ``began`` at most."""
    for seconds, flights in sorted(bounds.items()):
        with anyio.CancelScope(deadline=began + seconds):
            for flight in flights:
                await flight.wait()


def _landings(
    awaited: Flying, sharing_key: object, context: AbstractSet[CacheKey]
) -> dict[CacheKey, EmbeddedInput]:
    """Take what has landed of ``awaited``, or raise the error that a request shares with one."""
    found: dict[CacheKey, EmbeddedInput] = {}
    for key, flight in awaited.items():
        if flight.landed is not None:
            found[key] = flight.landed
        elif error := flight.error_for(sharing_key, context):
            raise error
    return found


async def _unless_landed(lead: Lead, own: Work, slow: Flying, work: Awaitable[None]) -> None:
    """Compute ``own``, or take it from the ``slow`` flights if all of them land first."""
    flights = {key: slow[key] for key in own if key in slow}
    if len(flights) < len(own):
        await work
        return
    try:
        await tasks.cancel_on_disconnect(work, partial(_landed, list(flights.values())), grace=0.0)
    except tasks.ClientDisconnected:  # what `unless` raises when its first argument returns first
        landed = {key: flight.landed for key, flight in flights.items()}
        lead.land({key: item for key, item in landed.items() if item is not None})


async def _landed(flights: Iterable[InFlight]) -> None:
    """Return when all have landed; never, if one ends otherwise."""
    for flight in flights:
        await flight.wait()
        if flight.landed is None:
            await anyio.sleep_forever()
