"""Failures of the gateway's own process: no file descriptors left, and a process that is stopped."""

import os
import signal
import time
from collections.abc import Iterator, Sequence

import msgspec

from benchmarks.stress import figures, report
from benchmarks.stress.messages import Behaviour, Load, Record, Stream
from benchmarks.stress.report import Row
from benchmarks.stress.session import Gateway, Session, sleep_until

OPEN_FILES = 256
BURST_CLIENTS = 150  # with one connection to the upstream each, more than the open files
BURST = 2.0  # seconds
SETTLED = 0.5  # seconds after its cause ends, until all requests must be answered
RATE = 20.0  # requests per second after the burst
SERVICE = 0.2  # seconds
DEADLINE = 2.0  # seconds; the stopped process misses it
STOPPED_RATE = 50.0  # requests per second while the process is stopped


def measure(session: Session, quick: bool) -> Iterator[Row]:  # noqa: FBT001 - a `Measure`
    yield from few_files(session, 1.5 if quick else 9.0)
    yield from stopped(session, 3.5 if quick else 4.0, 1.5 if quick else 6.0)


def few_files(session: Session, after: float) -> Iterator[Row]:
    """More clients than open files allow for, and some traffic afterwards."""
    for name in ("files", "files-direct"):
        session.upstream(name, Behaviour(service=SERVICE))
    with session.gateway(Gateway(models={"m": ["files"]}, open_files=OPEN_FILES)) as gateway:
        load = session.load(
            *burst("gateway", gateway.port, after),
            *burst("direct", session.ports["files-direct"], after),
        )
    during = figures.sent(load, "gateway burst")
    yield Row(
        case=f"ulimit -n {OPEN_FILES}, {BURST_CLIENTS} clients: failures",
        goal="503 + retry-after",
        direct=figures.failures(figures.sent(load, "direct burst")) or "0",
        gateway=figures.failures(during) or "0",
        met=are_announced(during),
    )
    yield from answered_after(load, f"ulimit -n {OPEN_FILES}", BURST + SETTLED)


def burst(way: str, port: int, after: float) -> Iterator[Stream]:
    first = Stream(
        name=f"{way} burst",
        model="m",
        ports=(port,),
        clients=BURST_CLIENTS,
        end=BURST,
        pause=SERVICE,
        connect_first=True,  # without files, the server could not even accept connections
    )
    yield first
    yield msgspec.structs.replace(
        first,
        name=way,
        clients=0,
        connect_first=False,
        rate=RATE,
        begin=BURST + SETTLED,
        end=BURST + SETTLED + after,
    )


def stopped(session: Session, pause: float, after: float) -> Iterator[Row]:
    """The process is stopped for longer than the deadline, so that all its timers are late."""
    for name in ("late", "late-direct"):
        session.upstream(name, Behaviour(service=SERVICE))
    with session.gateway(Gateway(models={"m": ["late"]}, deadline=DEADLINE)) as gateway:
        stream = Stream(
            name="gateway",
            model="m",
            ports=(gateway.port,),
            rate=STOPPED_RATE,
            end=1.5 + pause + after,
        )
        direct = msgspec.structs.replace(
            stream, name="direct", ports=session.ports_of(["late-direct"])
        )
        job = session.start(stream, direct)
        sleep_until(time.monotonic() + 1.5)
        os.kill(gateway.process.pid, signal.SIGSTOP)
        sleep_until(time.monotonic() + pause)
        os.kill(gateway.process.pid, signal.SIGCONT)
        resumed = time.monotonic()
        load = job.result()
    begin = resumed - load.started
    during = figures.sent(load, "gateway", end=begin)
    yield Row(
        case=f"process stopped for {pause:g} s: failures",
        goal="503 + retry-after",
        direct=figures.failures(figures.sent(load, "direct", end=begin)) or "0",
        gateway=figures.failures(during) or "0",
        met=are_announced(during),
    )
    yield from answered_after(load, f"process stopped for {pause:g} s", begin + SETTLED)


def are_announced(records: Sequence[Record]) -> bool:
    """Return whether each failure is a 503 with a Retry-After."""
    return all(record.status == 503 and record.retry_after for record in figures.refused(records))


def answered_after(load: Load, case: str, begin: float) -> Iterator[Row]:
    through, direct = (figures.sent(load, way, begin=begin) for way in ("gateway", "direct"))
    answered = figures.share(through)
    yield Row(
        case=f"{case}: answered from {SETTLED:g} s after",
        goal="100%",
        direct=figures.percent(figures.share(direct)),
        gateway=figures.percent(answered),
        met=answered == 1.0,
    )


if __name__ == "__main__":
    report.main({"own_trouble": measure})
