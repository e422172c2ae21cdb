"""Records what finished requests have used: one row per request and provider.

Rows are written to the store some time after their responses, those of many requests at once. What
the store has committed survives the end of the process at any moment; what a killed process had not
yet written is lost. Without a store, the sums are kept in memory.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from embedroute.errors import Overloaded
from embedroute.execution.money import to_units
from embedroute.log_records import LogLimit, UsageDropped, write
from embedroute.stores import (
    MemoryUsage,
    Store,
    StoreError,
    StoreWorker,
    UsageGroup,
    UsageRow,
    UsageSums,
)
from embedroute.trace import RequestTrace

WRITE_DELAY: Final = 0.05
"""Seconds after which rows are written, with all that were added until then."""
WRITTEN_AT_ONCE: Final = 256
"""Rows of one write, so that a request does not wait long for it."""
MOST_PENDING: Final = 100_000
"""Rows that wait to be written; further ones are lost, and a log record counts them."""
READ_TIMEOUT: Final = 5.0
"""Seconds in which the store must return sums."""


class _Part(msgspec.Struct):
    """What a request used at one provider, or without one."""

    provider: str
    status: int
    inputs: int = 0
    cached: int = 0
    billed: int = 0
    cost: int | None = 0


def make_rows(trace: RequestTrace, status: int, seconds: float, at: float) -> list[UsageRow]:
    """Return the rows of a request that ended at ``at``, in seconds since 1970."""
    parts = _list_parts(trace, status)
    serving = [part for part in parts if part.status < 400]
    left = trace.served_tokens
    response: int | None = status
    rows: list[UsageRow] = []
    for part in parts:
        served = left if serving and part is serving[-1] else min(part.billed, left)
        left -= served
        row = UsageRow(
            at=at,
            request=trace.request_id,
            caller=trace.caller or "",
            model=trace.public_model,
            provider=part.provider,
            response=response,
            status=part.status,
            inputs=part.inputs,
            cached=part.cached,
            billed=part.billed,
            served=served,
            cost=part.cost,
            seconds=seconds,
        )
        response = None
        rows.append(row)
    return rows


def _list_parts(trace: RequestTrace, status: int) -> Sequence[_Part]:
    """Return the parts by provider, then those that failed, then what needed no provider."""
    parts: dict[str, _Part] = {}
    for bill in trace.bills:
        part = parts.setdefault(bill.provider, _Part(bill.provider, status))
        part.inputs += bill.inputs
        part.billed += bill.tokens
        cost = bill.cost()
        part.cost = None if cost is None or part.cost is None else part.cost + to_units(cost)
    for provider, code in trace.failures:
        if provider not in parts:
            parts[provider] = _Part(provider, code or 502)
    rest = trace.inputs - sum([part.inputs for part in parts.values()])
    if status < 400 and rest > 0:
        parts[""] = _Part("", status, cached=rest)
    return [*parts.values()] or [_Part("", status)]


class Ledger:
    """The usage of one gateway. Any event loop may add to it."""

    def __init__(
        self, worker: StoreWorker | None, days: int, wall_clock: Callable[[], float] = time.time
    ) -> None:
        """Write to the store of ``worker``, or to memory, and keep everything for ``days``."""
        self._worker = worker
        self._days: int = days
        self._wall_clock = wall_clock
        self._memory = MemoryUsage()
        self._lock = threading.Lock()
        self._pending: deque[UsageRow] = deque()
        self._batch: tuple[str, Sequence[UsageRow]] | None = None
        self._is_scheduled = False
        self._dropped = 0
        self._log = LogLimit()

    def change(self, days: int) -> None:
        """Keep everything for this number of days from now on."""
        self._days = days

    def add(self, trace: RequestTrace, status: int, seconds: float) -> None:
        """Add a request that ends now, after ``seconds``, unless its caller is not known."""
        if trace.caller is None:
            return
        rows = make_rows(trace, status, seconds, self._wall_clock())
        worker = self._worker
        if worker is None:
            self._memory.add(rows, self._days)
            return
        with self._lock:
            if len(self._pending) >= MOST_PENDING:
                self._dropped += len(rows)
                return
            self._pending += rows
            if not self._is_scheduled:
                self._is_scheduled = True
                worker.submit_later(self, WRITE_DELAY)

    async def sum(self, since: str, caller: str | None) -> Sequence[tuple[UsageGroup, UsageSums]]:
        """Return the sums of each group from the day ``since`` on, of one caller or of all.

        Raises:
            Overloaded: the store failed.
        """
        if self._worker is None:
            return self._memory.sum(since, caller)
        found: list[Sequence[tuple[UsageGroup, UsageSums]]] = []

        def read(store: Store) -> None:
            while self._pending or self._batch is not None:
                self._write_batch(store)
            found.append(store.sum_usage(since, caller))

        try:
            await self._worker.call(read, READ_TIMEOUT)
        except StoreError:
            raise Overloaded(
                "The usage cannot be read at the moment. Try again.", retry_after=1.0
            ) from None
        return found[0]

    def run(self, store: Store) -> None:
        """Write a batch of rows; the thread of the store calls this."""
        self._write_batch(store)
        with self._lock:
            self._is_scheduled = bool(self._pending)
            dropped = self._dropped
            self._dropped = 0
        if self._is_scheduled and self._worker is not None:
            self._worker.submit(self)
        if dropped and self._worker is not None and self._log.due(time.monotonic(), "dropped"):
            write(UsageDropped(store=self._worker.place, rows=dropped))

    def fail(self, error: BaseException) -> None:
        """Try again later, with the same batch."""
        del error
        if self._worker is not None:
            self._worker.submit_later(self, WRITE_DELAY)

    def _write_batch(self, store: Store) -> None:
        """Write the batch that was not committed, or else the next one."""
        if self._batch is None:
            with self._lock:
                count = min(len(self._pending), WRITTEN_AT_ONCE)
                rows = [self._pending.popleft() for _ in range(count)]
            if not rows:
                return
            self._batch = secrets.token_hex(8), rows
        store.add_usage(*self._batch, self._days)
        self._batch = None
