"""What a request would do, without doing it: the ordered plan, the filters, prices, split and cache forecast."""

from collections.abc import Mapping

from embedroute.access import Caller
from embedroute.cache.lookup import look_up
from embedroute.errors import PermissionDenied
from embedroute.gateway import Gateway
from embedroute.inputs import Input, sizes_of
from embedroute.routing.directory import Candidate
from embedroute.routing.plan import Key, make_plan, split
from embedroute.wire.decode import Job


def explain(gateway: Gateway, job: Job, caller: Caller) -> dict[str, object]:
    """Forecast a request; nothing is sent upstream.

    Raises:
        PermissionDenied: this caller may not debug.
        EmbedrouteError: the refusal that the request itself would meet.
    """
    route = gateway.resolve(job, caller)
    if not gateway.may_debug(caller):
        raise PermissionDenied("This key may not use 'explain'.", param="explain", code="debug_not_allowed")
    decision = gateway.decisions.decide(route, job, caller)
    selection, plan = decision.selection, make_plan(job.inputs, decision.shared)
    held = look_up(gateway.cache, plan.work, decision)
    work = {key: item for key, item in plan.work.items() if key not in held}
    return {
        "object": "plan",
        "model": route.public,
        "order": [_forecast(candidate, work) for candidate in selection.candidates],
        "filtered": [{**_facts(it.candidate), "filter": it.filter, "reason": it.reason} for it in selection.dropped],
        "cache": {"hits": len(held), "misses": len(work)},
        "inputs": {"count": len(plan.keys), "unique": len(plan.work), "estimated_tokens": _tokens(work)},
    }


def _facts(candidate: Candidate) -> dict[str, object]:
    return {
        "provider": candidate.provider,
        "model": candidate.model,
        "price": {kind: str(price) for kind, price in candidate.prices.items()},
    }


def _forecast(candidate: Candidate, work: Mapping[Key, Input]) -> dict[str, object]:
    price = candidate.prices.get("prompt")
    return {
        **_facts(candidate),
        "chunks": [len(chunk) for chunk in split(work, candidate.accepts)],
        "cost": None if price is None else str(price * _tokens(work) / 1_000_000),
    }


def _tokens(work: Mapping[Key, Input]) -> int:
    return sum(sizes_of(work.values()))
