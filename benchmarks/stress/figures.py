"""Figures of some records: the share that was answered, percentiles of latency."""

import math
from collections import Counter
from collections.abc import Sequence

from benchmarks.stress.messages import FAILED, TIMED_OUT, WRONG, Load, Record

NAMES = {FAILED: "connection failed", TIMED_OUT: "timed out", WRONG: "wrong vectors"}


def sent(load: Load, stream: str, begin: float = 0.0, end: float = math.inf) -> list[Record]:
    """Return the records of a stream that were sent in a period, in seconds after the start."""
    return [
        record
        for record in load.records
        if record.stream == stream and begin <= record.sent - load.started < end
    ]


def ended(load: Load, stream: str, begin: float, end: float) -> list[Record]:
    """Return the records of a stream whose response came in a period."""
    return [
        record
        for record in load.records
        if record.stream == stream and begin <= record.ended - load.started < end
    ]


def answered(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.status == 200]


def refused(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.status != 200]


def share(records: Sequence[Record]) -> float:
    """Return the share of requests that were answered with a 200."""
    return len(answered(records)) / len(records) if records else math.nan


def tries(records: Sequence[Record]) -> float:
    return sum(record.tries for record in records) / len(records) if records else math.nan


def quantile(records: Sequence[Record], part: float) -> float:
    """Return a quantile of the latency in ms; infinite where there is no record."""
    ordered = sorted(record.ended - record.sent for record in records)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] * 1000 if ordered else math.inf


def failures(records: Sequence[Record]) -> str:
    """Return the number of failures by status and code, such as `12 x 503 overloaded`."""
    counts = Counter(
        f"{NAMES.get(record.status, record.status)} {record.code}".rstrip()
        for record in refused(records)
    )
    return ", ".join(f"{many} x {what}" for what, many in counts.items())


def percent(part: float) -> str:
    return f"{part:.1%}"


def ms(value: float) -> str:
    return "none" if math.isinf(value) else f"{value:.1f} ms"
