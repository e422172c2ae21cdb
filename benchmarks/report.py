"""RESULTS.md, from figures."""

from collections.abc import Mapping
from itertools import chain

import msgspec

from benchmarks import machine, places
from benchmarks.goals import GOALS, IMPORT, IMPORT_LIMIT
from benchmarks.imports import Costs, Imported
from benchmarks.interleave import Bench, Effort
from benchmarks.measure import Figures
from benchmarks.workloads import WORKLOADS, Workload

HOW = """\
Written by `scripts/bench`; only "What the profiles show" is by hand, in `PROFILE.md`. Everything ran on loopback: the
system under test on one core, wrk and the upstream on the other. nginx answers every POST with a fixed file of unit
vectors of 1536 numbers. CPU is the user and system time of the system under test over a round, children included,
divided by the requests it answered; a round ends when its last request is answered. embedroute is mounted in Starlette
with keys, checks of every vector and all else on; its cache is off but where a title says otherwise. `bare-X` is an
ASGI function that sends the bytes on through client X; `-d` decodes and encodes request and answer with msgspec. p50
and p99 are wrk's, corrected for coordinated omission. No two requests hold equal inputs but where the cache is
measured.
"""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    bench: Bench
    effort: Effort
    costs: Costs | None
    left_out: tuple[str, ...]


def written(run: Run) -> str:
    parts = (
        ["# Results", "", HOW, *machine.described(), "", *_circumstances(run)],
        ["", "## Goals", "", *_goals(run)],
        *(_workload(workload, run.bench.results) for workload in WORKLOADS),
        _imports(run.costs),
        _failures(run.bench.failures),
        ["", "## What the profiles show", "", (places.HERE / "PROFILE.md").read_text().rstrip()],
    )
    return "\n".join(chain.from_iterable(parts)) + "\n"


def _circumstances(run: Run) -> list[str]:
    rounds = f"{run.effort.rounds} interleaved rounds of {run.effort.seconds:g} s or more: medians, most memory, all bad answers."
    return [
        rounds,
        *([f"Left out of this run: {', '.join(run.left_out)}."] if run.left_out else []),
    ]


def _goals(run: Run) -> list[str]:
    rows = ["| goal | limit | measured | |", "| --- | --- | --- | --- |"]
    for goal in GOALS:
        ratio = goal.ratio(run.bench.results)
        rows.append(
            f"| {goal.title} | {goal.shown} | {_verdict(ratio, goal.limit, met=ratio is not None and goal.met(ratio))} |"
        )
    beyond = run.costs.beyond if run.costs else None
    verdict = _verdict(beyond, IMPORT_LIMIT, met=beyond is not None and beyond <= IMPORT_LIMIT)
    return [*rows, f"| {IMPORT}, ms | ≤ {IMPORT_LIMIT:g} | {verdict} |"]


def _verdict(measured: float | None, limit: float, *, met: bool) -> str:
    if measured is None:
        return "- | not measured"
    off = abs(measured / limit - 1)
    shown = f"1/{1 / measured:.1f}" if limit < 1 else f"{measured:.2f}"
    return f"{shown} | {'met' if met else f'**missed by {off:.0%}**'}"


def _workload(workload: Workload, results: Mapping[tuple[str, str], Figures]) -> list[str]:
    found = {
        name: results[name, workload.name]
        for name in workload.systems
        if (name, workload.name) in results
    }
    if not found:
        return []
    base = min((found[name].cpu_us for name in workload.base if name in found), default=None)
    rows = [_row(name, figures, base) for name, figures in found.items()]
    head = "| system | CPU µs/request | over bare | requests/s | p50 ms | p99 ms | peak RSS MiB | bad |".replace(
        "bare", "static" if workload.base == ("static",) else "bare"
    )
    return [
        "",
        f"## {workload.title[0].upper()}{workload.title[1:]}",
        "",
        head,
        "| --- |" + " ---: |" * 7,
        *rows,
        *_note(workload),
    ]


def _row(name: str, figures: Figures, base: float | None) -> str:
    times = f"{figures.cpu_us / base:.2f}" if base else "-"
    speed = f"{figures.rate:,.1f}" if figures.rate < 100 else f"{figures.rate:,.0f}"
    latency = f"{figures.p50_ms:.1f} | {figures.p99_ms:.1f}"
    return f"| {name} | {figures.cpu_us:,.0f} | {times} | {speed} | {latency} | {figures.rss_mib:.0f} | {figures.bad} |"


def _note(workload: Workload) -> list[str]:
    return ["", workload.note] if workload.note else []


def _imports(costs: Costs | None) -> list[str]:
    if costs is None:
        return []
    beyond = f"{costs.beyond:.1f} ms of it beyond starlette, numpy and httpx2 (least {costs.beyond_least:.1f})"
    times = f"build {costs.build:.1f}, first request {costs.first:.1f} (it imports the HTTP transport), next {costs.second:.1f}"
    return [
        *("", "## Import and first request", ""),
        f"`python -X importtime`: `import embedroute` {costs.whole:.1f} ms, {beyond}.",
        f"In a fresh process without the tracing, ms: import {costs.import_:.1f}, {times}.",
        *(
            "",
            "Dearest modules beyond those three, by their own time in ms:",
            "",
            *_modules(costs.dearest),
        ),
        *(
            "",
            "Imported by the first request, cumulative ms (under tracing):",
            "",
            *_modules(costs.imported_by_first),
        ),
    ]


def _modules(listing: list[Imported]) -> list[str]:
    rows = [f"| {module.name} | {module.ms:.1f} | {module.whole_ms:.1f} |" for module in listing]
    return ["| module | own | cumulative |", "| --- | ---: | ---: |", *rows]


def _failures(failures: Mapping[str, str]) -> list[str]:
    rows = [f"- {name}: {why.replace(str(places.ROOT), '.')}" for name, why in failures.items()]
    return ["", "## Not measured", "", *rows] if rows else []
