"""Upstreams that fail some of their calls, or all of them for some time."""

import math
import time
from collections.abc import Iterator, Sequence

import msgspec

from benchmarks.stress import figures, report
from benchmarks.stress.messages import Behaviour, Record, Stream
from benchmarks.stress.report import Row
from benchmarks.stress.session import Gateway, Session, sleep_until

RATE = 300.0  # requests per second
SERVICE = 0.01  # seconds
DEADLINE = 5.0  # seconds
WARM = 1.0  # seconds until the outages begin


class Failing(msgspec.Struct, frozen=True):
    """Upstreams that fail the given shares of their calls; `goal` is the share to be answered."""

    name: str
    shares: tuple[float, ...]
    goal: float
    statuses: tuple[int, ...] = (503,)


FAILING = (
    Failing("two at 40 %", (0.4, 0.4), 0.99),
    Failing("one at 50 %", (0.5,), 0.93),
    Failing("one at 30 %", (0.3,), 0.99),
    Failing("two at 40 %, 500/503/reset", (0.4, 0.4), 0.99, (500, 503, 0)),
)


class Outage(msgspec.Struct, frozen=True):
    kind: str
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.seconds:g}"


def measure(session: Session, quick: bool) -> Iterator[Row]:  # noqa: FBT001 - a `Measure`
    for number, case in enumerate(FAILING[:2] if quick else FAILING):
        yield from fail_some(session, f"failing{number}", case, 2.0 if quick else 7.0)
    yield from keep_share(session, 2.0 if quick else 5.0)
    for kind in ("503",) if quick else ("refuse", "503"):
        yield from fail_all(session, kind, 2.5 if quick else 5.0)
    yield from recover(session, (1.0, 2.0) if quick else (1.0, 10.0, 40.0), 3.5 if quick else 5.0)


def create(session: Session, prefix: str, behaviours: Sequence[Behaviour]) -> list[str]:
    """Create upstreams and return their names."""
    names = [f"{prefix}-{number}" for number in range(len(behaviours))]
    for name, behaviour in zip(names, behaviours, strict=True):
        session.upstream(name, behaviour)
    return names


def fail_some(session: Session, prefix: str, case: Failing, seconds: float) -> Iterator[Row]:
    """Send the same traffic directly, with retries and through a gateway, at the same time."""
    behaviours = [
        Behaviour(service=SERVICE, fail=part, statuses=case.statuses) for part in case.shares
    ]
    names = create(session, prefix, behaviours)
    others = session.ports_of(create(session, f"{prefix}-direct", behaviours))
    with session.gateway(Gateway(models={"m": names}, deadline=DEADLINE)) as gateway:
        base = Stream(name="gateway", model="m", ports=(gateway.port,), rate=RATE, end=seconds)
        direct = msgspec.structs.replace(base, name="direct", ports=others)
        retried = msgspec.structs.replace(direct, name="retried", retries=3)
        load = session.load(base, direct, retried)
    through = figures.sent(load, "gateway")
    without = figures.sent(load, "direct")
    with_retries = figures.sent(load, "retried")
    calls = session.calls(names) / len(through)
    answered = figures.share(through)
    yield Row(
        case=f"brown-out, {case.name}: answered",
        goal=f">= {case.goal:.0%}",
        direct=figures.percent(figures.share(without)),
        retried=figures.percent(figures.share(with_retries)),
        gateway=figures.percent(answered),
        met=answered >= case.goal,
    )
    yield Row(
        case=f"brown-out, {case.name}: calls/request, p99",
        direct=f"1.00, {p99(without)}",
        retried=f"{figures.tries(with_retries):.2f}, {p99(with_retries)}",
        gateway=f"{calls:.2f}, {p99(through)}",
    )


def p99(records: Sequence[Record]) -> str:
    return figures.ms(figures.quantile(records, 0.99))


def keep_share(session: Session, seconds: float) -> Iterator[Row]:
    """Of two equal endpoints, the first fails sometimes, as often as the other, or just once."""
    healthy = Behaviour(service=SERVICE)
    sometimes = Behaviour(service=SERVICE, fail=0.1)
    once = Behaviour(service=SERVICE, fail_next=1)
    cases = {
        "one of two fails 10 %": create(session, "one-fails", [sometimes, healthy]),
        "two fail 10 %": create(session, "two-fail", [sometimes, sometimes]),
        "one of two failed once": create(session, "failed-once", [once, healthy]),
    }
    with session.gateway(Gateway(models=cases, deadline=DEADLINE)) as gateway:
        session.load(
            *(
                Stream(name=case, model=case, ports=(gateway.port,), rate=RATE / 2, end=seconds)
                for case in cases
            )
        )
    for case, names in cases.items():
        calls = [session.calls([name]) for name in names]
        least = min(calls) / sum(calls)
        yield Row(
            case=f"{case}: smaller share of the calls",
            goal=">= 40%",
            direct="50.0%",
            gateway=figures.percent(least),
            met=least >= 0.4,
        )


