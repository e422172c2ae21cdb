"""Caches vectors in memory, with a limit in bytes and a time to live.

The least recently used entry is evicted, unless it was requested more often lately than the new
one: then the new one is not kept (TinyLFU). A bulk run, which requests each text once, therefore
does not replace what is requested again and again.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from threading import Lock
from typing import Final

from msgspec.structs import replace

from embedroute.cache.frequency import FrequencySketch
from embedroute.routing import CacheKey, EmbeddedInput

OVERHEAD: Final = 512
"""Bytes of an entry besides its numbers: key, entry, array header and table slots."""
OWNER: Final = 40
"""Bytes of each owner of an entry: an integer and a reference to it."""
MODALITIES: Final = 320
"""Bytes of the tokens by modality of an entry, if it has them."""
MOST_OWNERS: Final = 16
"""Owners of one entry at most; the oldest is dropped first."""


BYTES_PER_COUNTER: Final = 64
"""Bytes of the limit for which there is one counter of frequencies."""
COUNTED_PER_ENTRY: Final = 10
"""Requests per entry after which all frequencies are halved."""
MOST_COUNTERS: Final = 1 << 22


class Entry(EmbeddedInput, frozen=True, kw_only=True, gc=False):
    """A cached vector with the time at which it expires.

    ``owners`` are the marks of the callers that requested it. A hit is reported only to them, so
    that the counts of one caller do not show what another caller has embedded.
    """

    expires: float
    owners: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Return the bytes that the entry uses."""
        extras = MODALITIES if self.modality_tokens else 0
        return self.vector.nbytes + OVERHEAD + OWNER * len(self.owners) + extras


class MemoryCache:
    """A thread-safe cache of vectors with a size limit and a time to live."""

    def __init__(self, limit: int, ttl: float, clock: Callable[[], float]) -> None:
        """Create an empty cache.

        ``limit`` is in bytes; 0 disables the cache. ``ttl`` is in seconds of the monotonic
        ``clock``.
        """
        self.limit = limit
        self.size: int = 0
        self._ttl = ttl
        self._clock = clock
        self._lock = Lock()  # loops in several threads may share one gateway
        self._entries: OrderedDict[CacheKey, Entry] = OrderedDict()
        self._frequencies = FrequencySketch(min(limit // BYTES_PER_COUNTER, MOST_COUNTERS))
        self._counted_from = limit // 2

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def look_up(self, keys: Collection[CacheKey]) -> dict[CacheKey, Entry]:
        """Return the entries of ``keys`` that exist and are valid.

        An entry is invalid if it has expired, or if its source was found to be unreliable.
        """
        if not self._entries:
            return {}
        now = self._clock()
        found: dict[CacheKey, Entry] = {}
        with self._lock:
            if self.size > self._counted_from:  # before, nothing is evicted soon
                self._frequencies.count(keys, COUNTED_PER_ENTRY * len(self._entries))
            for key in keys:
                entry = self._entries.get(key)
                if entry is None:
                    continue
                if entry.expires <= now or (entry.source is not None and entry.source.unreliable):
                    self._drop(key)
                    continue
                self._entries.move_to_end(key)
                found[key] = entry
        return found

    def store(
        self,
        results: Mapping[CacheKey, EmbeddedInput],
        owner: int | None = None,
        model: str = "",
    ) -> None:
        """Store copies of ``results``: a row itself would keep the array of its batch in memory.

        ``model`` is ignored; a cache with a store behind it needs it.
        """
        del model
        expires = self._clock() + self._ttl
        owners = () if owner is None else (owner,)
        with self._lock:
            for key, item in results.items():
                self._put(key, _make_entry(item, expires, owners))

    def restore(self, entries: Mapping[CacheKey, Entry]) -> None:
        """Store entries with the owners and the time of expiry that they have."""
        with self._lock:
            for key, entry in entries.items():
                self._put(key, entry)

    def peek(self, keys: Iterable[CacheKey]) -> dict[CacheKey, Entry]:
        """Return the entries of ``keys`` that exist, without counting them as used."""
        with self._lock:
            return {key: self._entries[key] for key in keys if key in self._entries}

    def claim(self, owners: Mapping[CacheKey, int], model: str = "") -> None:
        """Add an owner to each entry that still exists; the time of expiry does not change."""
        del model
        with self._lock:
            for key, owner in owners.items():
                entry = self._entries.get(key)
                if entry is not None and owner not in entry.owners:
                    self._own(key, entry, owner)
            self._shrink()

    def _put(self, key: CacheKey, entry: Entry) -> None:
        old = self._entries.get(key)
        if old is not None:
            if old.expires > self._clock():  # keep the earlier owners of a valid entry
                earlier = [mark for mark in old.owners if mark not in entry.owners]
                entry = replace(entry, owners=(*earlier, *entry.owners)[-MOST_OWNERS:])
            self._drop(key)
        elif self.size + entry.size > self.limit and not self._admit(key, entry.size):
            return
        self._entries[key] = entry
        self.size += entry.size
        self._shrink()

    def _admit(self, key: CacheKey, size: int) -> bool:
        """Make room for an entry, unless what is evicted for it is requested more often."""
        frequency = self._frequencies.estimate(key)
        while self._entries and self.size + size > self.limit:
            victim = next(iter(self._entries))
            if self._frequencies.estimate(victim) > frequency:
                self._entries.move_to_end(victim)
                return False
            self._drop(victim)
        return True

    def _own(self, key: CacheKey, entry: Entry, owner: int) -> None:
        owned = replace(entry, owners=(*entry.owners, owner)[-MOST_OWNERS:])
        self._entries[key] = owned
        self.size += owned.size - entry.size

    def _shrink(self) -> None:
        while self.size > self.limit:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: CacheKey) -> None:
        self.size -= self._entries.pop(key).size


def _make_entry(item: EmbeddedInput, expires: float, owners: tuple[int, ...]) -> Entry:
    vector = item.vector.copy()
    vector.setflags(write=False)  # several requests share the array
    return Entry(
        vector,
        item.tokens,
        item.estimated,
        item.source,
        item.modality_tokens,
        expires=expires,
        owners=owners,
    )
