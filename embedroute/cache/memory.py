"""A memory cache of vectors: least recently used goes first, bounded by real bytes, with a time to live."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from typing import Final

from msgspec.structs import replace

from embedroute.routing import CacheKey, EmbeddedInput

OVERHEAD: Final = 512
"""Bytes that an entry costs beside its numbers: key, entry, array header, and its places in the table."""
OWNER: Final = 40
"""Bytes that each owner of an entry costs: a number and a reference to it."""
MOST_OWNERS: Final = 16
"""Owners that an entry remembers; the oldest is forgotten first."""


class Entry(EmbeddedInput, frozen=True, kw_only=True, gc=False):
    """A vector that is held until ``expires``.

    ``owners`` are the marks of the callers who asked for it. Only they are told that it was a hit,
    so that the counts of one caller do not show what another has embedded.
    """

    expires: float
    owners: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that the entry takes."""
        return self.vector.nbytes + OVERHEAD + OWNER * len(self.owners)


class MemoryCache:
    """Key → vector, within ``limit`` bytes and ``ttl`` seconds; ``clock`` is monotonic."""

    def __init__(self, limit: int, ttl: float, clock: Callable[[], float]) -> None:
        """Hold nothing yet; a limit of 0 holds nothing ever."""
        self.limit = limit
        self.size = 0
        self._ttl = ttl
        self._clock = clock
        self._lock = Lock()  # loops in several threads may share one gateway
        self._entries: OrderedDict[CacheKey, Entry] = OrderedDict()

    def __len__(self) -> int:
        """Count the entries."""
        return len(self._entries)

    def look_up(self, keys: Iterable[CacheKey]) -> dict[CacheKey, Entry]:
        """Find those of ``keys`` that are held, not too old, and not from a source that was caught since."""
        if not self._entries:
            return {}
        now, found = self._clock(), dict[CacheKey, Entry]()
        with self._lock:
            for key in keys:
                entry = self._entries.get(key)
                if entry is None:
                    continue
                if entry.expires <= now or (entry.source is not None and entry.source.caught):
                    self._drop(key)
                    continue
                self._entries.move_to_end(key)
                found[key] = entry
        return found

    def store(self, landed: Mapping[CacheKey, EmbeddedInput], owner: int | None = None) -> None:
        """Keep ``landed``, as copies: a row would otherwise hold its whole batch in memory."""
        if not self.limit:
            return
        now, owners = self._clock(), () if owner is None else (owner,)
        with self._lock:
            for key, item in landed.items():
                self._put(key, item, now, owners)
            self._shrink()

    def claim(self, owners: Mapping[CacheKey, int]) -> None:
        """Add an owner to each of the entries that are still held; they expire when they would."""
        with self._lock:
            for key, owner in owners.items():
                entry = self._entries.get(key)
                if entry is not None and owner not in entry.owners:
                    self._own(key, entry, owner)
            self._shrink()

    def _put(self, key: CacheKey, item: EmbeddedInput, now: float, owners: tuple[int, ...]) -> None:
        old = self._entries.get(key)
        if old is not None:
            if old.expires > now:  # the others have asked for it all the same
                owners = (*[it for it in old.owners if it not in owners], *owners)[-MOST_OWNERS:]
            self._drop(key)
        vector = item.vector.copy()
        vector.setflags(write=False)  # whoever is given it must not change what others will get
        expires = now + self._ttl
        entry = Entry(
            vector, item.tokens, item.estimated, item.source, expires=expires, owners=owners
        )
        self._entries[key] = entry
        self.size += entry.size

    def _own(self, key: CacheKey, entry: Entry, owner: int) -> None:
        owned = replace(entry, owners=(*entry.owners, owner)[-MOST_OWNERS:])
        self._entries[key] = owned
        self.size += owned.size - entry.size

    def _shrink(self) -> None:
        while self.size > self.limit:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: CacheKey) -> None:
        self.size -= self._entries.pop(key).size
