"""What has to be installed first: each peer in a place of its own, installed again only when what it is made of changed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from benchmarks import places

PORTKEY = {
    "private": True,
    "dependencies": {"@portkey-ai/gateway": "1.15.2"},
    "overrides": {
        "@hono/node-server": "1.13.8",
        "hono": "4.9.7",
    },  # the versions its own ranges let in do not start
}
TOOLS = {"wrk": "wrk", "nginx": "nginx-light"}  # command → Debian package


class NotInstalledError(Exception):
    """Says which step failed and how its output ended."""


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """A folder below `.work` and what pip, or npm if None, puts there."""

    name: str
    folder: str
    packages: tuple[str, ...] | None = None


ENVIRONMENTS = (
    Environment(name="embedroute", folder="venv", packages=("-e", ".[standard]")),
    Environment(
        name="litellm",
        folder="litellm",
        packages=("litellm[proxy]==1.106.2", "uvloop", "httptools"),
    ),
    Environment(name="portkey", folder="portkey"),
)


def prepare(names: Iterable[str]) -> dict[str, str]:
    """Install what is missing of the named environments; returns environment → why it is not there."""
    missing: dict[str, str] = {}
    for environment in ENVIRONMENTS:
        if environment.name in names:
            try:
                _install(environment)
            except (NotInstalledError, OSError) as failure:
                missing[environment.name] = str(failure)
    return missing


def prepare_tools() -> None:
    """wrk and nginx, without which there is nothing to measure."""
    for folder in (places.RUN, places.LOGS, places.ANSWERS):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    wanted = [package for command, package in TOOLS.items() if not shutil.which(command)]
    if wanted:
        root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        _run("apt", [*root, "apt-get", "update", "-q"])
        _run("apt", [*root, "apt-get", "install", "-yq", "--no-install-recommends", *wanted])


def _install(environment: Environment) -> None:
    folder = places.WORK / environment.folder
    stamp = folder / f".{environment.name}"
    made_of = _made_of(environment)
    if stamp.exists() and stamp.read_text() == made_of:
        return
    print(f"installing {environment.name} …", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    if environment.packages is None:
        (folder / "package.json").write_text(json.dumps(PORTKEY))
        _run(
            environment.name, ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder)]
        )
    else:
        _pip(environment.name, folder, environment.packages)
    stamp.write_text(made_of)


def _made_of(environment: Environment) -> str:
    if environment.packages is None:
        return json.dumps(PORTKEY)
    ours = (places.ROOT / "pyproject.toml").read_text() if "-e" in environment.packages else ""
    return " ".join(environment.packages) + "\n" + ours


def _pip(name: str, folder: Path, packages: Sequence[str]) -> None:
    python = places.python(folder.name)
    if not Path(python).exists():
        _run(name, [sys.executable, "-m", "venv", str(folder)])
    _run(
        name, [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    )


def _run(name: str, command: Sequence[str]) -> None:
    log = places.LOGS / f"install-{name}.log"
    with log.open("wb") as out:
        ended = subprocess.run(
            command, cwd=places.ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL, check=False
        )
    if ended.returncode:
        raise NotInstalledError(f"{Path(command[0]).name} failed: {places.last_words(log)}")
