"""Keeps vectors in memory and in a store behind it, which other processes use too.

A request asks the store once, for all inputs that the memory misses, and waits for at most the
``timeout`` of ``[store]``. Concurrent requests are answered by one read of the store. Vectors are
written to the store some time after they were stored in memory, many at once.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import anyio

from embedroute.backend import Source
from embedroute.cache.entries import decode, encode
from embedroute.cache.lookup import Found, look_up_in_steps
from embedroute.cache.memory import Entry, MemoryCache
from embedroute.inputs import Input
from embedroute.log_records import LogLimit, StoreEntriesDropped, write
from embedroute.routing import CacheKey, EmbeddedInput, PreparedSelection, rekeyed_in_steps
from embedroute.runtime import fairness, time_limits
from embedroute.stores import Store, StoreKey, StoreWorker

WRITE_DELAY: Final = 0.05
"""Seconds after which vectors are written, with all that were stored until then."""
READ_AT_ONCE: Final = 128
"""Keys of one read of the store. Requests get what was read when their time is over."""
WRITTEN_AT_ONCE: Final = 64
"""Vectors of one write, so that a read does not wait long for it."""
MOST_PENDING: Final = 67_108_864
"""Bytes of vectors that wait to be written; further ones are not written."""
MOST_TRACED: Final = 16_384
"""Written vectors whose source is remembered, to remove them if it turns out to be unreliable."""


class TieredCache:
    """A ``MemoryCache`` in front of a store.

    ``ttl`` is in seconds. ``clock`` is the monotonic clock of ``memory``, ``wall_clock`` returns
    seconds since 1970, which the processes that share a store have in common.
    """

    def __init__(
        self,
        memory: MemoryCache,
        worker: StoreWorker,
        ttl: float,
        clock: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Take the parts; nothing is opened."""
        self.memory = memory
        self._worker = worker
        self._ttl = ttl
        self._clock = clock
        self._wall_clock = wall_clock
        self._reader = _Reader(worker, clock, wall_clock)
        self._writer = _Writer(worker, ttl)

    @property
    def is_available(self) -> bool:
        """Whether a lookup would ask the store: it has not just failed, and is not stuck."""
        return self._worker.is_available

    async def look_up(
        self,
        found: Found,
        work: Mapping[CacheKey, Input],
        prepared: PreparedSelection,
        *,
        large: bool,
    ) -> Found:
        """Add to what was ``found`` in memory what the store has of the rest of ``work``.

        ``large`` requests are processed in steps between which the event loop runs.
        """
        missing = {key: item for key, item in work.items() if key not in found.vectors}
        if not missing or not self.is_available:
            return found
        model = prepared.route.public_name
        keys = [StoreKey(model, key) for key in missing]
        if prepared.whole_key_prefix is not None:
            steps = rekeyed_in_steps(missing, prepared.whole_key_prefix)
            wide = await fairness.step_by_step(steps) if large else fairness.finished(steps)
            keys += [StoreKey(model, key) for key in wide.values()]
        entries = await self._reader.get(keys)
        if not entries:
            return found
        self.memory.restore(entries)
        looking = look_up_in_steps(_Fetched(entries), missing, prepared)
        more = await fairness.step_by_step(looking) if large else fairness.finished(looking)
        return Found({**found.vectors, **more.vectors}, {**found.claims, **more.claims})

    def store(
        self,
        results: Mapping[CacheKey, EmbeddedInput],
        owner: int | None = None,
        model: str = "",
    ) -> None:
        """Store vectors in memory, and in the store soon."""
        self.memory.store(results, owner)
        owners = () if owner is None else (owner,)
        expires = self._wall_clock() + self._ttl
        self._writer.add(
            (StoreKey(model, key), item, owners, expires) for key, item in results.items()
        )

    def claim(self, owners: Mapping[CacheKey, int], model: str = "") -> None:
        """Add an owner to each entry, in memory and in the store."""
        self.memory.claim(owners)
        claimed = self.memory.peek(owners)
        offset = self._wall_clock() - self._clock()
        self._writer.add(
            (StoreKey(model, key), entry, entry.owners, entry.expires + offset)
            for key, entry in claimed.items()
        )


