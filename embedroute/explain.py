"""What a request would do, without doing it: the ordered plan, the filters, prices, split and cache forecast."""

from typing import Any

from embedroute.access import Caller
from embedroute.errors import PermissionDenied
from embedroute.gateway import Gateway
from embedroute.inputs import size_of
from embedroute.routing.directory import Candidate
from embedroute.routing.plan import make_plan, split
from embedroute.wire.decode import Job


def explain(gateway: Gateway, job: Job, caller: Caller) -> dict[str, Any]:
    """Forecast a request; nothing is sent upstream.

    Raises:
        PermissionDenied: this caller may not debug.
        EmbedrouteError: the refusal that the request itself would meet.
    """
    route = gateway.resolve(job, caller)
    if not gateway.may_debug(caller):
        raise PermissionDenied("This key may not use 'explain'.", param="explain", code="debug_not_allowed")
    decision = gateway.decide(route, job, caller)
    selection, plan = decision.selection, make_plan(job.inputs, decision.shared)
    held = gateway.look_up(plan.work, route, decision, job, caller)
    work = {key: item for key, item in plan.work.items() if key not in held}
    tokens = sum(map(size_of, work.values()))
    return {
        "object": "plan",
        "model": route.public,
        "order": [
            {
                **_facts(candidate),
                "chunks": [len(chunk) for chunk in split(work, candidate.accepts)],
                "cost": _cost(candidate, tokens),
            }
            for candidate in selection.candidates
        ],
        "filtered": [{**_facts(it.candidate), "filter": it.filter, "reason": it.reason} for it in selection.dropped],
        "cache": {"hits": len(held), "misses": len(work)},
        "inputs": {"count": len(plan.keys), "unique": len(plan.work), "estimated_tokens": tokens},
    }


def _facts(candidate: Candidate) -> dict[str, Any]:
    return {
        "provider": candidate.provider,
        "model": candidate.model,
        "price": {kind: str(price) for kind, price in candidate.prices.items()},
    }


def _cost(candidate: Candidate, tokens: int) -> str | None:
    price = candidate.prices.get("prompt")
    return None if price is None else str(price * tokens / 1_000_000)