def fail_all(session: Session, kind: str, seconds: float) -> Iterator[Row]:
    """Both upstreams are out, from the first second until the end."""
    names = create(session, f"out-{kind}", [Behaviour(service=SERVICE)] * 2)
    (other,) = create(session, f"out-{kind}-direct", [Behaviour(service=SERVICE, outage=kind)])
    with session.gateway(Gateway(models={"m": names}, deadline=DEADLINE)) as gateway:
        stream = Stream(name="gateway", model="m", ports=(gateway.port,), rate=RATE, end=1.0)
        session.load(stream)
        for name in names:
            session.upstream(name, Behaviour(outage=kind), reset=True)
        stream = msgspec.structs.replace(stream, end=seconds)
        direct = Stream(
            name="direct", model="m", ports=session.ports_of([other]), rate=RATE, end=1.0
        )
        load = session.load(stream, direct)
    if kind == "503":
        calls = session.calls(names) / len(figures.sent(load, "gateway"))
        yield Row(
            case="full outage (503): calls per request",
            goal="<= 1.25",
            direct="1.00",
            retried="4.00",
            gateway=f"{calls:.2f}",
            met=calls <= 1.25,
        )
    late = figures.quantile(figures.sent(load, "gateway", begin=1.0), 0.99)
    yield Row(
        case=f"full outage ({kind}): p99 of failing, after 1 s",
        goal="<= 20 ms",
        direct=p99(figures.sent(load, "direct")),
        gateway=figures.ms(late),
        met=late <= 20.0,
    )


def recover(session: Session, durations: Sequence[float], after: float) -> Iterator[Row]:
    """Several outages at the same time, each of a model of its own with two upstreams."""
    outages = [Outage(kind, length) for length in durations for kind in ("refuse", "503", "stall")]
    members = {
        outage.name: create(session, outage.name, [Behaviour(service=SERVICE)] * 2)
        for outage in outages
    }
    with session.gateway(Gateway(models=members, deadline=DEADLINE)) as gateway:
        streams = recovery_streams(session, gateway.port, members, outages, after)
        job = session.start(*streams)
        begun = time.monotonic() + WARM
        sleep_until(begun)
        for outage in outages:
            for name in members[outage.name]:
                session.upstream(name, Behaviour(service=SERVICE, outage=outage.kind))
        ends: dict[str, float] = {}
        for outage in sorted(outages, key=lambda outage: outage.seconds):
            sleep_until(begun + outage.seconds)
            for name in members[outage.name]:
                session.upstream(name, Behaviour(service=SERVICE))
            ends[outage.name] = time.monotonic()
        load = job.result()
    for outage in outages:
        direct, through = (
            first_answer(figures.sent(load, f"{kind} {outage.name}"), ends[outage.name])
            for kind in ("direct", "gateway")
        )
        yield Row(
            case=f"outage of {outage.seconds:g} s ({outage.kind}): first 200 after its end",
            goal="<= 2 s",
            direct=seconds_text(direct),
            gateway=seconds_text(through),
            met=through <= 2.0,
        )


def recovery_streams(
    session: Session,
    port: int,
    members: dict[str, list[str]],
    outages: Sequence[Outage],
    after: float,
) -> Iterator[Stream]:
    for outage in outages:
        upstreams = session.ports_of(members[outage.name])
        end = WARM + outage.seconds + after
        for kind, ports in (("direct", upstreams), ("gateway", (port,))):
            yield Stream(
                name=f"{kind} {outage.name}",
                model=outage.name,
                ports=ports,
                rate=10.0,
                end=end,
                timeout=DEADLINE + 1.0,
            )


def first_answer(records: Sequence[Record], after: float) -> float:
    """Return the seconds from the end of an outage until the first 200; infinite without one."""
    ends = (record.ended - after for record in figures.answered(records) if record.ended > after)
    return min(ends, default=math.inf)


def seconds_text(seconds: float) -> str:
    return "none" if math.isinf(seconds) else f"{seconds:.2f} s"


if __name__ == "__main__":
    report.main({"brown_out": measure})
