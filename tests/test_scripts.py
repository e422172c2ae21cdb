"""What ``scripts/serve`` and ``scripts/install`` promise: they install once, and the next start is quick."""

import os
import resource
import shutil
import subprocess
import time

import httpx2
import pytest

from tests.support.commands import run, serving
from tests.support.cpu_time import slowness
from tests.support.documents import ROOT

SHIPPED = (
    "README.md",
    "LICENSE",
    "pyproject.toml",
    "pytest_embedroute.py",
    "embedroute",
    "example_app",
    "scripts",
)
"""What ``scripts/serve`` needs of the repository."""
LIBRARIES = "import fastapi, uvicorn, wordllama"
BYTECODE = {"PYTHONDONTWRITEBYTECODE": ""}


@pytest.fixture
def clone(tmp_path):
    """A copy of the repository without an environment."""
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    return tmp_path


def seconds_to_the_first_answer(clone, errors):
    began = time.monotonic()
    with serving([clone / "scripts/serve", "--port", "0"], clone, BYTECODE, errors) as url:
        answer = httpx2.post(
            f"{url}/ai/v1/embeddings",
            headers={"Authorization": "Bearer demo-key"},
            json={"model": "wordllama", "input": "some text"},
            timeout=120,
        )
        seconds = time.monotonic() - began
    assert answer.status_code == 200
    return seconds


def cpu_of_children():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.slow
@pytest.mark.uncounted
def test_the_second_start_of_serve_answers_within_3_seconds(clone, tmp_path):
    """On an idle core; on a busy one, nearly all of the time is that of importing the libraries."""
    run([clone / "scripts/install", "-e", ".[standard,fastapi]"], clone)
    seconds_to_the_first_answer(clone, tmp_path / "first.txt")

    before = cpu_of_children(), slowness()
    seconds = seconds_to_the_first_answer(clone, tmp_path / "second.txt")
    cpu = (cpu_of_children() - before[0]) * 2 / (before[1] + slowness())
    began = time.monotonic()
    run([clone / ".venv/bin/python", "-c", LIBRARIES], clone, BYTECODE)
    reference = time.monotonic() - began

    assert "Installing" not in (tmp_path / "second.txt").read_text()
    assert cpu <= 3.0
    assert seconds <= max(3.0, 4 * reference)


def test_without_a_python_the_installation_says_which_one_it_needs(clone):
    """Only the tools of the shell are found."""
    tools = clone / "bin"
    tools.mkdir()
    for name in ("sh", "dirname", "cat", "cksum", "tr"):
        (tools / name).symlink_to(shutil.which(name))
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3").chmod(0o755)

    ended = subprocess.run(  # noqa: S603 - our own script
        [clone / "scripts/install"],
        env={**os.environ, "PATH": str(tools), "PYTHON": "python3"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 1
    assert "Python 3.11 or later is required" in ended.stderr
