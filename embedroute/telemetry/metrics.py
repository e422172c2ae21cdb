"""Counts requests and upstream calls for Prometheus (extra ``metrics``).

Labels hold names of the config only: a model that is not in it is ``other``. With
``PROMETHEUS_MULTIPROC_DIR``, worker processes share their numbers in that folder, and each reports
the sums of all. Gauges are then those at the last request or call of each worker that runs.
"""

import os
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Final, Protocol

from embedroute.errors import MissingExtra
from embedroute.telemetry.observer import CallOutcome, FinishedCall, FinishedRequest
from embedroute.telemetry.series import (
    Key,
    SeriesStore,
    add_up,
    is_running,
    read_workers,
)
from embedroute.telemetry.state import GatewayState

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

OTHER: Final = "other"
"""The label of models that are not in the config: clients choose their names."""
MULTIPROCESS: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder in which worker processes share their values."""
DURATIONS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper bounds of the buckets in seconds."""
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Upper bounds of the buckets in inputs of a call."""
BREAKERS: Final = {"closed": 0.0, "half_open": 1.0, "open": 2.0}

COUNTERS: Final = (
    ("requests", "Finished requests", ("model", "status", "dialect")),
    ("upstream_requests", "Upstream calls", ("provider", "model", "outcome")),
    ("store_errors", "Failed calls of a store", ("store",)),
)
"""Series of one number: name, description and labels."""
INPUTS, BILLED, SERVED, COST, RETRIES, MODEL_DURATION = range(6)
"""Positions in the series of a model. The last is that of its histogram: a sum, then buckets."""
MODEL_COUNTERS: Final[Mapping[str, tuple[str, Mapping[str, int]]]] = {
    "inputs": ("Inputs of requests with a 200", {"": INPUTS}),
    "tokens": (
        "Tokens, billed by upstreams or served to clients",
        {"billed": BILLED, "served": SERVED},
    ),
    "cost_usd": ("Cost of upstream calls in USD, where prices are known", {"": COST}),
    "retries": ("Upstream calls of a request after its first", {"": RETRIES}),
}
"""Name → description, and the position for each ``kind``."""
MODEL_WIDTH: Final = MODEL_DURATION + 1 + len(DURATIONS) + 1
CALL_SIZES: Final = 1 + len(DURATIONS) + 1
"""The position of the histogram of sizes in the series of calls; that of durations is 0."""
CALL_WIDTH: Final = CALL_SIZES + 1 + len(SIZES) + 1
HISTOGRAMS: Final = (
    (
        "request_duration_seconds",
        "Duration of requests",
        "model",
        ("model",),
        MODEL_DURATION,
        DURATIONS,
    ),
    (
        "upstream_duration_seconds",
        "Duration of upstream calls",
        "call",
        ("provider", "model"),
        0,
        DURATIONS,
    ),
    ("batch_inputs", "Inputs of upstream calls", "call", ("provider", "model"), CALL_SIZES, SIZES),
)
"""Name, description, kind of series, labels, position and upper bounds."""
SHARED: Final = ("shared",)
"""The series of what has no labels: inputs by result of the cache, and requests in flight."""
HITS, MISSES, IN_FLIGHT, SHARED_WIDTH = range(4)

Series = Mapping[Key, Sequence[float]]


class StateSource(Protocol):
    """Knows the present state of a gateway."""

    in_flight: int

    def read_state(self) -> GatewayState:
        """Return the state."""
        ...


class Metrics:
    """The metrics of one gateway: an observer, and a collector of prometheus-client."""

    def __init__(
        self,
        models: Collection[str],
        source: StateSource,
        registry: "CollectorRegistry | None" = None,
    ) -> None:
        """Register this collector in ``registry``, or in a new one.

        ``models`` are the public names that may be labels.

        Raises:
            MissingExtra: prometheus-client is not installed.
        """
        prometheus = _import_prometheus()
        self.registry: CollectorRegistry = (
            prometheus.CollectorRegistry() if registry is None else registry
        )
        self.change_models(models)
        self._source = source
        self._lock = Lock()
        self._store: SeriesStore | None = None
        self._values: array[float] | memoryview[float] = array("d")
        self._series: dict[Key, int] = {}
        self._by_request: dict[tuple[str, int, str], tuple[int, int, int]] = {}
        self._by_call: dict[tuple[str, str, str], tuple[int, int]] = {}
        self._widths: dict[Key, int] = {}
        self.registry.register(self)

    def change_models(self, models: Collection[str]) -> None:
        """Take other public names that may be labels. Series that exist remain."""
        self._models: frozenset[str] = frozenset(models)

    def request_finished(self, request: FinishedRequest) -> None:
        """Count a request."""
        key = (request.model, request.status, request.dialect)
        with self._lock:
            counted, first, shared = self._by_request.get(key) or self._add_request(*key)
            values = self._values
            values[counted] += 1
            values[shared + HITS] += request.hits
            values[shared + MISSES] += request.misses
            values[shared + IN_FLIGHT] = self._source.in_flight
            if request.status == 200:
                values[first + INPUTS] += request.inputs
                values[first + SERVED] += request.served_tokens
            if request.attempts:
                values[first + BILLED] += request.billed_tokens
                values[first + COST] += float(request.cost or 0)
                values[first + RETRIES] += request.attempts - 1
            seconds = request.seconds
            values[first + MODEL_DURATION] += seconds
            values[first + MODEL_DURATION + 1 + bisect_left(DURATIONS, seconds)] += 1

    def call_finished(self, call: FinishedCall) -> None:
        """Count an upstream call."""
        key = (call.provider, call.model, call.outcome)
        with self._lock:
            counted, first = self._by_call.get(key) or self._add_call(*key)
            values = self._values
            values[counted] += 1
            values[first] += call.seconds
            values[first + 1 + bisect_left(DURATIONS, call.seconds)] += 1
            values[first + CALL_SIZES] += call.inputs
            values[first + CALL_SIZES + 1 + bisect_left(SIZES, call.inputs)] += 1
        if call.outcome != "answered":
            self.refresh()  # so that the worker that is scraped sees this one's breakers

    def count_store_error(self, store: str) -> None:
        """Count a failed call of a store."""
        with self._lock:
            counted = self._find(("store_errors", store))
            self._values[counted] += 1

    def refresh(self) -> None:
        """Set the gauges to the present state of this process."""
        state = self._source.read_state()
        with self._lock:
            shared = self._find(SHARED, SHARED_WIDTH)
            self._values[shared + IN_FLIGHT] = state.in_flight
            for endpoint in state.endpoints:
                first = self._find(("endpoint", endpoint.name), 2)
                self._values[first] = endpoint.waiting
                self._values[first + 1] = BREAKERS[endpoint.breaker]

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that the ``Accept`` header requests, and its type."""
        encode, content_type = import_module("prometheus_client.exposition").choose_encoder(accept)
        return encode(self.registry), content_type

    def collect(self) -> "Iterator[Metric]":
        """Yield the metrics of this process, or of all workers that share a folder."""
        self.refresh()
        sums, running = self._read()
        yield from _counters(sums)
        yield from _histograms(sums)
        yield from _gauges(running)

    def describe(self) -> "Sequence[Metric]":
        """Return nothing: a registry need not collect in order to know the names."""
        return []

    def _add_request(self, model: str, status: int, dialect: str) -> tuple[int, int, int]:
        """Return where the series of a request begin. They are remembered for models of the config.

        Looking up each series by its labels would take longer than counting.
        """
        label = model if model in self._models else OTHER
        counted = self._find(("requests", label, str(status), dialect))
        first = self._find(("model", label), MODEL_WIDTH)
        found = (counted, first, self._find(SHARED, SHARED_WIDTH))
        if label == model:
            self._by_request[model, status, dialect] = found
        return found

    def _add_call(self, provider: str, model: str, outcome: CallOutcome) -> tuple[int, int]:
        """Return where the series of a call begin; see ``_add_request``."""
        label = model if model in self._models else OTHER
        counted = self._find(("upstream_requests", provider, label, outcome))
        found = (counted, self._find(("call", provider, label), CALL_WIDTH))
        if label == model:
            self._by_call[provider, model, outcome] = found
        return found

    def _find(self, key: Key, width: int = 1) -> int:
        """Return where the numbers of a series begin; add it if it is new."""
        found = self._series.get(key)
        if found is not None:
            return found
        if self._store is None:
            # Not before the first request, so that workers which are forked have their own files.
            folder = os.environ.get(MULTIPROCESS)
            self._store = SeriesStore(Path(folder) if folder else None)
            self._values = self._store.values
        self._widths[key] = width
        return self._series.setdefault(key, self._store.add(key, width))

    def _read(self) -> tuple[Series, Sequence[Series]]:
        """Return the sums of the series of all workers, and the series of each that runs."""
        if folder := os.environ.get(MULTIPROCESS):
            workers = list(read_workers(Path(folder)))
            sums = add_up(series for _, series in workers)
            return sums, [series for pid, series in workers if is_running(pid)]
        with self._lock:
            own = {
                key: list(self._values[first : first + self._widths[key]])
                for key, first in self._series.items()
            }
        return own, [own]


