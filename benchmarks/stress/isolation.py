"""A provider that never responds to 600 calls, beside a model that has nothing to do with it."""

from collections.abc import Iterator

import msgspec

from benchmarks.stress import figures, report
from benchmarks.stress.messages import Behaviour, Load, Stream
from benchmarks.stress.report import Row
from benchmarks.stress.session import Gateway, Session

STALLED = 600  # calls
RATE = 100.0  # requests per second to the healthy model
SERVICE = 0.05  # seconds
HEALTHY = ("b-0", "b-1")
SETTLED = 2.0  # seconds from the first to the last stalled call, and for what they cost to start


def measure(session: Session, quick: bool) -> Iterator[Row]:  # noqa: FBT001 - a `Measure`
    seconds = 1.5 if quick else 5.0
    session.upstream("a", Behaviour(outage="stall"))
    for name in (*HEALTHY, "direct"):
        session.upstream(name, Behaviour(service=SERVICE))
    for transport in ("http1", "httpx2"):
        yield from stall(session, transport, seconds)


def stall(session: Session, transport: str, seconds: float) -> Iterator[Row]:
    """Compare requests for B before and while A has the stalled calls."""
    begin = seconds + SETTLED
    config = Gateway(models={"a": ["a"], "b": HEALTHY}, transport=transport, deadline=30.0)
    with session.gateway(config) as gateway:
        ports = (gateway.port,)
        idle = Stream(name="idle", model="b", ports=ports, rate=RATE, end=seconds)
        beside = msgspec.structs.replace(idle, name="beside", begin=begin, end=begin + seconds)
        stalled = Stream(
            name="stalled",
            model="a",
            ports=ports,
            clients=STALLED,
            once=True,
            timeout=SETTLED + seconds + 0.5,
            begin=seconds,
            end=begin,
        )
        others = [
            msgspec.structs.replace(
                stream, name=f"direct {stream.name}", ports=session.ports_of(["direct"])
            )
            for stream in (idle, beside)
        ]
        load = session.load(idle, beside, stalled, *others)
    for part in (0.5, 0.99):
        ratio = growth(load, "", part)
        yield Row(
            case=f"isolation, {transport}: p{part * 100:g} of B, idle and beside",
            goal="<= 110% of idle",
            direct=both(load, "direct ", part),
            gateway=f"{both(load, '', part)} ({ratio:.0%})",
            met=ratio <= 1.1,
        )
    most = session.upstream("a", reset=True).most_at_once
    yield Row(case=f"isolation, {transport}: calls stalled at A", gateway=str(most))
    failed = figures.failures(figures.sent(load, "beside"))
    yield Row(
        case=f"isolation, {transport}: failures of B",
        goal="0",
        direct=figures.failures(figures.sent(load, "direct beside")) or "0",
        gateway=failed or "0",
        met=not failed,
    )


def growth(load: Load, way: str, part: float) -> float:
    idle, beside = (figures.sent(load, f"{way}{name}") for name in ("idle", "beside"))
    return figures.quantile(beside, part) / figures.quantile(idle, part)


def both(load: Load, way: str, part: float) -> str:
    records = (figures.sent(load, f"{way}{name}") for name in ("idle", "beside"))
    return ", ".join(f"{figures.quantile(of, part):.1f}" for of in records) + " ms"


if __name__ == "__main__":
    report.main({"isolation": measure})
