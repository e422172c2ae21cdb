"""Where things are: folders of a run, free ports and the two cores."""

import os
import socket
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
WORK = HERE / ".work"
RUN = WORK / "run"
LOGS = WORK / "logs"
ANSWERS = WORK / "www"

_cores = sorted(os.sched_getaffinity(0))
SYSTEM_CORE, LOAD_CORE = _cores[0], _cores[-1]  # the same one where there is but one


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def python(environment: str) -> str:
    return str(WORK / environment / "bin" / "python")


def last_words(log: Path) -> str:
    """Return why the process of a log ended, on one line and without this machine's folders: its last lines about an error."""
    lines = (
        [line.strip() for line in log.read_text(errors="replace").splitlines()]
        if log.exists()
        else []
    )
    errors = [line for line in lines if "Error" in line or line.lower().startswith("error")]
    return " / ".join((errors or lines)[-2:]).replace(str(ROOT), ".")[-400:]


def pin(process: int, core: int) -> None:
    os.sched_setaffinity(process, {core})