def _counters(sums: Series) -> "Iterator[Metric]":
    core = _import_core()
    for name, text, labels in COUNTERS:
        family = core.CounterMetricFamily(f"embedroute_{name}", text, labels=labels)
        for key, numbers in sums.items():
            if key[0] == name:
                family.add_metric(key[1:], numbers[0])
        yield family
    hits, misses, _ = sums.get(SHARED, (0.0, 0.0, 0.0))
    text = "Inputs that were looked up in the cache"
    looked_up = core.CounterMetricFamily(
        "embedroute_cache_requests", text, labels=["tier", "result"]
    )
    looked_up.add_metric(["memory", "hit"], hits)
    looked_up.add_metric(["memory", "miss"], misses)
    yield looked_up
    models = [(key[1], numbers) for key, numbers in sums.items() if key[0] == "model"]
    for name, (text, columns) in MODEL_COUNTERS.items():
        labels = ["model", "kind"] if len(columns) > 1 else ["model"]
        family = core.CounterMetricFamily(f"embedroute_{name}", text, labels=labels)
        for model, numbers in models:
            for kind, column in columns.items():
                family.add_metric([model, kind][: len(labels)], numbers[column])
        yield family


def _histograms(sums: Series) -> "Iterator[Metric]":
    core = _import_core()
    for name, text, kind, labels, start, bounds in HISTOGRAMS:
        family = core.HistogramMetricFamily(f"embedroute_{name}", text, labels=labels)
        names = [*(str(float(bound)) for bound in bounds), "+Inf"]
        for key, numbers in sums.items():
            if key[0] == kind:
                counts = accumulate(numbers[start + 1 : start + 1 + len(names)])
                family.add_metric(key[1:], list(zip(names, counts, strict=True)), numbers[start])
        yield family


def _gauges(running: Sequence[Series]) -> "Iterator[Metric]":
    core = _import_core()
    in_flight = sum(series[SHARED][IN_FLIGHT] for series in running if SHARED in series)
    yield core.GaugeMetricFamily("embedroute_inflight", "Requests in flight", value=in_flight)
    queue = core.GaugeMetricFamily(
        "embedroute_queue", "Upstream calls that wait for their endpoint", labels=["endpoint"]
    )
    breaker = core.GaugeMetricFamily(
        "embedroute_breaker_state",
        "Breaker of an endpoint: 0 closed, 1 half-open, 2 open; the worst of all workers",
        labels=["endpoint"],
    )
    keys = dict.fromkeys(key for series in running for key in series if key[0] == "endpoint")
    for key in keys:
        found = [series[key] for series in running if key in series]
        queue.add_metric(key[1:], sum(waiting for waiting, _ in found))
        breaker.add_metric(key[1:], max(state for _, state in found))
    yield queue
    yield breaker


def _import_prometheus() -> ModuleType:
    try:
        return import_module("prometheus_client")
    except ImportError:
        raise MissingExtra("metrics", "prometheus-client") from None


def _import_core() -> ModuleType:
    return import_module("prometheus_client.metrics_core")
