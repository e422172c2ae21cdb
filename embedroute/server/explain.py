"""What a request would do, without doing it: the ordered plan, the filters, prices, split and cache forecast.

Cache counts are of inputs; ``rests_for`` is the seconds for which an endpoint is left alone after failures or a 429.
"""

import time
from collections.abc import Generator, Mapping

from embedroute.auth import Caller
from embedroute.cache import NOTHING, CachePolicy, look_up_in_steps
from embedroute.errors import PermissionDenied
from embedroute.gateway import Gateway
from embedroute.inputs import Input, estimate_sizes, images_in
from embedroute.protocol import EmbeddingRequest
from embedroute.routing import (
    CacheKey,
    EndpointHealth,
    ResolvedEndpoint,
    make_plan_in_steps,
    split_in_steps,
    text_before,
)
from embedroute.server.models import format_price
from embedroute.trace import RequestTrace


def explain(
    gateway: Gateway, request: EmbeddingRequest, caller: Caller, cached: CachePolicy
) -> Generator[None, None, dict[str, object]]:
    """Forecast a request that uses the cache as ``cached`` says, in steps; nothing is sent upstream.

    Raises:
        PermissionDenied: this caller may not debug.
        EmbedrouteError: the refusal that the request itself would meet.
    """
    route = gateway.selections.resolve(request, caller)
    if not gateway.may_debug(caller):
        raise PermissionDenied(
            "This key may not use 'explain'.", param="explain", code="debug_not_allowed"
        )
    prepared = gateway.selections.prepare(request, caller)
    selection = prepared.selection
    plan = yield from make_plan_in_steps(request.inputs, prepared.shared)
    found = (
        (yield from look_up_in_steps(gateway.cache, plan.work, prepared))
        if cached.read
        else NOTHING
    )
    held = found.own()
    work = {key: item for key, item in plan.work.items() if key not in held}
    hits = sum(key in held for key in plan.keys)
    tokens = sum(estimate_sizes(work.values()))
    order: list[dict[str, object]] = []
    for candidate in selection.candidates:
        yield
        before = text_before(candidate, route.model, selection.parameters.input_type)
        order.append(
            (
                yield from _forecast(
                    candidate, gateway.healths.get(candidate), work, before, time.monotonic()
                )
            )
        )
    return {
        "object": "plan",
        "model": route.public_name,
        "order": order,
        "filtered": [
            {**_facts(it.candidate), "filter": it.filter, "reason": it.reason}
            for it in selection.dropped
        ],
        "cache": {"hits": hits, "misses": len(plan.keys) - hits},
        "inputs": {"count": len(plan.keys), "unique": len(plan.work), "estimated_tokens": tokens},
    }


def _facts(candidate: ResolvedEndpoint) -> dict[str, object]:
    return {
        "provider": candidate.provider,
        "model": candidate.model,
        "price": {kind: format_price(price) for kind, price in candidate.prices.items()},
    }


def _forecast(
    candidate: ResolvedEndpoint,
    health: EndpointHealth,
    work: Mapping[CacheKey, Input],
    before: str,
    now: float,
) -> Generator[None, None, dict[str, object]]:
    chunks = yield from split_in_steps(work, health.caps(candidate.accepts, now), before)
    bill = RequestTrace("")
    for chunk in chunks:
        items = chunk.values()
        bill.record_usage(
            candidate.provider,
            candidate.prices,
            sum(estimate_sizes(items)),
            {},
            images=images_in(items),
        )
        yield
    return {
        **_facts(candidate),
        "chunks": [len(chunk) for chunk in chunks],
        "cost": format_price(bill.cost) if "prompt" in candidate.prices else None,
        "rests_for": round(health.available_at(now) - now, 3),
    }
