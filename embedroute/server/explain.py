"""Forecasts how a request would be served: endpoints, filters, prices, chunks and cache hits.

No upstream is called. Cache hits and misses are counted in inputs. ``rests_for`` is the remaining
cool-down of an endpoint in seconds, after failures or a 429.
"""

from collections.abc import Collection, Generator, Mapping

from embedroute.auth import Caller
from embedroute.cache import NOTHING, CachePolicy, look_up_in_steps
from embedroute.errors import PermissionDenied
from embedroute.gateway import Gateway
from embedroute.inputs import Input, estimate_sizes, images_in
from embedroute.protocol import EmbeddingRequest, response_bodies
from embedroute.routing import (
    CacheKey,
    Dropped,
    EndpointHealth,
    Plan,
    ResolvedEndpoint,
    fold_text_parts,
    make_plan_in_steps,
    split_in_steps,
    text_before,
)
from embedroute.server.models import format_price
from embedroute.trace import RequestTrace


def explain(
    gateway: Gateway, request: EmbeddingRequest, caller: Caller, cached: CachePolicy
) -> Generator[None, None, response_bodies.Plan]:
    """Forecast a request with the cache policy ``cached``; yields between the steps of the work.

    Raises:
        PermissionDenied: this caller may not use debug features.
        EmbedrouteError: the error that the request itself would get.
    """
    active = gateway.active
    route = active.selections.resolve(request, caller)
    if not active.may_debug(caller):
        raise PermissionDenied(
            "This caller may not use 'explain'; ask the operator to allow it.",
            param="explain",
            code="debug_not_allowed",
        )
    request = yield from fold_text_parts(request, route, active.limits)
    prepared = active.selections.prepare(request, caller)
    selection = prepared.selection
    plan = yield from make_plan_in_steps(request.inputs, prepared.key_prefix)
    lookup = NOTHING
    if cached.read:
        lookup = yield from look_up_in_steps(gateway.cache, plan.work, prepared)
    hits = lookup.own()
    missing = {key: item for key, item in plan.work.items() if key not in hits}
    order: list[response_bodies.PlanEndpoint] = []
    for endpoint in selection.candidates:
        yield
        prefix = text_before(endpoint, route.model, selection.parameters.input_type)
        health = gateway.healths.get(endpoint)
        forecast = yield from _forecast(endpoint, health, missing, prefix, gateway.clock())
        order.append(forecast)
    return response_bodies.Plan(
        model=route.public_name,
        fallback=prepared.fallback.public_name if prepared.fallback else None,
        order=order,
        filtered=[_describe_exclusion(dropped) for dropped in selection.dropped],
        cache=_count_hits(plan, hits),
        inputs=_count_inputs(plan, missing),
    )


def _count_hits(plan: Plan, hits: Collection[CacheKey]) -> response_bodies.PlanCache:
    count = sum(key in hits for key in plan.keys)
    return response_bodies.PlanCache(hits=count, misses=len(plan.keys) - count)


def _count_inputs(plan: Plan, missing: Mapping[CacheKey, Input]) -> response_bodies.PlanInputs:
    tokens = sum(estimate_sizes(missing.values()))
    return response_bodies.PlanInputs(
        count=len(plan.keys), unique=len(plan.work), estimated_tokens=tokens
    )


def _describe_exclusion(dropped: Dropped) -> response_bodies.PlanExclusion:
    return response_bodies.PlanExclusion(
        provider=dropped.candidate.provider,
        model=dropped.candidate.model,
        price=_format_prices(dropped.candidate),
        filter=dropped.filter,
        reason=dropped.reason,
    )


def _format_prices(endpoint: ResolvedEndpoint) -> dict[str, str]:
    return {kind: format_price(price) for kind, price in endpoint.prices.items()}


def _forecast(
    endpoint: ResolvedEndpoint,
    health: EndpointHealth,
    missing: Mapping[CacheKey, Input],
    prefix: str,
    now: float,
) -> Generator[None, None, response_bodies.PlanEndpoint]:
    chunks = yield from split_in_steps(missing, health.caps(endpoint.accepts, now), prefix)
    usage = RequestTrace("")
    for chunk in chunks:
        items = chunk.values()
        usage.record_usage(
            endpoint.provider,
            endpoint.prices,
            sum(estimate_sizes(items)),
            {},
            images=images_in(items),
        )
        yield
    cost = usage.cost if "prompt" in endpoint.prices else None
    return response_bodies.PlanEndpoint(
        provider=endpoint.provider,
        model=endpoint.model,
        price=_format_prices(endpoint),
        chunks=[len(chunk) for chunk in chunks],
        cost=None if cost is None else format_price(cost),
        rests_for=round(health.available_at(now) - now, 3),
    )
