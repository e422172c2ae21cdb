"""Makes an environment for a library that must not be installed beside the others, or is large.

It is a virtual environment in the one of the tests, and is kept for later runs. It has the library
with its own dependencies; all else comes from the environment of the tests.
"""

import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.pages import ROOT

NOT_FOUND = ("No matching distribution found", "Could not find a version", "ResolutionImpossible")
"""What pip says if this machine cannot have a package."""


def python_with(extra: str, *others: str) -> Path:
    """Return a Python that has what ``extra`` installs, and ``others``; skip if it cannot have them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["optional-dependencies"][extra], *others]
    folder = Path(sys.prefix) / "libraries" / extra
    python = folder / "bin" / "python"
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != "\n".join(needed):
        _make(folder, python, needed)
        stamp.write_text("\n".join(needed))
    return python


def _make(folder: Path, python: Path, needed: Sequence[str]) -> None:
    run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], ROOT)
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *needed]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    if any(words in done.stderr for words in NOT_FOUND):
        pytest.skip(f"cannot be installed here: {' '.join(needed)}")
    assert done.returncode == 0, done.stderr
    # Only now, so that pip installs into the folder what the environment of the tests has too.
    packages = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], ROOT)
    (Path(packages.strip()) / "tests.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
