"""Four times the load that an upstream can serve, then half of it."""

from collections.abc import Iterator

import msgspec

from benchmarks.stress import figures, report
from benchmarks.stress.messages import Behaviour, Load, Stream
from benchmarks.stress.report import Row
from benchmarks.stress.session import Gateway, Session

WORKERS = 8
SERVICE = 0.1  # seconds
CAPACITY = WORKERS / SERVICE  # calls per second
PATIENCE = 1.0  # seconds that a request may take, for the gateway and for clients
BEFORE = 1.0  # seconds at half load, before the overload
RECOVERY = 2.0  # seconds after which the rest of an overload must be over

UPSTREAM = Behaviour(service=SERVICE, workers=WORKERS)
KINDS = {
    "queues": UPSTREAM,
    "slows down": msgspec.structs.replace(UPSTREAM, beyond="share"),
    "refuses with 429": msgspec.structs.replace(UPSTREAM, beyond="refuse", refuse_after=0.005),
    "refuses with 503": msgspec.structs.replace(
        UPSTREAM, beyond="refuse", refuse_with=503, refuse_after=0.005
    ),
}
QUICK = ("queues", "refuses with 429")


def measure(session: Session, quick: bool) -> Iterator[Row]:  # noqa: FBT001 - a `Measure`
    for number, (kind, behaviour) in enumerate(KINDS.items()):
        if quick and kind not in QUICK:
            continue
        yield from overload(session, f"overload{number}", kind, behaviour, 2.0 if quick else 6.0)


def overload(
    session: Session, name: str, kind: str, behaviour: Behaviour, seconds: float
) -> Iterator[Row]:
    session.upstream(name, behaviour)
    other = session.upstream(f"{name}-direct", behaviour).port
    with session.gateway(Gateway(models={"m": [name]}, deadline=PATIENCE)) as gateway:
        streams = [*phases("gateway", gateway.port, seconds), *phases("direct", other, seconds)]
        load = session.load(*streams)
    direct, through = (goodput(load, way, seconds) for way in ("direct", "gateway"))
    yield Row(
        case=f"overload, {kind}: goodput of the capacity",
        goal=">= 90%",
        direct=figures.percent(direct),
        gateway=figures.percent(through),
        met=through >= 0.9,
    )
    refused = figures.refused(figures.sent(load, "gateway during"))
    p99 = figures.quantile(refused, 0.99)
    announced = sum(bool(record.retry_after) for record in refused) / max(1, len(refused))
    yield Row(
        case=f"overload, {kind}: p99 of refusals, with retry-after",
        goal="<= 10 ms, 100%",
        direct=figures.ms(
            figures.quantile(figures.refused(figures.sent(load, "direct during")), 0.99)
        ),
        gateway=f"{figures.ms(p99)}, {announced:.0%}",
        met=p99 <= 10.0 and announced == 1.0,
    )
    direct, through = (
        figures.share(figures.sent(load, f"{way} after", begin=BEFORE + seconds + RECOVERY))
        for way in ("direct", "gateway")
    )
    yield Row(
        case=f"overload, {kind}: answered at half load, 2 s after",
        goal=">= 95%",
        direct=figures.percent(direct),
        gateway=figures.percent(through),
        met=through >= 0.95,
    )


def phases(way: str, port: int, seconds: float) -> Iterator[Stream]:
    """Half load, four times the capacity, and half load again."""
    base = Stream(name=way, model="m", ports=(port,), end=BEFORE, rate=CAPACITY / 2)
    base = msgspec.structs.replace(base, timeout=PATIENCE + 0.5 * (way == "gateway"))
    over = BEFORE + seconds
    yield base
    yield msgspec.structs.replace(
        base, name=f"{way} during", begin=BEFORE, end=over, rate=4 * CAPACITY
    )
    yield msgspec.structs.replace(base, name=f"{way} after", begin=over, end=over + RECOVERY + 1.5)


def goodput(load: Load, way: str, seconds: float) -> float:
    """Return the answers that came during the overload, as a share of the capacity."""
    records = [
        record
        for stream in (way, f"{way} during")
        for record in figures.ended(load, stream, BEFORE, BEFORE + seconds)
    ]
    return len(figures.answered(records)) / (CAPACITY * seconds)


if __name__ == "__main__":
    report.main({"overload": measure})
