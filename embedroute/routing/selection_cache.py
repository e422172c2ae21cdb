"""Decides which endpoints serve a request, and remembers that for plain requests, which are nearly all.

A request is plain when it states no provider, preferences, options or debug, and holds texts. The
decision then depends on its model, width and input type and on its caller alone. The order of
endpoints is decided anew wherever there is more than one.
"""

from collections.abc import Callable, Hashable
from typing import Final

import msgspec

from embedroute.auth import ANYONE, COMMON, Caller, authorize, cache_scope
from embedroute.errors import InvalidRequest, NoEligibleProvider, RequestError
from embedroute.inputs import Kind
from embedroute.protocol import NO_DEBUG, NO_OPTIONS, NO_PREFERENCES, EmbeddingRequest, Preferences
from embedroute.routing.filters import Dropped
from embedroute.routing.ordering import SelectionContext, order_endpoints
from embedroute.routing.planning import shared_key
from embedroute.routing.registry import ModelRegistry, Route
from embedroute.routing.selection import Selection, select_endpoints, tell_dropped
from embedroute.trace import RequestTrace

MOST: Final = 4096
"""Decisions remembered; clients choose widths, so there must be a bound."""


PROBING: Final = Preferences(include_alpha=True)
"""The preferences of a request that compares endpoints, by identity: the gateway's own lists do not apply to it."""


class PreparedSelection(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """All that does not depend on the inputs of a request.

    ``fallback`` is the model that serves the request if every endpoint fails. ``shared`` is what the
    cache keys of the request share, and ``whole`` the same at the model's own width, where vectors
    can be cut. ``terms`` is what two requests must have
    in common to share each other's failure. ``owner`` marks the cache entries of the caller, None
    for a caller who sees every hit.
    """

    caller: Caller
    route: Route
    fallback: Route | None
    selection: Selection
    shared: bytes
    whole: bytes | None
    terms: Hashable
    owner: int | None


class SelectionCache:
    """The decisions of one gateway.

    ``make_context`` returns what holds right now. ``shared_cache`` says whether callers without a
    namespace share cache entries, ``debug`` whether callers may debug who are not told otherwise.
    """

    def __init__(
        self,
        directory: ModelRegistry,
        make_context: Callable[[], SelectionContext],
        *,
        shared_cache: bool = True,
        debug: bool = False,
    ) -> None:
        """Remember nothing yet."""
        self._directory = directory
        self._routes = directory.routes
        self._make_context = make_context
        self._shared_cache = shared_cache
        self._debug = debug
        self._made: dict[Hashable, PreparedSelection] = {}

    def prepare(
        self, request: EmbeddingRequest, caller: Caller, trace: RequestTrace | None = None
    ) -> PreparedSelection:
        """Find the model of a request and the endpoints that may serve it, or recall an equal request's.

        ``trace`` gets the filters that leave no endpoint; those of a decision are in its selection.

        Raises:
            ModelNotFound: no such model exists here.
            PermissionDenied: this caller may not use it, or may not debug.
            RequestError: no endpoint may serve the request, and why.
        """
        if (
            request.preferences is not NO_PREFERENCES
            or request.options is not NO_OPTIONS
            or request.debug is not NO_DEBUG
            or request.provider is not None
            or request.kind is not Kind.TEXT
        ):
            return self.prepare_route(self.resolve(request, caller), request, caller, trace)
        question = (request.model, request.dimensions, request.input_type, caller.name)
        known = self._made.get(question)
        if known is not None and (known.caller is caller or known.caller == caller):
            return (
                known if len(known.selection.candidates) == 1 else self._reordered(known, request)
            )
        route = self.resolve(request, caller)
        made = self.prepare_route(route, request, caller, trace)
        if self._routes.get(route.name) is route:
            if len(self._made) >= MOST:
                self._made.clear()
            self._made[question] = made
        return made

    def resolve(self, request: EmbeddingRequest, caller: Caller) -> Route:
        """Find the model that a request names.

        Raises:
            ModelNotFound: no such model exists here.
            PermissionDenied: this caller may not use it, or may not debug.
        """
        try:
            route = self._directory.resolve(request.model, request.provider)
        except (InvalidRequest, NoEligibleProvider):
            # An error of the hint comes after one of the model or of debug.
            authorize(
                caller, self._directory.resolve(request.model).name, request, debug=self._debug
            )
            raise
        authorize(caller, route.name, request, debug=self._debug)
        return route

    def prepare_route(
        self,
        route: Route,
        request: EmbeddingRequest,
        caller: Caller,
        trace: RequestTrace | None = None,
    ) -> PreparedSelection:
        """Filter and order the endpoints of a ``route`` for a request.

        Raises:
            RequestError: no endpoint may serve the request, and why.
        """
        selection = self._selected(route, request, caller, trace)
        wanted = selection.parameters
        wishes = request.preferences
        scope = COMMON
        if caller.namespace or not self._shared_cache:
            scope = cache_scope(caller, shared=self._shared_cache)
        uncut = wanted.uncut(route.model)
        return PreparedSelection(
            caller=caller,
            route=route,
            fallback=self._fallback_of(route, request, caller),
            selection=selection,
            shared=shared_key(route, wanted, wishes, scope),
            whole=shared_key(route, uncut, wishes, scope) if uncut else None,
            terms=(selection.endpoint_names, wishes, route.sort),
            owner=None if caller is ANYONE else hash(caller.name),
        )

    def _fallback_of(self, route: Route, request: EmbeddingRequest, caller: Caller) -> Route | None:
        """Find the model that may stand in for a route's: config names it, and neither request nor key forbids it."""
        name, allowed = route.model.fallback, caller.models
        if (
            name is None
            or request.provider is not None
            or request.preferences.allow_fallbacks is False
        ):
            return None
        other = self._directory.resolve(name)
        if allowed is not None and other.name not in allowed:
            return None
        # An input type changes the vector, whichever way it was asked for.
        return (
            msgspec.structs.replace(other, input_type=route.input_type)
            if route.input_type
            else other
        )

    def _selected(
        self, route: Route, request: EmbeddingRequest, caller: Caller, trace: RequestTrace | None
    ) -> Selection:
        unnamed = self._unnamed(route)
        try:
            selection = select_endpoints(route, request, caller, self._context_for(request), trace)
        except RequestError:
            if trace is not None:
                tell_dropped(unnamed, trace)
            raise
        return (
            msgspec.structs.replace(selection, dropped=[*unnamed, *selection.dropped])
            if unnamed
            else selection
        )

    def _unnamed(self, route: Route) -> list[Dropped]:
        """The endpoints of a model that a request passes over because it names a provider, by a hint or before the model."""
        whole = self._routes.get(route.name, route)
        return [
            Dropped(it, "provider", "not the one that is named")
            for it in whole.candidates
            if it not in route.candidates
        ]

    def _context_for(self, request: EmbeddingRequest) -> SelectionContext:
        context = self._make_context()
        return (
            msgspec.structs.replace(context, only=(), ignore=())
            if request.preferences is PROBING
            else context
        )

    def _reordered(self, known: PreparedSelection, request: EmbeddingRequest) -> PreparedSelection:
        candidates = order_endpoints(
            known.selection.candidates, request.preferences, known.route.sort, self._make_context()
        )
        selection = msgspec.structs.replace(known.selection, candidates=candidates)
        return msgspec.structs.replace(known, selection=selection)
