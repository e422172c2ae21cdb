"""Caches the endpoint selection of plain requests, which are nearly all requests.

A plain request holds texts and sets no provider, preferences, options or debug. Its selection
depends only on its model, width, input type and caller. If a cached selection has more than one
endpoint, they are ordered again for each request.
"""

from collections.abc import Callable, Hashable, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from embedroute.auth import ANYONE, COMMON, Caller, authorize, cache_scope
from embedroute.errors import InvalidRequest, NoEligibleProvider, RequestError
from embedroute.inputs import Kind
from embedroute.protocol import NO_DEBUG, NO_OPTIONS, NO_PREFERENCES, EmbeddingRequest, Preferences
from embedroute.routing.cache_keys import make_key_prefix
from embedroute.routing.filters import Dropped, can_truncate
from embedroute.routing.ordering import SelectionContext, order_endpoints
from embedroute.routing.registry import ModelRegistry, Route
from embedroute.routing.selection import (
    Selection,
    permitted_endpoints,
    select_endpoints,
    trace_dropped,
)
from embedroute.trace import RequestTrace

MOST: Final = 4096
"""Cached selections at most; clients choose widths, so the number needs a bound."""


PROBING: Final = Preferences(include_alpha=True)
"""The preferences of ``embedroute verify``, which compares endpoints.

The gateway's own ``only`` and ``ignore`` lists do not apply to a request with this very object.
"""


