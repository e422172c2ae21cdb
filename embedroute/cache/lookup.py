"""Finds the cached vectors of a request: under its own keys, and under those of the model's whole vectors."""

from collections.abc import Generator, Mapping

import msgspec

from embedroute.cache.memory import Entry, MemoryCache
from embedroute.inputs import Input
from embedroute.routing import CacheKey, EmbeddedInput, PreparedSelection, cut, rekeyed_in_steps
from embedroute.runtime import finished

Claims = dict[CacheKey, tuple[CacheKey, int]]
"""Key of a hit → the entry to claim and the mark to claim it by."""


class Found(msgspec.Struct, frozen=True, gc=False):
    """The ``vectors`` that the cache held for a request.

    ``claims`` has a key for each of them that only other callers have asked for so far: a hit that
    is not reported to the asking caller. Its value is the entry to claim and the mark to claim it by.
    """

    vectors: Mapping[CacheKey, EmbeddedInput]
    claims: Claims = {}

    def own(self) -> Mapping[CacheKey, EmbeddedInput]:
        """Return the vectors that are reported to the caller as hits."""
        if not self.claims:
            return self.vectors
        return {key: item for key, item in self.vectors.items() if key not in self.claims}


NOTHING = Found({})


def look_up(
    cache: MemoryCache,
    work: Mapping[CacheKey, Input],
    prepared: PreparedSelection,
) -> Found:
    """Find cached vectors; a matryoshka model's whole vectors serve every smaller width.

    An entry is the caller's own if the decision's ``owner`` is among its marks; without one all are.
    """
    if not cache.size:
        return NOTHING
    owner = prepared.owner
    found = _exact(cache, work, owner)
    if _is_complete(found, cache, work, prepared):
        return found
    return finished(_with_cut(found, cache, work, prepared, owner))


def look_up_in_steps(
    cache: MemoryCache,
    work: Mapping[CacheKey, Input],
    prepared: PreparedSelection,
) -> Generator[None, None, Found]:
    """Find the same in steps, for a large request."""
    owner = prepared.owner
    found = _exact(cache, work, owner)
    if _is_complete(found, cache, work, prepared):
        return found
    return (yield from _with_cut(found, cache, work, prepared, owner))


def _exact(cache: MemoryCache, work: Mapping[CacheKey, Input], owner: int | None) -> Found:
    entries = cache.look_up(work)
    if owner is None or not entries:
        return Found(entries)
    foreign = [key for key, entry in entries.items() if owner not in entry.owners]
    return Found(entries, {key: (key, owner) for key in foreign})


def _is_complete(
    found: Found, cache: MemoryCache, work: Mapping[CacheKey, Input], prepared: PreparedSelection
) -> bool:
    if prepared.whole is None or not len(cache):
        return True
    return len(found.vectors) == len(work) and not found.claims


def _with_cut(
    found: Found,
    cache: MemoryCache,
    work: Mapping[CacheKey, Input],
    prepared: PreparedSelection,
    owner: int | None,
) -> Generator[None, None, Found]:
    """Add the vectors that are cut from whole ones."""
    exact = found.vectors
    claims = dict(found.claims)
    missing = {key: item for key, item in work.items() if key not in exact or key in claims}
    wider = yield from rekeyed_in_steps(missing, prepared.whole or b"")
    width = prepared.selection.parameters.width
    whole = cache.look_up(wider.values())
    narrow = cut(wider, whole, width)
    if owner is not None:
        _claim_cut(claims, {key: (wider[key], whole[wider[key]]) for key in narrow}, owner, width)
    return Found({**narrow, **exact}, claims)


def _claim_cut(
    claims: Claims,
    whole: Mapping[CacheKey, tuple[CacheKey, Entry]],
    owner: int,
    width: int | None,
) -> None:
    """Change ``claims`` by the ``whole`` entries that a request's vectors can be cut from.

    A caller claims a whole entry for the width it asked for: the whole vector stays a miss for it.
    """
    mark = hash((owner, width))
    for key, (wide, entry) in whole.items():
        if owner in entry.owners or mark in entry.owners:
            claims.pop(key, None)
        else:
            claims.setdefault(key, (wide, mark))
