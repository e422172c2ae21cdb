"""Remembers what was decided for plain requests, which are nearly all: the same question has the same answer.

A request is plain when it states no preferences and no options and holds texts: then the filters depend on its
model, width and input type and on its caller alone. Order is decided anew wherever there is more than one endpoint.
"""

from collections.abc import Hashable, Mapping
from typing import Final

import msgspec

from embedroute.access import Caller
from embedroute.inputs import Kind
from embedroute.routing.order import Surroundings, order
from embedroute.routing.plan import shared_key
from embedroute.routing.routes import Route
from embedroute.routing.select import Selection, select
from embedroute.wire.decode import NO_OPTIONS, Job
from embedroute.wire.preferences import NO_PREFERENCES

MOST: Final = 4096
"""Decisions remembered; clients choose widths, so there must be a bound."""


class Decision(msgspec.Struct, frozen=True):
    """A selection, and what the keys of its request share."""

    selection: Selection
    shared: bytes


class Decisions:
    """The decisions of one gateway; ``routes`` are those of its directory."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        """Remember nothing yet."""
        self._routes = routes
        self._made: dict[Hashable, Decision] = {}

    def recall(self, route: Route, job: Job, caller: Caller) -> Decision | None:
        """Give the decision for a plain request that was made before."""
        return self._made.get(_question(route, job, caller)) if self._plain(route, job) else None

    def decide(self, route: Route, job: Job, caller: Caller, around: Surroundings) -> Decision:
        """Decide, and remember it if it will hold for every equal request.

        Raises:
            Refusal: no endpoint may serve the request, and why.
        """
        known = self.recall(route, job, caller)
        if known is not None:
            candidates = order(known.selection.candidates, job.preferences, route.sort, around)
            return Decision(msgspec.structs.replace(known.selection, candidates=candidates), known.shared)
        selection = select(route, job, caller, around)
        made = Decision(selection, shared_key(route, selection.parameters, job.preferences, caller))
        if self._plain(route, job):
            if len(self._made) >= MOST:
                self._made.clear()
            self._made[_question(route, job, caller)] = made
        return made

    def _plain(self, route: Route, job: Job) -> bool:
        return (
            job.preferences is NO_PREFERENCES
            and job.options is NO_OPTIONS
            and job.kind is Kind.TEXT
            and self._routes.get(route.name) is route
        )


def _question(route: Route, job: Job, caller: Caller) -> Hashable:
    return route.name, job.dimensions, job.input_type, caller.only, caller.ignore, caller.namespace
