"""Single-flight: equal inputs of concurrent requests are computed once per event loop.

The first request is the leader and computes an input; the others wait. No task is started here. A
waiter computes the input itself if its leader is cancelled, times out or is too slow (see
``SingleFlight``). A waiter that receives its leader's error gets a neutral copy,
because the upstream's message may quote other inputs of the leader.
"""

import math
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Final, Generic, Self, TypeVar, TypeVarTuple

import anyio
import msgspec

from embedroute.errors import RateLimited, UpstreamError, UpstreamTimeout
from embedroute.execution.context import OnResult, Work
from embedroute.routing import CacheKey, EmbeddedInput, may_be_caused_by_input
from embedroute.runtime import tasks
from embedroute.upstream_errors import BLAMES_INPUTS
from embedroute.upstream_errors.neutral import neutral

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")
Compute = Callable[[*Arguments, Work, OnResult], Awaitable[None]]
"""Computes the vectors of some work, and passes them to its last argument part by part."""
Expect = Callable[[*Arguments, int], float]
"""Returns the seconds that ``Compute`` usually takes for these arguments and number of inputs."""


def missing_keys(work: Work, found: Container[CacheKey] | None) -> Work:
    """Return ``work`` without the keys in ``found``, which is nearly always empty."""
    return {key: item for key, item in work.items() if key not in found} if found else work


class InFlight(msgspec.Struct, eq=False):
    """One key that is being computed.

    A waiter receives the leader's error only if its ``sharing_key`` is equal. ``group`` is all work
    of the leader: an upstream may reject the group because of any input. ``error`` is neutral,
    because other requests receive it. ``replaced`` is the computation of a slow leader that this
    one replaces; its waiters get this result too. ``waited`` is created by the first waiter.
    """

    sharing_key: object
    group: Work
    replaced: "InFlight | None" = None
    over: bool = False
    result: EmbeddedInput | None = None
    error: UpstreamError | None = None
    waited: anyio.Event | None = None

    def __repr__(self) -> str:
        # The inputs of other requests must not show in tracebacks.
        return object.__repr__(self)

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return []

    async def wait(self) -> None:
        """Wait for the end. Few entries have waiters, so the first waiter creates the event."""
        if not self.over:
            self.waited = self.waited or anyio.Event()
            await self.waited.wait()

    def error_for(
        self, sharing_key: object, requested: AbstractSet[CacheKey]
    ) -> UpstreamError | None:
        """Return a copy of the leader's error, or None if the waiter must not receive it.

        ``requested`` holds the keys that the waiter requests. Each waiter gets its own copy,
        because raising an error adds frames to it.
        """
        if self.error is None or self.sharing_key != sharing_key:
            return None
        by_input = isinstance(self.error, BLAMES_INPUTS) or may_be_caused_by_input(self.error)
        if by_input and not self.group.keys() <= requested:
            return None
        return neutral(self.error)


InFlightByKey = Mapping[CacheKey, InFlight]
_NONE: Final[InFlightByKey] = {}


def never_expected(*_: object) -> float:
    """Return infinity: wait for every leader, however long it takes."""
    return math.inf