class _Fetched:
    """The entries that a store has returned, to be looked up like those of the memory."""

    def __init__(self, entries: Mapping[CacheKey, Entry]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def look_up(self, keys: Collection[CacheKey]) -> dict[CacheKey, Entry]:
        return {key: self._entries[key] for key in keys if key in self._entries}


class _Read:
    """The keys that one request waits for. ``found`` is filled by the thread."""

    __slots__ = ("call_soon", "ended", "found", "keys")

    def __init__(self, keys: Sequence[StoreKey]) -> None:
        self.keys = keys
        self.found: dict[CacheKey, Entry] = {}
        self.ended = anyio.Event()
        self.call_soon = time_limits.get_call_soon_threadsafe()


class _Reader:
    """Reads the entries that requests wait for, those of concurrent requests together."""

    def __init__(
        self,
        worker: StoreWorker,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._worker = worker
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._waiting: list[_Read] = []

    async def get(self, keys: Sequence[StoreKey]) -> dict[CacheKey, Entry]:
        """Return the entries that could be read in time."""
        read = _Read(keys)
        with self._lock:
            self._waiting.append(read)
            is_first = len(self._waiting) == 1
        if is_first:
            self._worker.submit(self)
        with suppress(TimeoutError), time_limits.fail_after(self._worker.timeout):
            await read.ended.wait()
        return dict(read.found)

    def run(self, store: Store) -> None:
        reads = self._take()
        try:
            self._fetch(store, reads)
        finally:
            _end(reads)

    def fail(self, error: BaseException) -> None:
        del error  # it is logged, and the requests compute their vectors
        _end(self._take())

    def _take(self) -> list[_Read]:
        with self._lock:
            reads = self._waiting
            self._waiting = []
        return reads

    def _fetch(self, store: Store, reads: Sequence[_Read]) -> None:
        readers: dict[StoreKey, list[_Read]] = {}
        for read in reads:
            for key in read.keys:
                readers.setdefault(key, []).append(read)
        keys = list(readers)
        now = self._wall_clock()
        offset = self._clock() - now
        invalid: list[StoreKey] = []
        for start in range(0, len(keys), READ_AT_ONCE):
            chunk = keys[start : start + READ_AT_ONCE]
            for key, value in zip(chunk, store.get_vectors(chunk), strict=True):
                if value is None:
                    continue
                entry = decode(key.digest, value, now, offset)
                if entry is None:
                    invalid.append(key)
                    continue
                for read in readers[key]:
                    read.found[key.digest] = entry
        if invalid:
            store.drop_vectors(invalid)


def _end(reads: Sequence[_Read]) -> None:
    """Wake the tasks that wait, with one call for each event loop."""
    loops: dict[Callable[..., object], list[_Read]] = {}
    for read in reads:
        loops.setdefault(read.call_soon, []).append(read)
    for call_soon, ended in loops.items():
        with suppress(RuntimeError):  # the event loop has ended
            call_soon(_set_events, ended)


def _set_events(reads: Sequence[_Read]) -> None:
    for read in reads:
        read.ended.set()


_Pending = tuple[StoreKey, EmbeddedInput, tuple[int, ...], float]


class _Writer:
    """Writes vectors, a batch at a time."""

    def __init__(self, worker: StoreWorker, ttl: float) -> None:
        self._worker = worker
        self._ttl = ttl
        self._lock = threading.Lock()
        self._pending: deque[_Pending] = deque()
        self._pending_bytes = 0
        self._is_scheduled = False
        self._traced: deque[tuple[Source, StoreKey]] = deque(maxlen=MOST_TRACED)
        self._dropped = 0
        self._log = LogLimit()

    def add(self, items: Iterable[_Pending]) -> None:
        with self._lock:
            for item in items:
                if self._pending_bytes > MOST_PENDING:
                    self._dropped += 1
                    continue
                self._pending.append(item)
                self._pending_bytes += item[1].vector.nbytes
            if self._pending and not self._is_scheduled:
                self._is_scheduled = True
                self._worker.submit_later(self, WRITE_DELAY)

    def run(self, store: Store) -> None:
        batch = self._take()
        entries: list[tuple[StoreKey, bytes]] = []
        for key, item, owners, expires in batch:
            if item.source is not None:
                if item.source.unreliable:
                    continue
                self._traced.append((item.source, key))
            entries.append((key, encode(key.digest, item, owners, expires)))
        try:
            if entries:
                store.put_vectors(entries, self._ttl)
            self._drop_caught(store)
        except BaseException:
            self._put_back(batch)
            raise
        self._continue()

    def fail(self, error: BaseException) -> None:
        """Try again later; ``run`` has put its batch back."""
        del error
        self._worker.submit_later(self, WRITE_DELAY)

    def _take(self) -> list[_Pending]:
        with self._lock:
            count = min(len(self._pending), WRITTEN_AT_ONCE)
            batch = [self._pending.popleft() for _ in range(count)]
            self._pending_bytes -= sum(item.vector.nbytes for _, item, _, _ in batch)
        return batch

    def _put_back(self, batch: Sequence[_Pending]) -> None:
        with self._lock:
            self._pending.extendleft(reversed(batch))
            self._pending_bytes += sum(item.vector.nbytes for _, item, _, _ in batch)

    def _continue(self) -> None:
        with self._lock:
            dropped = self._dropped
            self._dropped = 0
            self._is_scheduled = bool(self._pending)
            if self._is_scheduled:
                self._worker.submit(self)
        if dropped and self._log.due(time.monotonic(), "dropped"):
            write(StoreEntriesDropped(store=self._worker.place, entries=dropped))

    def _drop_caught(self, store: Store) -> None:
        """Remove the written vectors whose source has turned out to be unreliable."""
        dropped = [key for source, key in self._traced if source.unreliable]
        if dropped:
            store.drop_vectors(dropped)
            kept = [each for each in self._traced if not each[0].unreliable]
            self._traced = deque(kept, maxlen=MOST_TRACED)
