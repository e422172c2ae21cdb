"""Finds the cached vectors of a request.

A vector is found under its own key, or truncated from a vector of the model's full width. What
makes two requests share an entry is decided in ``routing/cache_keys.py``.
"""

from collections.abc import Collection, Generator, Mapping
from typing import Protocol

import msgspec

from embedroute.cache.memory import Entry
from embedroute.inputs import Input
from embedroute.routing import CacheKey, EmbeddedInput, PreparedSelection, cut, rekeyed_in_steps
from embedroute.runtime import finished

Claims = dict[CacheKey, tuple[CacheKey, int]]
"""Key of a hit → the key of its entry, and the mark by which the caller owns it from now on."""


class Entries(Protocol):
    """Where entries are looked up: the memory, or what a store has returned."""

    def __len__(self) -> int:
        """Return the number of entries."""
        ...

    def look_up(self, keys: Collection[CacheKey]) -> dict[CacheKey, Entry]:
        """Return the valid entries of ``keys``."""
        ...


class Found(msgspec.Struct, frozen=True, gc=False):
    """The ``vectors`` that were found in the cache for a request.

    ``claims`` holds the hits that only other callers have requested so far. To this caller they
    are reported as misses. ``MemoryCache.claim`` adds the caller's marks to their entries.
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
    cache: Entries,
    work: Mapping[CacheKey, Input],
    prepared: PreparedSelection,
) -> Found:
    """Return the cached vectors of ``work``.

    Vectors of a matryoshka model at full width serve every smaller width. A hit is the caller's own
    if ``prepared.owner`` is among the owners of the entry. Without an owner all hits are.
    """
    owner = prepared.owner
    found = _exact(cache, work, owner)
    if _is_complete(found, cache, work, prepared):
        return found
    return finished(_add_truncated(found, cache, work, prepared, owner))


def look_up_in_steps(
    cache: Entries,
    work: Mapping[CacheKey, Input],
    prepared: PreparedSelection,
) -> Generator[None, None, Found]:
    """Return the same as ``look_up`` in steps, for a large request."""
    owner = prepared.owner
    found = _exact(cache, work, owner)
    if _is_complete(found, cache, work, prepared):
        return found
    return (yield from _add_truncated(found, cache, work, prepared, owner))


def _exact(cache: Entries, work: Mapping[CacheKey, Input], owner: int | None) -> Found:
    entries = cache.look_up(work)
    if owner is None or not entries:
        return Found(entries)
    foreign = [key for key, entry in entries.items() if owner not in entry.owners]
    return Found(entries, {key: (key, owner) for key in foreign})


def _is_complete(
    found: Found, cache: Entries, work: Mapping[CacheKey, Input], prepared: PreparedSelection
) -> bool:
    if prepared.whole_key_prefix is None or not len(cache):
        return True
    return len(found.vectors) == len(work) and not found.claims


def _add_truncated(
    found: Found,
    cache: Entries,
    work: Mapping[CacheKey, Input],
    prepared: PreparedSelection,
    owner: int | None,
) -> Generator[None, None, Found]:
    """Add the vectors that can be truncated from vectors of full width."""
    exact = found.vectors
    claims = dict(found.claims)
    missing = {key: item for key, item in work.items() if key not in exact or key in claims}
    wide_keys = yield from rekeyed_in_steps(missing, prepared.whole_key_prefix or b"")
    width = prepared.selection.parameters.width
    whole = cache.look_up(wide_keys.values())
    truncated = cut(wide_keys, whole, width)
    if owner is not None:
        used = {key: (wide_keys[key], whole[wide_keys[key]]) for key in truncated}
        _claim_whole(claims, used, owner, width)
    return Found({**truncated, **exact}, claims)


def _claim_whole(
    claims: Claims,
    used: Mapping[CacheKey, tuple[CacheKey, Entry]],
    owner: int,
    width: int | None,
) -> None:
    """Update ``claims`` by the entries of full width that the request's vectors are truncated from.

    The caller's mark includes the width, so the vector of full width remains a miss for the caller.
    """
    mark = hash((owner, width))
    for key, (wide_key, entry) in used.items():
        if owner in entry.owners or mark in entry.owners:
            claims.pop(key, None)
        else:
            claims.setdefault(key, (wide_key, mark))
