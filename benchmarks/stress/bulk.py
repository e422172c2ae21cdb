"""Requests of one input beside 16 clients that send 2,048 inputs at a time to 4 workers."""

from collections.abc import Iterator

import msgspec

from benchmarks.stress import figures, optional_keys, report
from benchmarks.stress.messages import Behaviour, Load, Stream
from benchmarks.stress.report import Row
from benchmarks.stress.session import Gateway, Session

WORKERS = 4
INPUTS = 2048
BULK_CLIENTS = 16
SINGLE_RATE = 5.0  # per second: they take less than 3 % of the workers' time
UPSTREAM = Behaviour(service=0.02, per_input=0.0002, workers=WORKERS)
DEADLINE = 30.0  # seconds
SETTLED = 2.0  # seconds until the queue has its usual length


class Phases(msgspec.Struct, frozen=True):
    """Single inputs alone until `alone`, bulk alone until `bulk`, and both until `both` (seconds)."""

    alone: float
    bulk: float
    both: float


def measure(session: Session, quick: bool) -> Iterator[Row]:  # noqa: FBT001 - a `Measure`
    phases = Phases(1.0, 4.0, 7.0) if quick else Phases(3.0, 11.0, 21.0)
    provider, endpoint = optional_keys.max_concurrent(WORKERS)
    known = bool(provider or endpoint)
    load = run(
        session,
        phases,
        Gateway(models={"m": ["bulk"]}, deadline=DEADLINE, provider=provider, endpoint=endpoint),
    )
    bound = f"max_concurrent = {WORKERS}" if known else "no bound yet"
    alone, beside = (single(load, "gateway", part) for part in ("alone", "beside"))
    yield Row(
        case=f"bulk, {bound}: p50 of single inputs, alone and beside",
        goal="<= 60 ms beside",
        direct=", ".join(figures.ms(single(load, "direct", part)) for part in ("alone", "beside")),
        gateway=f"{figures.ms(alone)}, {figures.ms(beside)}",
        met=beside <= 60.0,
    )
    rates, direct = rates_of(load, "gateway", phases), rates_of(load, "direct", phases)
    kept = rates[1] / rates[0]
    yield Row(
        case=f"bulk, {bound}: inputs per second, alone and beside",
        goal=">= 95% beside",
        direct=f"{direct[0]:.0f}, {direct[1]:.0f} ({direct[1] / direct[0]:.0%})",
        gateway=f"{rates[0]:.0f}, {rates[1]:.0f} ({kept:.0%})",
        met=kept >= 0.95,
    )
    failed = figures.failures(load.records)
    yield Row(case="bulk: failures", goal="0", gateway=failed or "0", met=not failed)


def run(session: Session, phases: Phases, config: Gateway) -> Load:
    for name in ("bulk", "bulk-direct"):
        session.upstream(name, UPSTREAM)
    with session.gateway(config) as gateway:
        return session.load(
            *streams("gateway", gateway.port, phases),
            *streams("direct", session.ports["bulk-direct"], phases),
        )


def streams(way: str, port: int, phases: Phases) -> Iterator[Stream]:
    alone = Stream(
        name=f"{way} alone",
        model="m",
        ports=(port,),
        rate=SINGLE_RATE,
        end=phases.alone,
        timeout=DEADLINE,
    )
    yield alone
    yield msgspec.structs.replace(alone, name=f"{way} beside", begin=phases.bulk, end=phases.both)
    yield msgspec.structs.replace(
        alone,
        name=f"{way} bulk",
        rate=0.0,
        clients=BULK_CLIENTS,
        inputs=INPUTS,
        begin=phases.alone,
        end=phases.both,
    )


def single(load: Load, way: str, part: str) -> float:
    """Return the p50 of single inputs in ms."""
    return figures.quantile(figures.sent(load, f"{way} {part}"), 0.5)


def rates_of(load: Load, way: str, phases: Phases) -> tuple[float, float]:
    """Return the bulk inputs per second alone and beside single inputs."""
    return (
        rate(load, way, phases.alone + SETTLED, phases.bulk),
        rate(load, way, phases.bulk, phases.both),
    )


def rate(load: Load, way: str, begin: float, end: float) -> float:
    """Return inputs per second. A request at the edge counts for its part within the period."""
    inputs = 0.0
    for record in figures.answered(figures.sent(load, f"{way} bulk")):
        first, last = record.sent - load.started, record.ended - load.started
        inputs += INPUTS * max(0.0, min(last, end) - max(first, begin)) / (last - first)
    return inputs / (end - begin)


if __name__ == "__main__":
    report.main({"bulk": measure})