class SingleFlight(Generic[*Arguments]):
    """The keys that are being computed on one event loop, for all concurrent requests.

    ``expect`` estimates how long a request's own call would take. The wait for a leader is bounded
    in two cases:

    - The leader has another sharing key: it may be stuck at an endpoint that the waiter does not
      use.
    - The leader computes more keys than the waiter requests: the waiter's own call may be faster.

    Then the waiter makes its own call, and takes whichever result comes first.
    """

    def __init__(self, expect: Expect[*Arguments] = never_expected) -> None:
        """Create a single-flight group without computations."""
        self._flights: dict[CacheKey, InFlight] = {}
        self._expect = expect

    def __len__(self) -> int:
        """Return the number of keys that are being computed."""
        return len(self._flights)

    def lead(self, missing: Work, sharing_key: object, slow: InFlightByKey = _NONE) -> "Lead":
        """Become the leader of the keys in ``missing`` that no other request computes.

        The keys are released when the returned context manager exits. With a ``sharing_key`` of
        None nothing is shared. ``slow`` are the entries whose wait has expired: their keys are
        computed again.
        """
        flights = {} if sharing_key is None else self._flights
        awaited = _NONE
        work = missing
        if not flights.keys().isdisjoint(missing):
            awaited = {
                key: flight
                for key in missing
                if (flight := flights.get(key)) and flight is not slow.get(key)
            }
            work = missing_keys(missing, awaited)
        own: dict[CacheKey, InFlight] = {}
        for key in work:
            own[key] = flights[key] = InFlight(sharing_key, work, slow.get(key) if slow else None)
        return Lead(work, sharing_key, awaited, {}, flights, own)

    async def run(
        self,
        missing: Work,
        sharing_key: object,
        compute: Compute[*Arguments],
        arguments: tuple[*Arguments],
        max_wait: float = math.inf,
    ) -> tuple[dict[CacheKey, EmbeddedInput], int]:
        """Get the result of every key in ``missing``: compute it, or wait for another request.

        ``compute`` is called with ``arguments``, the work and a callback for results. ``max_wait``
        bounds, in seconds, the wait for a leader with another ``sharing_key`` or a larger group.
        Returns the results, and the number of keys that this request computed.

        Raises:
            EmbedrouteError: the request's own error, or a neutral copy of the error of a leader
                with the same ``sharing_key``.
        """
        with self.lead(missing, sharing_key) as lead:
            if lead.work:
                await compute(*arguments, lead.work, lead.add_results)
        found, led = await self.follow(lead, missing, compute, arguments, max_wait)
        return {**lead.found, **found}, led

    async def follow(
        self,
        lead: "Lead",
        missing: Work,
        compute: Compute[*Arguments],
        arguments: tuple[*Arguments],
        max_wait: float = math.inf,
    ) -> tuple[dict[CacheKey, EmbeddedInput], int]:
        """Get the keys of ``missing`` that ``lead`` did not compute.

        Waits for the requests that compute them, then computes what is still missing. Returns the
        results that are not in ``lead.found``, and how many keys this request computed, including
        those of ``lead``.
        """
        found: dict[CacheKey, EmbeddedInput] = {}
        led = len(lead.work)
        began = 0.0
        slow = _NONE
        sharing_key = lead.sharing_key
        awaited = lead.awaited
        remaining = missing_keys(missing, lead.found)
        while remaining:
            if awaited:
                began = began or anyio.current_time()
                bounds = self._bounds(awaited, sharing_key, len(missing), arguments, max_wait)
                await _wait(bounds, began)
                found |= _results(awaited, sharing_key, missing.keys())
                slow = {**slow, **_unfinished(awaited)}
                remaining = missing_keys(remaining, found)
            with self.lead(remaining, sharing_key, slow) as next_lead:
                if next_lead.work:
                    led += len(next_lead.work)
                    own = compute(*arguments, next_lead.work, next_lead.add_results)
                    await (_race(next_lead, next_lead.work, slow, own) if slow else own)
            found |= next_lead.found
            awaited = next_lead.awaited
            remaining = missing_keys(remaining, found)
        return found, led

    def _bounds(
        self,
        awaited: InFlightByKey,
        sharing_key: object,
        requested: int,
        arguments: tuple[*Arguments],
        max_wait: float,
    ) -> dict[float, list[InFlight]]:
        """Group the awaited entries by the longest wait for them, in seconds.

        ``requested`` is the number of keys that the waiter requests.
        """
        larger = sum(len(flight.group) > requested for flight in awaited.values())
        usual = min(self._expect(*arguments, larger), max_wait) if larger else math.inf
        bounds: dict[float, list[InFlight]] = {}
        for flight in awaited.values():
            if len(flight.group) > requested:
                bound = usual
            elif flight.sharing_key == sharing_key:
                bound = math.inf
            else:
                bound = max_wait
            bounds.setdefault(bound, []).append(flight)
        return bounds


