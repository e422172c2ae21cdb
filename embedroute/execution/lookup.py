"""Plans a request and looks its inputs up, where that is more than one short step."""

from embedroute.cache import (
    NOTHING,
    Found,
    MemoryCache,
    TieredCache,
    look_up,
    look_up_in_steps,
)
from embedroute.execution.context import RequestContext
from embedroute.routing import Plan, PreparedSelection, make_plan, make_plan_in_steps
from embedroute.runtime import fairness


async def look_up_in_tiers(
    context: RequestContext,
    prepared: PreparedSelection,
    cache: MemoryCache,
    shared: TieredCache | None,
) -> tuple[Plan, Found]:
    """Plan a request and look it up, also in the store behind a ``shared`` cache.

    For a large request it does so in steps between which the event loop runs.
    """
    inputs = context.request.inputs
    large = context.request.large
    reads = context.cache_policy.read
    if large:
        plan = await fairness.step_by_step(make_plan_in_steps(inputs, prepared.key_prefix))
    else:
        plan = make_plan(inputs, prepared.key_prefix)
    found = NOTHING
    if reads and large:
        found = await fairness.step_by_step(look_up_in_steps(cache, plan.work, prepared))
    elif reads and cache.size:
        found = look_up(cache, plan.work, prepared)
    if reads and shared is not None and len(found.vectors) < len(plan.work):
        in_memory = found
        is_asked = shared.is_available
        found = await shared.look_up(in_memory, plan.work, prepared, large=large)
        if is_asked:
            context.trace.record_store_lookup(plan.keys, in_memory.vectors, found.own())
    return plan, found
