"""Processes under way: started on one core, asked for their CPU and memory, ended by their own id."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import places

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds


class DidNotStartError(Exception):
    """The process ended, or opened no port in time."""


class Server:
    """One process with the children it may have."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        core: int,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.port = name, port
        self.log = places.LOGS / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=places.ROOT,
                env=os.environ | (variables or {}),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        os.sched_setaffinity(self.process.pid, {core})

    def wait(self, seconds: float = 90.0) -> None:
        """Return when the port is open."""
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise DidNotStartError(places.last_words(self.log) or "it opened no port and said nothing")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def cpu(self) -> float:
        """Seconds of CPU so far, user and system, children and their dead included."""
        return sum(_ticks(pid) for pid in self._family()) * TICK

    def forget_peak(self) -> None:
        for pid in self._family():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak(self) -> float:
        """MiB of memory at its highest since `forget_peak`."""
        return sum(_high_water(pid) for pid in self._family()) / 1024

    def settle(self, seconds: float = 10.0) -> None:
        """Wait until the process is idle: what an ended load left behind must not count in the next."""
        until, before = time.monotonic() + seconds, -1.0
        while self.alive and time.monotonic() < until and self.cpu() - before > 2 * TICK:
            before = self.cpu()
            time.sleep(0.1)

    def _family(self) -> list[int]:
        return list(_with_children(self.process.pid)) if self.alive else []


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from _with_children(int(child))


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


def _high_water(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
