"""A memory cache of vectors: least recently used goes first, bounded by real bytes, with a time to live."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from typing import Final

from embedroute.routing.plan import Embedded, Key

OVERHEAD: Final = 448
"""Bytes that an entry costs beside its numbers: key, entry, array header, and its places in the table."""


class _Entry(Embedded, frozen=True, kw_only=True, gc=False):
    expires: float


class MemoryCache:
    """Key → vector, within ``limit`` bytes and ``ttl`` seconds; ``clock`` is monotonic."""

    def __init__(self, limit: int, ttl: float, clock: Callable[[], float]) -> None:
        """Hold nothing yet; a limit of 0 holds nothing ever."""
        self.limit = limit
        self.size = 0
        self._ttl = ttl
        self._clock = clock
        self._lock = Lock()  # loops in several threads may share one gateway
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()

    def __len__(self) -> int:
        """Count the entries."""
        return len(self._entries)

    def look_up(self, keys: Iterable[Key]) -> dict[Key, Embedded]:
        """Find those of ``keys`` that are held, not too old, and not from a source that was caught since."""
        if not self._entries:
            return {}
        now, found = self._clock(), dict[Key, Embedded]()
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

    def store(self, landed: Mapping[Key, Embedded]) -> None:
        """Keep ``landed``, as copies: a row would otherwise hold its whole batch in memory."""
        if not self.limit:
            return
        expires = self._clock() + self._ttl
        with self._lock:
            for key, item in landed.items():
                self._put(key, item, expires)
            while self.size > self.limit:
                self._drop(next(iter(self._entries)))

    def _put(self, key: Key, item: Embedded, expires: float) -> None:
        if key in self._entries:
            self._drop(key)
        vector = item.vector.copy()
        vector.setflags(write=False)  # whoever is given it must not change what others will get
        self._entries[key] = _Entry(vector, item.tokens, item.estimated, item.source, expires=expires)
        self.size += vector.nbytes + OVERHEAD

    def _drop(self, key: Key) -> None:
        self.size -= self._entries.pop(key).vector.nbytes + OVERHEAD
