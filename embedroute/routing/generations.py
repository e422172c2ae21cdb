"""Decides which endpoints and routes are the same after a reload of the config.

What was learned of an endpoint is kept under its key, which has its generation. So a changed
endpoint starts without the health of the one before, and calls of requests that began before the
reload still count for that one.
"""

from collections.abc import Mapping

import msgspec

from embedroute.routing.registry import ModelRegistry, ResolvedEndpoint, Route


def keep_generations(old: ModelRegistry, new: ModelRegistry, generation: int) -> ModelRegistry:
    """Return ``new`` with the generations of ``old`` where nothing that matters has changed.

    Everything else gets ``generation``.
    """
    by_name = {each.name: each for route in old.routes.values() for each in route.candidates}
    return msgspec.structs.replace(
        new,
        routes={
            name: _follow_route(old.routes.get(name), route, by_name, generation)
            for name, route in new.routes.items()
        },
        providers={
            slug: _follow(old.providers.get(slug), provider, generation)
            for slug, provider in new.providers.items()
        },
    )


def _follow_route(
    old: Route | None, new: Route, by_name: Mapping[str, ResolvedEndpoint], generation: int
) -> Route:
    own = {each.name: each for each in old.candidates} if old else {}
    known = {**by_name, **own}
    candidates = [_follow(known.get(each.name), each, generation) for each in new.candidates]
    is_same = (
        old is not None
        and {each.key for each in old.candidates} == {each.key for each in candidates}
        and old.model.dimensions == new.model.dimensions
    )
    kept = old.generation if old and is_same else generation
    return msgspec.structs.replace(new, candidates=candidates, generation=kept)


def _follow(
    old: ResolvedEndpoint | None, new: ResolvedEndpoint, generation: int
) -> ResolvedEndpoint:
    is_same = old is not None and _facts(old) == _facts(new)
    return msgspec.structs.replace(
        new, generation=old.generation if old and is_same else generation
    )


def _facts(endpoint: ResolvedEndpoint) -> tuple[object, ...]:
    """Return what decides what is learned of an endpoint. Equal backends are the same object."""
    return (
        id(endpoint.backend),
        endpoint.accepts,
        endpoint.breaker,
        endpoint.max_concurrent,
        endpoint.checks_model,
    )
