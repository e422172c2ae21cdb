"""Counts requests and upstream calls, in plain numbers that ``Metrics`` shows to Prometheus.

Counting is on the path of every request, so it makes no struct and changes few numbers: those of
one row by model, status and dialect, and of one row by provider, model and outcome. What is shown
is added up from the rows when it is read. Labels hold names of the config only: a model that is
not in it is ``other``.
"""

import os
import threading
import weakref
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from pathlib import Path
from typing import Final

from embedroute.telemetry.observer import CallOutcome
from embedroute.telemetry.series import (
    Key,
    Row,
    SeriesStore,
    add_up,
    is_running,
    read_workers,
)
from embedroute.telemetry.state import GatewayState
from embedroute.trace import RequestTrace

OTHER: Final = "other"
"""The label of models that are not in the config: clients choose their names."""
MULTIPROCESS: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder in which worker processes share their values."""
DURATIONS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper bounds of the buckets in seconds."""
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Upper bounds of the buckets in inputs of a call."""
REFRESH: Final = 1.0
"""Seconds between two updates of the gauges that worker processes share."""
BREAKERS: Final = {"closed": 0.0, "half_open": 1.0, "open": 2.0}
SECONDS: Final = len(DURATIONS) + 1
"""The position of the sum after the buckets of durations, with which each row begins."""
INPUTS, SERVED, BILLED, COST, RETRIES = range(SECONDS + 1, SECONDS + 6)
"""Positions in the row of a request."""
MEMORY_HITS, MEMORY_MISSES, STORE_HITS, STORE_MISSES, REQUEST_WIDTH = range(
    SECONDS + 6, SECONDS + 11
)
CALL_INPUTS: Final = SECONDS + 1
"""The position of the sum of inputs in the row of a call; the buckets of sizes follow."""
CALL_WIDTH: Final = CALL_INPUTS + 1 + len(SIZES) + 1
IN_FLIGHT: Final = ("in_flight",)

Series = Mapping[Key, Sequence[float]]


class Counts:
    """The numbers of one gateway. It may be used from several threads.

    With ``PROMETHEUS_MULTIPROC_DIR``, the numbers are in files that worker processes share. Then a
    thread updates the gauges, because a process that is scraped knows the state of no other.
    """

    def __init__(self, models: Collection[str], read_state: Callable[[], GatewayState]) -> None:
        """Start at 0. ``models`` are the public names that may be labels."""
        self.change_models(models)
        self._read_state = read_state
        self._lock = threading.Lock()
        self._store: SeriesStore | None = None
        self._rows: dict[Key, Row] = {}
        self._by_request: dict[tuple[str, int, str], Row] = {}
        self._by_call: dict[tuple[str, str, str], Row] = {}

    def change_models(self, models: Collection[str]) -> None:
        """Take other public names that may be labels. Series that exist remain."""
        self._models: frozenset[str] = frozenset(models)

    def count_request(self, trace: RequestTrace, dialect: str, status: int, seconds: float) -> None:
        """Count a request that ends now, after ``seconds``."""
        key = (trace.public_model, status, dialect)
        bucket = bisect_left(DURATIONS, seconds)
        with self._lock:
            row = self._by_request.get(key) or self._add_request(*key)
            row[bucket] += 1
            row[SECONDS] += seconds
            if status == 200:
                row[INPUTS] += trace.inputs
                row[SERVED] += trace.served_tokens
            for bill in trace.bills:
                row[BILLED] += bill.tokens
                cost = bill.cost()
                if cost:
                    row[COST] += float(cost)
            if trace.attempts > 1:
                row[RETRIES] += trace.attempts - 1
            if trace.hits:
                row[MEMORY_HITS] += trace.hits - trace.store_hits
            if trace.misses:
                row[MEMORY_MISSES] += trace.misses
            if trace.store_lookups:
                row[MEMORY_MISSES] += trace.store_hits
                row[STORE_HITS] += trace.store_hits
                row[STORE_MISSES] += trace.store_lookups - trace.store_hits

    def count_call(
        self, provider: str, model: str, outcome: CallOutcome, seconds: float, inputs: int
    ) -> None:
        """Count an upstream call that ends now, after ``seconds``."""
        key = (provider, model, outcome)
        bucket = bisect_left(DURATIONS, seconds)
        size = CALL_INPUTS + 1 + (bisect_left(SIZES, inputs) if inputs > 1 else 0)
        with self._lock:
            row = self._by_call.get(key) or self._add_call(*key)
            row[bucket] += 1
            row[SECONDS] += seconds
            row[CALL_INPUTS] += inputs
            row[size] += 1

    def count_store_error(self, store: str) -> None:
        """Count a failed call of a store."""
        with self._lock:
            self._find(("store_errors", store), 1)[0] += 1

    def refresh(self) -> None:
        """Set the gauges of this process to its present state."""
        state = self._read_state()
        with self._lock:
            self._find(IN_FLIGHT, 1)[0] = state.in_flight
            for endpoint in state.endpoints:
                row = self._find(("endpoint", endpoint.name), 2)
                row[0] = endpoint.waiting
                row[1] = BREAKERS[endpoint.breaker]

    def read(self) -> tuple[Series, Sequence[Series]]:
        """Return the sums of the series of all workers, and the series of each that runs."""
        if folder := os.environ.get(MULTIPROCESS):
            workers = list(read_workers(Path(folder)))
            sums = add_up(series for _, series in workers)
            return sums, [series for pid, series in workers if is_running(pid)]
        with self._lock:
            own = {key: list(row) for key, row in self._rows.items()}
        return own, [own]

    def _add_request(self, model: str, status: int, dialect: str) -> Row:
        """Return the row of a request. It is remembered for models of the config."""
        label = model if model in self._models else OTHER
        row = self._find(("request", label, str(status), dialect), REQUEST_WIDTH)
        if label == model:
            self._by_request[model, status, dialect] = row
        return row

    def _add_call(self, provider: str, model: str, outcome: CallOutcome) -> Row:
        """Return the row of a call; see ``_add_request``."""
        label = model if model in self._models else OTHER
        row = self._find(("call", provider, label, outcome), CALL_WIDTH)
        if label == model:
            self._by_call[provider, model, outcome] = row
        return row

    def _find(self, key: Key, width: int) -> Row:
        """Return the row of a series; add it if it is new."""
        row = self._rows.get(key)
        if row is None:
            store = self._store or self._open()
            row = self._rows[key] = store.add(key, width)
        return row

    def _open(self) -> SeriesStore:
        """Open the store, not before the first request: workers may be forked until then."""
        folder = os.environ.get(MULTIPROCESS)
        store = self._store = SeriesStore(Path(folder) if folder else None)
        if folder:
            _start_refreshing(self)
        return store


def _start_refreshing(counts: Counts) -> None:
    """Update the gauges once a second, until ``counts`` is not used any more."""
    thread = threading.Thread(
        target=_keep_refreshing,
        args=(weakref.ref(counts),),
        name="embedroute-metrics",
        daemon=True,
    )
    # An empty context: free-threaded Python copies the starter's context into a thread.
    Context().run(thread.start)


def _keep_refreshing(reference: "weakref.ref[Counts]") -> None:
    never = threading.Event()
    while (counts := reference()) is not None:
        with suppress(RuntimeError):  # a dict has changed while it was read; try again later
            counts.refresh()
        del counts
        never.wait(REFRESH)
