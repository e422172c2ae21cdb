"""Shows the counts of a gateway to Prometheus (extra ``metrics``).

With ``PROMETHEUS_MULTIPROC_DIR``, worker processes share their numbers in that folder, and each
reports the sums of all. The gauges of each worker that runs are updated once a second.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import accumulate
from types import ModuleType
from typing import TYPE_CHECKING, Final

from embedroute.errors import MissingExtra
from embedroute.telemetry.counts import (
    BILLED,
    CALL_INPUTS,
    COST,
    DURATIONS,
    IN_FLIGHT,
    INPUTS,
    MEMORY_HITS,
    MEMORY_MISSES,
    RETRIES,
    SECONDS,
    SERVED,
    SIZES,
    STORE_HITS,
    STORE_MISSES,
    Counts,
    Series,
)
from embedroute.telemetry.series import add_up

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

CALLS: Final = (
    ("requests", "Finished requests", "request", ("model", "status", "dialect")),
    ("upstream_requests", "Upstream calls", "call", ("provider", "model", "outcome")),
)
"""Counters of rows: name, description, kind of row and labels."""
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
CACHE: Final = (
    ("memory", "hit", MEMORY_HITS),
    ("memory", "miss", MEMORY_MISSES),
    ("store", "hit", STORE_HITS),
    ("store", "miss", STORE_MISSES),
)
"""Tier, result and position of the inputs that were looked up."""
HISTOGRAMS: Final = (
    ("request_duration_seconds", "Duration of requests", "request", ("model",), 0, DURATIONS),
    (
        "upstream_duration_seconds",
        "Duration of upstream calls",
        "call",
        ("provider", "model"),
        0,
        DURATIONS,
    ),
    (
        "batch_inputs",
        "Inputs of upstream calls",
        "call",
        ("provider", "model"),
        CALL_INPUTS + 1,
        SIZES,
    ),
)
"""Name, description, kind of row, labels, position of the buckets and their upper bounds."""
SUMS: Final = {0: SECONDS, CALL_INPUTS + 1: CALL_INPUTS}
"""Position of the buckets → position of the sum."""


class Metrics:
    """The metrics of one gateway: a collector of prometheus-client."""

    def __init__(self, counts: Counts, registry: "CollectorRegistry | None" = None) -> None:
        """Register this collector in ``registry``, or in a new one.

        Raises:
            MissingExtra: prometheus-client is not installed.
        """
        prometheus = _import_prometheus()
        self.registry: CollectorRegistry = (
            prometheus.CollectorRegistry() if registry is None else registry
        )
        self._counts = counts
        self.registry.register(self)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that the ``Accept`` header requests, and its type."""
        encode, content_type = import_module("prometheus_client.exposition").choose_encoder(accept)
        return encode(self.registry), content_type

    def collect(self) -> "Iterator[Metric]":
        """Yield the metrics of this process, or of all workers that share a folder."""
        self._counts.refresh()
        sums, running = self._counts.read()
        yield from _counters(sums)
        yield from _histograms(sums)
        yield from _gauges(running)

    def describe(self) -> "Sequence[Metric]":
        """Return nothing: a registry need not collect in order to know the names."""
        return []


def _counters(sums: Series) -> "Iterator[Metric]":
    core = _import_core()
    for name, text, kind, labels in CALLS:
        family = core.CounterMetricFamily(f"embedroute_{name}", text, labels=labels)
        for key, row in sums.items():
            if key[0] == kind:
                family.add_metric(key[1:], sum(row[:SECONDS]))
        yield family
    failed = core.CounterMetricFamily(
        "embedroute_store_errors", "Failed calls of a store", labels=["store"]
    )
    for key, row in sums.items():
        if key[0] == "store_errors":
            failed.add_metric(key[1:], row[0])
    yield failed
    requests = [row for key, row in sums.items() if key[0] == "request"]
    text = "Inputs that were looked up in the cache"
    looked_up = core.CounterMetricFamily(
        "embedroute_cache_requests", text, labels=["tier", "result"]
    )
    for tier, result, position in CACHE:
        looked_up.add_metric([tier, result], sum(row[position] for row in requests))
    yield looked_up
    models = _add_by_labels(sums, "request", 1)
    for name, (text, columns) in MODEL_COUNTERS.items():
        labels = ["model", "kind"] if len(columns) > 1 else ["model"]
        family = core.CounterMetricFamily(f"embedroute_{name}", text, labels=labels)
        for (model,), row in models.items():
            for kind, column in columns.items():
                family.add_metric([model, kind][: len(labels)], row[column])
        yield family


def _add_by_labels(sums: Series, kind: str, labels: int) -> Series:
    """Return the sums of the rows of a kind, by the first ``labels`` of their labels."""
    return add_up({key[1 : 1 + labels]: row} for key, row in sums.items() if key[0] == kind)


def _histograms(sums: Series) -> "Iterator[Metric]":
    core = _import_core()
    for name, text, kind, labels, start, bounds in HISTOGRAMS:
        family = core.HistogramMetricFamily(f"embedroute_{name}", text, labels=labels)
        names = [*(str(float(bound)) for bound in bounds), "+Inf"]
        for key, row in _add_by_labels(sums, kind, len(labels)).items():
            counts = accumulate(row[start : start + len(names)])
            family.add_metric(key, list(zip(names, counts, strict=True)), row[SUMS[start]])
        yield family


def _gauges(running: Sequence[Series]) -> "Iterator[Metric]":
    core = _import_core()
    in_flight = sum(series[IN_FLIGHT][0] for series in running if IN_FLIGHT in series)
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
