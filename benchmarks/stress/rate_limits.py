"""Upstreams that serve 8 calls at once and answer 429 above."""

import math
import time
from collections.abc import Iterator, Sequence

import msgspec

from benchmarks.stress import figures, report
from benchmarks.stress.messages import Behaviour, Counts, Record, Stream
from benchmarks.stress.report import Row
from benchmarks.stress.session import Gateway, Session, sleep_until

WORKERS = 8
SERVICE = 0.2  # seconds, so that an upstream serves 40 calls per second
LIMITED = Behaviour(service=SERVICE, workers=WORKERS, beyond="refuse", refuse_after=0.02)
PAUSE = 0.1  # seconds that a client waits after a refusal
MOST = 10  # calls at once after the limit is known: 8, and a few that try whether it has changed
LEARNED = 2.0  # seconds after which the gateway should know the limit


class Case(msgspec.Struct, frozen=True):
    name: str
    upstreams: int
    retry_after: str = ""


CASES = (
    Case("one upstream", 1),
    Case("two upstreams", 2),
    Case("one upstream, retry-after: 1", 1, "1"),
)


def measure(session: Session, quick: bool) -> Iterator[Row]:  # noqa: FBT001 - a `Measure`
    for number, case in enumerate(CASES[:2] if quick else CASES):
        yield from limit(session, f"limited{number}", case, 3.5 if quick else 10.0)


def limit(session: Session, prefix: str, case: Case, seconds: float) -> Iterator[Row]:
    """Send from three clients for each call that can be served; compare after the first seconds."""
    behaviour = msgspec.structs.replace(LIMITED, retry_after=case.retry_after)
    names = [f"{prefix}-{number}" for number in range(case.upstreams)]
    others = [f"{name}-direct" for name in names]
    for name in (*names, *others):
        session.upstream(name, behaviour)
    with session.gateway(Gateway(models={"m": names})) as gateway:
        through = Stream(
            name="gateway",
            model="m",
            ports=(gateway.port,),
            clients=3 * WORKERS * case.upstreams,
            end=seconds,
            pause=PAUSE,
        )
        direct = msgspec.structs.replace(through, name="direct", ports=session.ports_of(others))
        job = session.start(through, direct)
        sleep_until(time.monotonic() + LEARNED)
        for name in (*names, *others):
            session.upstream(name, reset=True)
        load = job.result()
    rate, direct_rate = (
        len(figures.answered(figures.ended(load, stream, LEARNED, seconds))) / (seconds - LEARNED)
        for stream in ("gateway", "direct")
    )
    yield Row(
        case=f"429, {case.name}: answered per second",
        goal=">= 95% of direct",
        direct=f"{direct_rate:.1f}",
        gateway=f"{rate:.1f} ({rate / direct_rate:.0%})",
        met=rate >= 0.95 * direct_rate,
    )
    seen = [session.upstream(name) for name in names]
    direct_seen = [session.upstream(name) for name in others]
    calls = calls_per_answer(seen)
    yield Row(
        case=f"429, {case.name}: calls per answer",
        goal="<= 1.25",
        direct=f"{calls_per_answer(direct_seen):.2f}",
        gateway=f"{calls:.2f}",
        met=calls <= 1.25,
    )
    most = max(counts.most_at_once for counts in seen)
    burst = max(counts.burst for counts in seen)
    yield Row(
        case=f"429, {case.name}: most calls at once, in 250 ms",
        goal=f"<= {MOST}, -",
        direct=f"{max(counts.most_at_once for counts in direct_seen)}, "
        f"{max(counts.burst for counts in direct_seen)}",
        gateway=f"{most}, {burst}",
        met=most <= MOST,
    )
    records = figures.sent(load, "gateway")
    yield Row(
        case=f"429, {case.name}: requests refused, p99",
        direct=failed_and_p99(figures.sent(load, "direct")),
        gateway=failed_and_p99(records),
    )


def calls_per_answer(seen: Sequence[Counts]) -> float:
    answers = sum(counts.answered for counts in seen)
    return sum(counts.calls for counts in seen) / answers if answers else math.inf


def failed_and_p99(records: Sequence[Record]) -> str:
    return f"{1 - figures.share(records):.0%}, {figures.ms(figures.quantile(records, 0.99))}"


if __name__ == "__main__":
    report.main({"rate_limits": measure})
