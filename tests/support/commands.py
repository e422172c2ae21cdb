"""Runs a command in a separate process, to its end or while it serves."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 60.0
"""Seconds that a server may take to print its address."""

SERVE = ("-m", "uvicorn", "--host", "127.0.0.1", "--port", "0", "--no-access-log")
"""Arguments of ``python`` to serve an app; append the name of the app."""

_RUNNING = re.compile(r"running on (https?://127\.0\.0\.1:\d+)")


def run(words: Sequence[str | Path], cwd: Path, environ: Mapping[str, str] | None = None) -> str:
    """Run a command that must succeed, and return its output."""
    completed = subprocess.run(  # noqa: S603 - fixed arguments
        words,
        cwd=cwd,
        env={**os.environ, **(environ or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


def pip(*words: str | Path, cwd: Path) -> str:
    """Run pip without its usual output."""
    return run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words], cwd)


@contextmanager
def serving(
    words: Sequence[str | Path],
    cwd: Path,
    environ: Mapping[str, str] | None = None,
    errors: Path | None = None,
) -> Iterator[str]:
    """Yield the URL of a command that runs uvicorn on a free port. ``errors`` stores its stderr."""
    with tempfile.TemporaryFile("w+") if errors is None else errors.open("w+") as output:
        process = subprocess.Popen(  # noqa: S603 - fixed arguments
            words,
            cwd=cwd,
            env={**os.environ, **counting_lines(), **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=output if errors is None else subprocess.DEVNULL,
            stderr=output,
        )
        try:
            yield _read_url(process, output.fileno())
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)


def counting_lines() -> dict[str, str]:
    """Return the variables with which coverage counts the lines of a process, if it counts any."""
    coverage = os.environ.get("TESTS_COVERAGE_PROCESS_CONFIG")
    return {} if coverage is None else {"COVERAGE_PROCESS_CONFIG": coverage}


def _read_url(process: subprocess.Popen[bytes], descriptor: int) -> str:
    deadline = time.monotonic() + PATIENCE
    while True:
        text = os.pread(descriptor, 100_000, 0).decode(errors="replace")
        if match := _RUNNING.search(text):
            return match[1]
        assert process.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
