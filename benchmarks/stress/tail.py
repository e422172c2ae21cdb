"""Single calls that take two seconds more, and an endpoint that stops to respond."""

import time
from collections.abc import Iterator

import msgspec

from benchmarks.stress import figures, optional_keys, report
from benchmarks.stress.messages import Behaviour, Record, Stream
from benchmarks.stress.report import Row
from benchmarks.stress.session import Gateway, Session, sleep_until

RATE = 150.0  # requests per second
SERVICE = 0.01  # seconds
SLOW = Behaviour(service=SERVICE, slow=0.03, slow_seconds=2.0)
DEADLINE = 8.0  # seconds
WARM = 1.0  # seconds until an endpoint stalls
ATTEMPT = 2500.0  # ms: one attempt of at least 2 s, and the answer of the other endpoint


def measure(session: Session, quick: bool) -> Iterator[Row]:  # noqa: FBT001 - a `Measure`
    yield from slow_calls(session, 2.0 if quick else 12.0)
    yield from stalled_endpoint(session, 1.5 if quick else 5.0)


def slow_calls(session: Session, seconds: float) -> Iterator[Row]:
    """Three calls in a hundred take two seconds more: without and with hedging."""
    without, calls, direct = slow_run(session, "slow", "", seconds)
    unhedged = figures.quantile(without, 0.999)
    yield Row(
        case="3 % of calls + 2 s: p99.9, calls per request",
        direct=f"{figures.ms(figures.quantile(direct, 0.999))}, 1.00",
        gateway=f"{figures.ms(unhedged)}, {calls:.3f}",
    )
    if not optional_keys.knows_hedging():
        yield Row(case="3 % of calls + 2 s, hedged", gateway="skipped: no such setting yet")
        return
    hedged, calls, direct = slow_run(session, "hedged", optional_keys.HEDGING, seconds)
    p999 = figures.quantile(hedged, 0.999)
    yield Row(
        case="3 % of calls + 2 s, hedged: p99.9, calls per request",
        goal=f"<= {0.25 * unhedged:.0f} ms, <= 1.05",
        direct=f"{figures.ms(figures.quantile(direct, 0.999))}, 1.00",
        gateway=f"{figures.ms(p999)}, {calls:.3f}",
        met=p999 <= 0.25 * unhedged and calls <= 1.05,
    )


def slow_run(
    session: Session, prefix: str, model: str, seconds: float
) -> tuple[list[Record], float, list[Record]]:
    """Return the records through the gateway, the calls per request, and the direct records."""
    names = [f"{prefix}-{number}" for number in range(2)]
    others = [f"{name}-direct" for name in names]
    for name in (*names, *others):
        session.upstream(name, SLOW)
    with session.gateway(Gateway(models={"m": names}, deadline=DEADLINE, model=model)) as gateway:
        stream = Stream(name="gateway", model="m", ports=(gateway.port,), rate=RATE, end=seconds)
        direct = msgspec.structs.replace(stream, name="direct", ports=session.ports_of(others))
        load = session.load(stream, direct)
    records = figures.sent(load, "gateway")
    return records, session.calls(names) / len(records), figures.sent(load, "direct")


def stalled_endpoint(session: Session, seconds: float) -> Iterator[Row]:
    """One of two endpoints stalls after a second of traffic, and stays so."""
    names = ["stalls", "responds"]
    for name in names:
        session.upstream(name, Behaviour(service=SERVICE))
    with session.gateway(Gateway(models={"m": names}, deadline=DEADLINE)) as gateway:
        stream = Stream(
            name="gateway",
            model="m",
            ports=(gateway.port,),
            rate=RATE / 3,
            end=WARM + seconds,
            timeout=DEADLINE + 1.0,
        )
        direct = msgspec.structs.replace(
            stream, name="direct", ports=session.ports_of(names), timeout=5.0
        )
        job = session.start(stream, direct)
        sleep_until(time.monotonic() + WARM)
        session.upstream("stalls", Behaviour(outage="stall"))
        load = job.result()
    through, without = (figures.sent(load, way) for way in ("gateway", "direct"))
    slowest = figures.quantile(through, 1.0)
    yield Row(
        case="one of two endpoints stalls: slowest request",
        goal=f"<= {ATTEMPT:.0f} ms",
        direct="never answered",
        gateway=figures.ms(slowest),
        met=slowest <= ATTEMPT,
    )
    answered = figures.share(through)
    yield Row(
        case="one of two endpoints stalls: answered",
        goal=">= 99%",
        direct=figures.percent(figures.share(without)),
        gateway=figures.percent(answered),
        met=answered >= 0.99,
    )


if __name__ == "__main__":
    report.main({"tail": measure})
