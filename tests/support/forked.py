"""Runs Python code in processes that are forked after the imports, so that each starts at once.

A forked process has its own directory, environment and module path, and writes all output to a file.
"""

import multiprocessing
import os
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import uvicorn

import embedroute.cli

LONGEST_START = 60.0
"""Seconds that a server may take to print its address, or to stop."""

_RUNNING = re.compile(r"running on (http://127\.0\.0\.1:\d+)")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.preloaded"])


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where code runs. ``path`` holds further directories of modules."""

    directory: Path
    environ: Mapping[str, str]
    path: Sequence[Path]


def run_code(code: str) -> None:
    """Run Python code as a script."""
    exec(compile(code, "<page>", "exec"), {"__name__": "__main__"})  # noqa: S102 - of our own pages


def run_file(name: str) -> None:
    """Run a Python file as a script."""
    runpy.run_path(name, run_name="__main__")


def run_tests(name: str) -> None:
    """Run the tests of a file."""
    sys.exit(
        pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", ".", "-c", os.devnull, name])
    )


def run_embedroute(words: Sequence[str]) -> None:
    """Run a command of ``embedroute``."""
    sys.exit(embedroute.cli.main(words))


def run_uvicorn(words: Sequence[str]) -> None:
    """Run uvicorn."""
    uvicorn.main(words)


def run_to_end(place: Place, function: Callable[..., None], *arguments: object) -> tuple[int, str]:
    """Call a function in a process; return the exit status and the output."""
    output, process = _start(place, function, *arguments)
    process.join()
    return process.exitcode or 0, output.read_text(encoding="utf-8")


@contextmanager
def serving_in(place: Place, function: Callable[..., None], *arguments: object) -> Iterator[str]:
    """Yield the URL of a function that runs uvicorn on a free port of 127.0.0.1."""
    output, process = _start(place, function, *arguments)
    try:
        deadline = time.monotonic() + LONGEST_START
        while not (found := _RUNNING.search(text := output.read_text(encoding="utf-8"))):
            assert process.is_alive(), text
            assert time.monotonic() < deadline, text
            time.sleep(0.02)
        yield found[1]
    finally:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGINT)
        process.join(LONGEST_START)


def _start(
    place: Place, function: Callable[..., None], *arguments: object
) -> tuple[Path, multiprocessing.process.BaseProcess]:
    output = place.directory / f".output-{time.monotonic_ns()}"
    output.touch()
    process = _context.Process(target=_enter, args=(place, output, function, arguments))
    process.start()
    return output, process


def _enter(
    place: Place, output: Path, function: Callable[..., None], arguments: Sequence[object]
) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(place.directory)
    os.environ.update(place.environ)
    sys.path[:0] = [str(place.directory), *map(str, place.path)]
    function(*arguments)
