"""What the figures were taken on: the machine and the versions, nothing that names it."""

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks import places

PACKAGES = {
    "venv": (
        "embedroute",
        "starlette",
        "uvicorn",
        "uvloop",
        "httptools",
        "httpx2",
        "aiohttp",
        "pyreqwest",
        "msgspec",
        "numpy",
        "orjson",
    ),
    "litellm": ("litellm",),
}
COMMANDS = {"nginx": ("nginx", "-v"), "wrk": ("wrk", "-v"), "node": ("node", "--version")}
ASK = """
import importlib.metadata as installed, sys
for name in sys.argv[1:]:
    for distribution in installed.distributions(name=name):
        print(name, distribution.version)
"""


def described() -> list[str]:
    """Lines of Markdown."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    release = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    cores = len(os.sched_getaffinity(0))
    return [
        f"Machine: {_processor()}, {cores} cores, {memory:.0f} GiB; {release}, Linux {platform.release().split('-')[0]}.",
        f"Versions: Python {platform.python_version()}; {', '.join(_versions())}; embedroute at commit {_commit()}.",
    ]


def _versions() -> list[str]:
    found = [
        line for environment, names in PACKAGES.items() for line in _installed(environment, names)
    ]
    found += [f"{name} {_said(command)}" for name, command in COMMANDS.items()]
    portkey = places.WORK / "portkey/node_modules/@portkey-ai/gateway/package.json"
    return [*found, f"Portkey gateway {_field(portkey, 'version')}"] if portkey.exists() else found


def _installed(environment: str, names: Sequence[str]) -> list[str]:
    python = places.python(environment)
    return _output([python, "-c", ASK, *names]).splitlines() if Path(python).exists() else []


def _said(command: Sequence[str]) -> str:
    words = _output(command).split("\n")[0].replace("nginx version: nginx/", "").split()
    return next(
        (word.lstrip("v") for word in words if any(letter.isdigit() for letter in word)), "unknown"
    )


def _field(file: Path, name: str) -> str:
    lines = (line.strip().strip(",") for line in file.read_text().splitlines())
    return next(line.split('"')[3] for line in lines if line.startswith(f'"{name}"'))


def _commit() -> str:
    changed = (
        " with changes"
        if _output(["git", "status", "--porcelain", "--", "embedroute"]).strip()
        else ""
    )
    return (_output(["git", "rev-parse", "--short", "HEAD"]).strip() or "unknown") + changed


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _output(command: Sequence[str]) -> str:
    try:
        ended = subprocess.run(
            command,
            cwd=places.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return ended.stdout