class PreparedSelection(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Everything about a request that does not depend on its inputs.

    ``fallback`` is the model that serves the request if every endpoint fails. ``key_prefix`` is the
    common part of the request's cache keys, and ``whole_key_prefix`` the same at the model's own
    width, if its vectors can be truncated. Two requests share each other's failures only if their
    ``sharing_key`` is equal. ``owner`` marks the cache entries of the caller; None for a caller who
    sees every hit.
    """

    caller: Caller
    route: Route
    fallback: Route | None
    selection: Selection
    key_prefix: bytes
    whole_key_prefix: bytes | None
    can_truncate: bool
    sharing_key: Hashable
    owner: int | None


def owner_mark(name: str) -> int:
    """Return the mark of a caller, which is the same in all processes: 63 bits of a digest."""
    digest = blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class SelectionCache:
    """The selections of one gateway.

    ``make_context`` returns the current selection context. ``shared_cache``: callers without a
    namespace share cache entries. ``debug``: callers may debug unless their own setting forbids it.
    """

    def __init__(
        self,
        directory: ModelRegistry,
        make_context: Callable[[], SelectionContext],
        *,
        shared_cache: bool = True,
        debug: bool = False,
    ) -> None:
        """Create an empty cache."""
        self._directory = directory
        self._routes = directory.routes
        self._make_context = make_context
        self._shared_cache = shared_cache
        self._debug = debug
        self._cached: dict[Hashable, PreparedSelection] = {}

    def prepare(
        self, request: EmbeddingRequest, caller: Caller, trace: RequestTrace | None = None
    ) -> PreparedSelection:
        """Resolve the model of a request and select its endpoints, or return the cached result.

        If no endpoint may serve the request, the dropped endpoints are written into ``trace``.

        Raises:
            ModelNotFound: the model does not exist.
            PermissionDenied: the caller may not use the model, or may not debug.
            RequestError: no endpoint may serve the request.
        """
        if (
            request.preferences is not NO_PREFERENCES
            or request.options is not NO_OPTIONS
            or request.debug is not NO_DEBUG
            or request.provider is not None
            or request.kind is not Kind.TEXT
            or request.dtype != "float"
            or caller.upstream_keys
        ):
            return self.prepare_route(self.resolve(request, caller), request, caller, trace)
        # A caller may equal ANYONE, who owns no cache entries and has no scope of its own.
        is_anyone = caller is ANYONE
        key = (request.model, request.dimensions, request.input_type, caller.name, is_anyone)
        cached = self._cached.get(key)
        if cached is not None and (cached.caller is caller or cached.caller == caller):
            if len(cached.selection.candidates) == 1:
                return cached
            return self._reordered(cached, request)
        route = self.resolve(request, caller)
        prepared = self.prepare_route(route, request, caller, trace)
        if self._routes.get(route.name) is route:
            if len(self._cached) >= MOST:
                self.clear()
            self._cached[key] = _in_route_order(prepared)
        return prepared

    def clear(self) -> None:
        """Drop all cached selections. The next requests make them again."""
        self._cached.clear()

    def resolve(self, request: EmbeddingRequest, caller: Caller) -> Route:
        """Resolve the model that a request names, and check that the caller may use it.

        Raises:
            ModelNotFound: the model does not exist.
            PermissionDenied: the caller may not use the model, or may not debug.
            InvalidRequest: the provider hint or the model's suffixes are invalid.
            NoEligibleProvider: the hinted provider does not serve the model.
        """
        try:
            route = self._directory.resolve(request.model, request.provider)
        except (InvalidRequest, NoEligibleProvider):
            # Report errors of the model and of debug before those of the provider hint.
            authorize(
                caller, self._directory.resolve(request.model).name, request, debug=self._debug
            )
            raise
        authorize(caller, route.name, request, debug=self._debug)
        return route

    def list_permitted(self, caller: Caller) -> list[Route]:
        """List the models that a caller may use, each with the endpoints that may serve it."""
        context = self._make_context()
        routes: list[Route] = []
        for route in self._routes.values():
            if caller.models is not None and route.name not in caller.models:
                continue
            permitted = permitted_endpoints(route, caller, context)
            if len(permitted) == len(route.candidates):
                routes.append(route)
            elif permitted:
                routes.append(msgspec.structs.replace(route, candidates=permitted))
        return routes

    def prepare_route(
        self,
        route: Route,
        request: EmbeddingRequest,
        caller: Caller,
        trace: RequestTrace | None = None,
    ) -> PreparedSelection:
        """Filter and order the endpoints of ``route`` for a request.

        Raises:
            RequestError: no endpoint may serve the request.
        """
        selection = self._select(route, request, caller, trace)
        parameters = selection.parameters
        preferences = request.preferences
        scope: Sequence[str] = COMMON
        if caller.namespace or not self._shared_cache:
            scope = cache_scope(caller, shared=self._shared_cache)
        if digests := {each.key_digest for each in selection.candidates if each.key_digest}:
            scope = (*scope, "upstream keys", *sorted(digests))
        uncut = parameters.uncut(route.model)
        return PreparedSelection(
            caller=caller,
            route=route,
            fallback=self._fallback_of(route, request, caller),
            selection=selection,
            key_prefix=make_key_prefix(route, parameters, preferences, scope),
            whole_key_prefix=make_key_prefix(route, uncut, preferences, scope) if uncut else None,
            can_truncate=can_truncate(route.model),
            sharing_key=(selection.endpoint_keys, preferences, route.sort),
            owner=None if caller is ANYONE else owner_mark(caller.name),
        )

    def _fallback_of(self, route: Route, request: EmbeddingRequest, caller: Caller) -> Route | None:
        """Return the configured fallback model, unless the request or the key forbids it."""
        name = route.model.fallback
        allowed = caller.models
        if (
            name is None
            or request.provider is not None
            or request.preferences.allow_fallbacks is False
        ):
            return None
        other = self._directory.resolve(name)
        if allowed is not None and other.name not in allowed:
            return None
        # An input type that the model's suffix asks for also applies to the fallback model.
        if route.input_type:
            return msgspec.structs.replace(other, input_type=route.input_type)
        return other

    def _select(
        self, route: Route, request: EmbeddingRequest, caller: Caller, trace: RequestTrace | None
    ) -> Selection:
        not_named = self._endpoints_not_named(route)
        try:
            selection = select_endpoints(route, request, caller, self._context_for(request), trace)
        except RequestError:
            if trace is not None:
                trace_dropped(not_named, trace)
            raise
        if not_named:
            return msgspec.structs.replace(selection, dropped=[*not_named, *selection.dropped])
        return selection

    def _endpoints_not_named(self, route: Route) -> list[Dropped]:
        """List the endpoints of a model that are excluded because the request names a provider."""
        full_route = self._routes.get(route.name, route)
        return [
            Dropped(candidate, "provider", "not the requested provider")
            for candidate in full_route.candidates
            if candidate not in route.candidates
        ]

    def _context_for(self, request: EmbeddingRequest) -> SelectionContext:
        context = self._make_context()
        if request.preferences is PROBING:
            return msgspec.structs.replace(context, only=(), ignore=())
        return context

    def _reordered(self, cached: PreparedSelection, request: EmbeddingRequest) -> PreparedSelection:
        candidates = order_endpoints(
            cached.selection.candidates,
            request.preferences,
            cached.route.sort,
            self._make_context(),
        )
        selection = msgspec.structs.replace(cached.selection, candidates=candidates)
        return msgspec.structs.replace(cached, selection=selection)


def _in_route_order(prepared: PreparedSelection) -> PreparedSelection:
    """Return ``prepared`` with its endpoints in the order from which a new draw starts."""
    selection = prepared.selection
    if len(selection.candidates) == 1:
        return prepared
    candidates = sorted(selection.candidates, key=prepared.route.candidates.index)
    return msgspec.structs.replace(
        prepared, selection=msgspec.structs.replace(selection, candidates=candidates)
    )