class Lead(msgspec.Struct, eq=False):
    """The keys that one request computes as their leader.

    ``work`` is what it computes, ``found`` its results so far, and ``awaited`` the entries of keys
    that other requests compute. ``flights`` are the entries of all requests, and ``own`` those of
    this one.
    """

    work: Work
    sharing_key: object
    awaited: InFlightByKey
    found: dict[CacheKey, EmbeddedInput]
    flights: dict[CacheKey, InFlight]
    own: dict[CacheKey, InFlight]

    def __repr__(self) -> str:
        return object.__repr__(self)

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return []

    def add_results(self, results: Mapping[CacheKey, EmbeddedInput]) -> None:
        """Store results as they arrive; their waiters get them at once."""
        self.found.update(results)
        for key, item in results.items():
            flight: InFlight | None = self.own[key]
            while flight is not None:
                flight.result = item
                self._end(key, flight)
                flight = flight.replaced

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if len(self.found) == len(self.own):
            return
        shared = None
        if isinstance(error, UpstreamError) and not _is_deadline_specific(error):
            shared = neutral(error)
        for key, flight in self.own.items():
            if not flight.over:
                flight.error = shared
                self._end(key, flight)

    def _end(self, key: CacheKey, flight: InFlight) -> None:
        flight.over = True
        if flight.waited is not None:
            flight.waited.set()
        if self.flights.get(key) is flight:
            del self.flights[key]


def _is_deadline_specific(error: UpstreamError) -> bool:
    """Return whether an error depends on the leader's own deadline.

    A waiter has another deadline, so it does not receive such an error and becomes the leader
    itself. A cool-down that is too long for one deadline may fit into another. A cool-down of zero
    seconds fits into any deadline, so it is not specific to the leader's.
    """
    if isinstance(error, RateLimited):
        return error.retry_after != 0
    return isinstance(error, UpstreamTimeout)


def _unfinished(flights: InFlightByKey) -> InFlightByKey:
    return {key: flight for key, flight in flights.items() if not flight.over}


async def _wait(bounds: Mapping[float, list[InFlight]], began: float) -> None:
    """Wait for the entries, for each at most its bound in seconds after ``began``."""
    for seconds, flights in sorted(bounds.items()):
        with anyio.CancelScope(deadline=began + seconds):
            for flight in flights:
                await flight.wait()


def _results(
    awaited: InFlightByKey, sharing_key: object, requested: AbstractSet[CacheKey]
) -> dict[CacheKey, EmbeddedInput]:
    """Return the results of ``awaited`` so far, or raise the error of a leader.

    ``requested`` holds the keys that the waiter requests.
    """
    found: dict[CacheKey, EmbeddedInput] = {}
    for key, flight in awaited.items():
        if flight.result is not None:
            found[key] = flight.result
        elif error := flight.error_for(sharing_key, requested):
            raise error
    return found


async def _race(lead: Lead, own: Work, slow: InFlightByKey, computation: Awaitable[None]) -> None:
    """Compute ``own``, or take the results of the ``slow`` entries if all of them finish first."""
    flights = {key: slow[key] for key in own if key in slow}
    if len(flights) < len(own):
        await computation
        return
    finished = partial(_wait_for_results, list(flights.values()))
    try:
        await tasks.cancel_when(computation, finished)
    except tasks.ConditionMet:
        results = {key: flight.result for key, flight in flights.items()}
        lead.add_results({key: item for key, item in results.items() if item is not None})


async def _wait_for_results(flights: Iterable[InFlight]) -> None:
    """Return when all entries have a result; never return if one ends without."""
    for flight in flights:
        await flight.wait()
        if flight.result is None:
            await anyio.sleep_forever()
