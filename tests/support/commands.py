"""Runs a command in a process of its own, to its end or for as long as it serves."""

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
"""Seconds that a server may take to say where it listens."""

SERVE = ("-m", "uvicorn", "--host", "127.0.0.1", "--port", "0", "--no-access-log")
"""What ``python`` is told to serve; the app's name goes behind it."""

_RUNNING = re.compile(r"running on (http://127\.0\.0\.1:\d+)")


def run(words: Sequence[str | Path], cwd: Path, environ: Mapping[str, str] | None = None) -> str:
    """Run a command that must succeed, and give its output."""
    done = subprocess.run(  # noqa: S603 - our own words
        words,
        cwd=cwd,
        env={**os.environ, **(environ or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*words: str | Path, cwd: Path) -> str:
    """Run pip quietly."""
    return run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words], cwd)


@contextmanager
def serving(
    words: Sequence[str | Path],
    cwd: Path,
    environ: Mapping[str, str] | None = None,
    errors: Path | None = None,
) -> Iterator[str]:
    """Give the URL of a command that ends in uvicorn on a port of its own choice; ``errors`` keeps its standard error."""
    with tempfile.TemporaryFile("w+") if errors is None else errors.open("w+") as said:
        process = subprocess.Popen(  # noqa: S603 - our own words
            words,
            cwd=cwd,
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=said if errors is None else subprocess.DEVNULL,
            stderr=said,
        )
        try:
            yield _url(process, said.fileno())
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)


def _url(process: subprocess.Popen[bytes], said: int) -> str:
    until = time.monotonic() + PATIENCE
    while True:
        text = os.pread(said, 100_000, 0).decode(errors="replace")
        if found := _RUNNING.search(text):
            return found[1]
        assert process.poll() is None, text
        assert time.monotonic() < until, text
        time.sleep(0.05)
