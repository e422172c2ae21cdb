"""Drives wrk: one load, and what it saw."""

import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import msgspec

from benchmarks import bodies, places
from benchmarks.workloads import Workload

PATIENCE = 20.0  # seconds for requests under way to finish after the last was sent
_numbers = itertools.count(int(time.time()) % 50_000 * 10_000_000, 1_000_000)


class Target(msgspec.Struct, frozen=True):
    url: str
    headers: Mapping[str, str]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """`bad` counts answers that were not 200 and connections that failed."""

    answered: int
    bad: int
    seconds: float
    p50_ms: float
    p99_ms: float


def fire(
    target: Target, workload: Workload, seconds: float, drained: Callable[[], None] = lambda: None
) -> Seen | None:
    """Load a target for some seconds; `drained` is called the moment its last answer is in. None: answers stayed out."""
    with _wrk(target, workload, seconds) as wrk:
        end = threading.Timer(seconds + PATIENCE, wrk.send_signal, [signal.SIGINT])
        end.start()
        drained_line = next(
            (line.split() for line in wrk.stdout if line.startswith("drained")), None
        )
        drained()
        end.cancel()
        return drained_line and _read(drained_line, _stop(wrk))


@contextmanager
def keep_firing(target: Target, workload: Workload) -> Iterator[None]:
    with _wrk(target, workload, 60.0) as wrk:
        time.sleep(0.5)
        try:
            yield
        finally:
            _stop(wrk)


def _wrk(target: Target, workload: Workload, seconds: float) -> subprocess.Popen:
    template = places.RUN / f"{workload.name}.template"
    template.write_text(bodies.template(workload))
    headers = [f"-H{name}: {value}" for name, value in target.headers.items()]
    limits = [
        "-t1",
        f"-c{workload.at_once}",
        f"-d{int(seconds + PATIENCE + 1)}s",
        "--timeout",
        "60s",
    ]
    script = [
        "-s",
        str(places.HERE / "load.lua"),
        target.url,
        "--",
        str(template),
        str(seconds),
        str(next(_numbers)),
    ]
    wrk = subprocess.Popen(["wrk", *limits, *headers, *script], stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(wrk.pid, {places.LOAD_CORE})
    return wrk


def _stop(wrk: subprocess.Popen) -> str:
    """On SIGINT wrk ends early and prints what it saw."""
    wrk.send_signal(signal.SIGINT)
    return wrk.communicate(timeout=10)[0]


def _read(drained_line: list[str], rest: str) -> Seen:
    latency = next(line.split() for line in rest.splitlines() if line.startswith("latency"))
    return Seen(
        answered=int(drained_line[1]),
        bad=int(drained_line[2]) + int(latency[3]),
        seconds=float(drained_line[3]),
        p50_ms=int(latency[1]) / 1000,
        p99_ms=int(latency[2]) / 1000,
    )
