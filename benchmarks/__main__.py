"""The command behind `scripts/bench`."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence

import msgspec

from benchmarks import environments, imports, places, report, systems, workloads
from benchmarks.configs import KEY
from benchmarks.imports import Costs
from benchmarks.interleave import Bench, Effort, bench
from benchmarks.report import Run
from benchmarks.systems import System
from benchmarks.workloads import Workload

QUICK = Effort(seconds=1.0, rounds=1)
IMPORTS = "imports"
LAST = places.WORK / "RESULTS.md"


def names(text: str) -> tuple[str, ...]:
    """Comma-separated systems and workloads, each of which must exist."""
    chosen_names = tuple(text.split(","))
    known = [*systems.BY_NAME, *workloads.BY_NAME, IMPORTS]
    if unknown := [name for name in chosen_names if name not in known]:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)} unknown; there are {', '.join(known)}"
        )
    return chosen_names


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure embedroute beside its peers on loopback."
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round of a second each; for a look, not for a claim",
    )
    parser.add_argument(
        "--only",
        type=names,
        default=(),
        metavar="NAME[,NAME]",
        help="these systems and workloads (and `imports`)",
    )
    parser.add_argument(
        "--without", type=names, default=(), metavar="NAME[,NAME]", help="all but these"
    )
    parser.add_argument(
        "--show", action="store_true", help="print the report of the last run again"
    )
    return parser.parse_args(arguments)


def chosen(table: dict, options: argparse.Namespace) -> list:
    """Rows of a table that `--only` names, all if it names none of this table, less those of `--without`."""
    only = [name for name in options.only if name in table]
    return [
        row
        for name, row in table.items()
        if (name in only or not only) and name not in options.without
    ]


def work(
    wanted: list[System], plan: list[Workload], effort: Effort, *, with_imports: bool
) -> tuple[Bench, Costs | None]:
    taking_part = {name for workload in plan for name in workload.systems}
    with bench([system for system in wanted if system.name in taking_part], effort) as at_work:
        costs = import_costs(at_work) if with_imports else None
        for workload in plan:
            print(f"{workload.name}: {workload.title}", flush=True)
            at_work.work(workload)
            show(at_work, workload)
    return at_work, costs


def import_costs(at_work: Bench) -> Costs | None:
    environments.prepare({"embedroute"})
    try:
        return imports.measure("venv", str(places.RUN / "embedroute-off.toml"), "n1-base64")
    except subprocess.CalledProcessError as failure:
        at_work.fail(IMPORTS, failure.stderr.strip().splitlines()[-1].replace(KEY, "…"))
    except (OSError, ValueError, StopIteration, subprocess.TimeoutExpired) as failure:
        at_work.fail(IMPORTS, f"{type(failure).__name__}: {failure}")
    return None


def show(at_work: Bench, workload: Workload) -> None:
    for (name, at), figures in at_work.results.items():
        if at == workload.name:
            cost = f"{figures.cpu_us:10.0f} µs {figures.rate:9.1f}/s"
            latency = f"p50 {figures.p50_ms:8.1f} ms  p99 {figures.p99_ms:8.1f} ms"
            print(f"  {name:18} {cost}  {latency}  {figures.rss_mib:5.0f} MiB  bad {figures.bad}")


def keep(at_work: Bench, text: str, *, whole: bool) -> None:
    """Write the report; only a whole run replaces the one beside the code."""
    rows = [
        {"system": name, "workload": at, **msgspec.to_builtins(figures)}
        for (name, at), figures in at_work.results.items()
    ]
    (places.WORK / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    for file in (LAST, places.HERE / "RESULTS.md") if whole else (LAST,):
        file.write_text(text)


def main() -> None:
    options = parse_options(sys.argv[1:])
    if options.show:
        sys.exit(print(LAST.read_text()))
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("ended")
    )  # so that every process that was started is stopped
    try:
        environments.prepare_tools()
    except environments.NotInstalledError as failure:
        sys.exit(f"wrk and nginx are needed: {failure}")
    plan = [] if options.only == (IMPORTS,) else chosen(workloads.BY_NAME, options)
    effort = QUICK if options.quick else Effort()
    with_imports = IMPORTS not in options.without and (not options.only or IMPORTS in options.only)
    at_work, costs = work(chosen(systems.BY_NAME, options), plan, effort, with_imports=with_imports)
    text = report.written(Run(bench=at_work, effort=effort, costs=costs, left_out=options.without))
    keep(at_work, text, whole=not (options.quick or options.only))
    print(text.partition("## Goals")[2].partition("\n## ")[0])


if __name__ == "__main__":
    main()
