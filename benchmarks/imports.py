"""What `import embedroute` and the first request cost, by `python -X importtime` in fresh processes."""

import json
import os
import re
import statistics
import subprocess

import msgspec

from benchmarks import places
from benchmarks.first_request import MARK

LINE = re.compile(r"import time: +(\d+) \| +(\d+) \| ( *)(\S+)")
GIVEN = "import starlette.applications, starlette.requests, starlette.responses, starlette.routing, numpy, httpx2"
RUNS = 7
SHOWN = 12


class Imported(msgspec.Struct, frozen=True):
    name: str
    ms: float  # its own, without what it imports
    whole_ms: float
    depth: int


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds, medians but for `beyond_least`.

    `beyond` is with starlette, numpy and httpx2 there already; `first` holds the import of the HTTP transport.
    """

    whole: float
    beyond: float
    beyond_least: float
    dearest: list[Imported]
    import_: float
    build: float
    first: float
    second: float
    imported_by_first: list[Imported]


def measure(environment: str, config: str, model: str) -> Costs:
    """Raises OSError, ValueError or CalledProcessError where embedroute does not run."""
    alone = [_importing(environment, "import embedroute") for _ in range(RUNS)]
    after = [_importing(environment, f"{GIVEN}; import embedroute") for _ in range(RUNS)]
    plain = [_request(environment, config, model, ()) for _ in range(RUNS)]
    listing = _request(environment, config, model, ("-X", "importtime"))[1]
    medians = {
        name: statistics.median(times[name] for times, _ in plain)
        for name in ("build", "first", "second")
    }
    return Costs(
        whole=statistics.median(map(_whole, alone)),
        beyond=statistics.median(map(_whole, after)),
        beyond_least=min(map(_whole, after)),
        dearest=_dearest(sorted(after, key=_whole)[RUNS // 2]),
        import_=statistics.median(times["import"] for times, _ in plain),
        imported_by_first=_tops(_parse(listing.partition(MARK)[2])),
        **medians,
    )


def _importing(environment: str, code: str) -> list[Imported]:
    return _parse(_python(environment, "-X", "importtime", "-c", code).stderr)


def _request(
    environment: str, config: str, model: str, options: tuple[str, ...]
) -> tuple[dict[str, float], str]:
    ended = _python(environment, *options, "-m", "benchmarks.first_request", model, config=config)
    return json.loads(ended.stdout), ended.stderr


def _python(
    environment: str, *arguments: str, config: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["taskset", "-c", str(places.SYSTEM_CORE), places.python(environment), *arguments],
        cwd=places.ROOT,
        # Installed packages have their bytecode beside them.
        env=os.environ | {"BENCH_CONFIG": config, "PYTHONDONTWRITEBYTECODE": ""},
        capture_output=True,
        text=True,
        timeout=60.0,
        check=True,
    )


def _parse(listing: str) -> list[Imported]:
    found = (LINE.match(line) for line in listing.splitlines())
    return [Imported(m[4], int(m[1]) / 1000, int(m[2]) / 1000, len(m[3]) // 2) for m in found if m]


def _whole(listing: list[Imported]) -> float:
    return next(module.whole_ms for module in listing if module.name == "embedroute")


def _dearest(listing: list[Imported]) -> list[Imported]:
    """Modules that `import embedroute` brought in: Python prints them right before it, one step deeper or more."""
    end = next(place for place, module in enumerate(listing) if module.name == "embedroute")
    begin = end
    while begin and listing[begin - 1].depth > listing[end].depth:
        begin -= 1
    return sorted(listing[begin : end + 1], key=lambda module: -module.ms)[:SHOWN]


def _tops(listing: list[Imported]) -> list[Imported]:
    return sorted(
        (module for module in listing if module.depth == 0), key=lambda module: -module.whole_ms
    )[:SHOWN]
