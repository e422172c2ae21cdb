"""One system under one workload: is the answer right, and what does a round cost."""

import json
import statistics
import urllib.request
from collections.abc import Sequence
from contextlib import nullcontext

import msgspec

from benchmarks import bodies
from benchmarks.load import Target, fire, keep_firing
from benchmarks.servers import Server
from benchmarks.workloads import Workload


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    cpu_us: float
    rate: float
    p50_ms: float
    p99_ms: float
    rss_mib: float
    bad: int


class WrongAnswerError(Exception):
    """Measuring it would compare unlike things."""


def check(target: Target, workload: Workload) -> None:
    """Ask once; the answer must hold every vector in the encoding asked for."""
    request = urllib.request.Request(target.url, bodies.once(workload), dict(target.headers))
    try:
        with urllib.request.urlopen(request, timeout=30.0) as response:
            rows = json.load(response)["data"]
    except urllib.error.HTTPError as failure:
        raise WrongAnswerError(
            f"{failure.code}: {failure.read(200).decode(errors='replace')}"
        ) from None
    except (OSError, ValueError, KeyError) as failure:
        raise WrongAnswerError(f"{type(failure).__name__}: {failure}") from None
    kind = str if workload.encoding == "base64" else list
    if [row["index"] for row in rows] != list(range(workload.inputs)) or not isinstance(
        rows[0]["embedding"], kind
    ):
        raise WrongAnswerError(f"{len(rows)} rows of {type(rows[0]['embedding']).__name__}")


def run(
    server: Server,
    target: Target,
    workload: Workload,
    seconds: float,
    beside: tuple[Target, Workload] | None,
) -> Figures | None:
    """Load a system for one round; None if it left requests unanswered."""
    server.settle()
    server.forget_peak()
    marks: list[float] = []
    with keep_firing(*beside) if beside else nullcontext():
        before = server.cpu()
        seen = fire(target, workload, seconds, lambda: marks.append(server.cpu()))
    if not seen or not seen.answered:
        return None
    return Figures(
        cpu_us=(marks[0] - before) / seen.answered * 1e6,
        rate=seen.answered / seen.seconds,
        p50_ms=seen.p50_ms,
        p99_ms=seen.p99_ms,
        rss_mib=server.peak(),
        bad=seen.bad,
    )


def middle(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure, but every bad answer and the highest memory."""
    medians = {
        name: statistics.median(getattr(figures, name) for figures in rounds)
        for name in ("cpu_us", "rate", "p50_ms", "p99_ms")
    }
    return Figures(
        **medians, rss_mib=max(f.rss_mib for f in rounds), bad=sum(f.bad for f in rounds)
    )
