"""Finding vectors for a request: under its own keys, and under those of the model's whole vectors, which are cut."""

from collections.abc import Mapping

from embedroute.cache.memory import MemoryCache
from embedroute.inputs import Input
from embedroute.routing.memo import Decision
from embedroute.routing.plan import Embedded, Key, cut, rekeyed


def look_up(cache: MemoryCache, work: Mapping[Key, Input], decision: Decision) -> dict[Key, Embedded]:
    """Find what was computed before; a matryoshka model's whole vectors serve every smaller width."""
    found = cache.look_up(work)
    if len(found) < len(work) and decision.whole is not None and len(cache):
        left = {key: item for key, item in work.items() if key not in found}
        wider = rekeyed(left, decision.whole)
        found |= cut(wider, cache.look_up(wider.values()), decision.selection.parameters.width)
    return found
