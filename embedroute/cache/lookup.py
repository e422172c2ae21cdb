"""Finding vectors for a request: under its own keys, and under those of the model's whole vectors, which are cut."""

from collections.abc import Mapping

import msgspec

from embedroute.cache.memory import Entry, MemoryCache
from embedroute.inputs import Input
from embedroute.routing.memo import Decision
from embedroute.routing.plan import Embedded, Key, cut, rekeyed


class Found(msgspec.Struct, frozen=True, gc=False):
    """The ``vectors`` that the cache held for a request.

    ``claims`` has a key for each of them that only other callers have asked for so far: a hit that
    the asking caller is not told of. Its value is the entry to claim and the mark to claim it by.
    """

    vectors: Mapping[Key, Embedded]
    claims: Mapping[Key, tuple[Key, int]] = {}

    def own(self) -> Mapping[Key, Embedded]:
        """The vectors that the caller is told of as hits."""
        if not self.claims:
            return self.vectors
        return {key: item for key, item in self.vectors.items() if key not in self.claims}


NOTHING = Found({})


def look_up(
    cache: MemoryCache,
    work: Mapping[Key, Input],
    decision: Decision,
    owner: int | None = None,
) -> Found:
    """Find what was computed before; a matryoshka model's whole vectors serve every smaller width.

    An entry is the caller's own if ``owner`` is among its marks; without ``owner`` all are.
    """
    held = cache.look_up(work)
    claims: dict[Key, tuple[Key, int]] = {}
    if owner is not None:
        for key, entry in held.items():
            if owner not in entry.owners:
                claims[key] = (key, owner)
    if decision.whole is None or not len(cache) or (len(held) == len(work) and not claims):
        return Found(held, claims)
    left = {key: item for key, item in work.items() if key not in held or key in claims}
    wider, width = rekeyed(left, decision.whole), decision.selection.parameters.width
    whole = cache.look_up(wider.values())
    narrow = cut(wider, whole, width)
    if owner is not None:
        _claim_cut(claims, {key: (wider[key], whole[wider[key]]) for key in narrow}, owner, width)
    return Found({**narrow, **held}, claims)


def _claim_cut(
    claims: dict[Key, tuple[Key, int]],
    whole: Mapping[Key, tuple[Key, Entry]],
    owner: int,
    width: int | None,
) -> None:
    """Change ``claims`` by the ``whole`` entries that a request's vectors can be cut from.

    A caller claims a whole entry for the width it asked for: of the whole vector it is told a miss.
    """
    mark = hash((owner, width))
    for key, (wide, entry) in whole.items():
        if owner in entry.owners or mark in entry.owners:
            claims.pop(key, None)
        else:
            claims.setdefault(key, (wide, mark))
