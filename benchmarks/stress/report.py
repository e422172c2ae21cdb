"""The command line of the scripts, and the table that they print."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import msgspec

from benchmarks.stress.session import Session

HEADINGS = ("case", "goal", "direct", "direct, 3 retries", "gateway", "met")
WIDTHS = (66, 20, 22, 20, 28, 3)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure. `met` is None where there is no goal, or nothing was measured."""

    case: str
    goal: str = "-"
    direct: str = "-"
    retried: str = "-"
    gateway: str = "-"
    met: bool | None = None


Measure = Callable[[Session, bool], Iterator[Row]]
"""Measures with the processes of a session, in a short version if the second argument is true."""


def main(scripts: Mapping[str, Measure]) -> None:
    """Run scripts; the exit status is 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stress", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short version, for a look")
    quick = parser.parse_args().quick
    print(f"{len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}\n")
    show(HEADINGS)
    show(["-" * width for width in WIDTHS])
    missed = [row for name, measure in scripts.items() for row in run(name, measure, quick=quick)]
    print(f"\nGoals missed: {len(missed)}.")
    sys.exit(bool(missed))


def run(name: str, measure: Measure, *, quick: bool) -> list[Row]:
    """Print the rows of a script and return those that miss their goal."""
    started = time.monotonic()
    missed = []
    with Session() as session:
        for row in measure(session, quick):
            met = "" if row.met is None else ("yes" if row.met else "NO")
            show((row.case, row.goal, row.direct, row.retried, row.gateway, met))
            if row.met is False:
                missed.append(row)
    used = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in session.cpu.items())
    show((f"*{name}: {time.monotonic() - started:.0f} s; CPU: {used}*", *[""] * 5))
    return missed


def show(cells) -> None:
    padded = (cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True))
    print(f"| {' | '.join(padded)} |", flush=True)
