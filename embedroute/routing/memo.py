"""Remembers what was decided for plain requests, which are nearly all: the same question has the same answer.

A request is plain when it states no preferences and no options and holds texts: then the filters depend on its
model, width and input type and on its caller alone. Order is decided anew wherever there is more than one endpoint.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Final

import msgspec

from embedroute.access import COMMON, Caller, cache_scope
from embedroute.errors import Refusal
from embedroute.inputs import Kind
from embedroute.journal import Journal
from embedroute.routing.order import Surroundings, order
from embedroute.routing.plan import shared_key
from embedroute.routing.routes import Route
from embedroute.routing.select import Selection, select, tell_dropped
from embedroute.routing.sieve import Dropped
from embedroute.wire.decode import NO_OPTIONS, Job
from embedroute.wire.preferences import NO_PREFERENCES, Preferences

MOST: Final = 4096
"""Decisions remembered; clients choose widths, so there must be a bound."""


PROBING: Final = Preferences(include_alpha=True)
"""The preferences of whoever compares endpoints, by identity: what a gateway lists says who may serve, not who is the same."""


class Decision(msgspec.Struct, frozen=True):
    """A selection, and what the keys of its request share; ``whole`` is that at the model's own width, where it may be cut."""

    selection: Selection
    shared: bytes
    whole: bytes | None = None


class Decisions:
    """The decisions of one gateway.

    ``routes`` are those of its directory, and ``around`` is what holds right now. ``shared_cache``
    says whether callers without a namespace share cache entries.
    """

    def __init__(
        self,
        routes: Mapping[str, Route],
        around: Callable[[], Surroundings],
        *,
        shared_cache: bool = True,
    ) -> None:
        """Remember nothing yet."""
        self._routes = routes
        self._around = around
        self._shared_cache = shared_cache
        self._made: dict[Hashable, Decision] = {}

    def decide(self, route: Route, job: Job, caller: Caller, journal: Journal | None = None) -> Decision:
        """Filter and order the endpoints for a request, or recall what an equal one was told.

        ``journal`` is told of the filters that leave nobody; those of a decision are told by its selection.

        Raises:
            Refusal: no endpoint may serve the request, and why.
        """
        plain, scope = self._plain(route, job), COMMON
        if caller.namespace or not self._shared_cache:
            scope = cache_scope(caller, shared=self._shared_cache)
        known = self._made.get(_question(route, job, caller, scope)) if plain else None
        if known is not None:
            return known if len(known.selection.candidates) == 1 else self._reordered(known, route, job)
        selection = self._selected(route, job, caller, journal)
        made = _decision(selection, route, job, scope)
        if plain:
            if len(self._made) >= MOST:
                self._made.clear()
            self._made[_question(route, job, caller, scope)] = made
        return made

    def _selected(self, route: Route, job: Job, caller: Caller, journal: Journal | None) -> Selection:
        unnamed = self._unnamed(route)
        try:
            selection = select(route, job, caller, self._around_for(job), journal)
        except Refusal:
            if journal is not None:
                tell_dropped(unnamed, journal)
            raise
        return msgspec.structs.replace(selection, dropped=[*unnamed, *selection.dropped]) if unnamed else selection

    def _unnamed(self, route: Route) -> list[Dropped]:
        """The endpoints of a model that a request passes over because it names a provider, by a hint or before the model."""
        whole = self._routes.get(route.name, route)
        return [Dropped(it, "provider", "not the one that is named") for it in whole.candidates if it not in route.candidates]

    def _around_for(self, job: Job) -> Surroundings:
        around = self._around()
        return msgspec.structs.replace(around, only=(), ignore=()) if job.preferences is PROBING else around

    def _reordered(self, known: Decision, route: Route, job: Job) -> Decision:
        candidates = order(known.selection.candidates, job.preferences, route.sort, self._around())
        selection = msgspec.structs.replace(known.selection, candidates=candidates)
        return msgspec.structs.replace(known, selection=selection)

    def _plain(self, route: Route, job: Job) -> bool:
        return (
            job.preferences is NO_PREFERENCES
            and job.options is NO_OPTIONS
            and job.kind is Kind.TEXT
            and self._routes.get(route.name) is route
        )


def _decision(selection: Selection, route: Route, job: Job, scope: tuple[str, str]) -> Decision:
    wanted, wishes = selection.parameters, job.preferences
    uncut = wanted.uncut(route.model)
    whole = shared_key(route, uncut, wishes, scope) if uncut else None
    return Decision(selection, shared_key(route, wanted, wishes, scope), whole)


def _question(route: Route, job: Job, caller: Caller, scope: tuple[str, str]) -> Hashable:
    return route.name, job.dimensions, job.input_type, caller.only, caller.ignore, scope
