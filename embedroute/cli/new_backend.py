"""``embedroute new-backend``: writes the package of a new backend, with a test that passes."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Final

from embedroute import plugins
from embedroute.cli.parser import Command
from embedroute.config import known_providers
from embedroute.errors import ConfigError

NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
"""The name of a backend: also a slug, and a part of the names of a package and a module."""

PYPROJECT: Final = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "embedroute-$name"
version = "0.1.0"
description = "$title's embeddings as an embedroute backend."
requires-python = ">=3.11"
dependencies = ["embedroute"]

[dependency-groups]
test = ["pytest>=8"]

[project.entry-points."embedroute.backends"]
$name = "$module:$title"

[tool.hatch.build.targets.wheel]
only-include = ["$module.py"]
"""

HTTP: Final = '''\
"""$title's embeddings API as an embedroute backend."""

from embedroute.backend import (
    Accepts,
    Batch,
    HTTPBackend,
    Secret,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
)


class $title(HTTPBackend, frozen=True):
    """POST /embed, at most 96 texts per call. Name the API's reference here."""

    api_key: Secret
    base_url: str = "https://api.$name.example/v1"

    accepts = Accepts(max_inputs=96, dimensions=True)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request. Fields whose value is None are left out."""
        body = {"model": batch.model, "texts": batch.texts, "size": batch.dimensions}
        return UpstreamRequest.json(f"{self.base_url}/embed", body, bearer=self.api_key)

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors, in the order of the inputs, and the number of tokens."""
        body = response.json()
        rows = sorted(body["data"], key=lambda row: row["index"])
        return Vectors.from_lists([row["vector"] for row in rows], prompt_tokens=body["tokens"])
'''

HTTP_TEST: Final = '''\
"""Tests the backend without a network."""

from embedroute.backend import Batch, Secret
from $module import $title


def reply(batch: Batch) -> dict[str, object]:
    """Return what the API returns for a batch: one vector for each text."""
    rows = [
        {"index": index, "vector": [float(len(text)), 1.0]}
        for index, text in enumerate(batch.texts)
    ]
    return {"data": rows, "tokens": 3}


def test_the_backend_keeps_the_contract(check_backend):
    # Pass the fields of your class: without api_key there, drop it here, and the import of Secret.
    check_backend($title(api_key=Secret("k")), reply=reply)
'''

LOCAL: Final = '''\
"""$title's model as an embedroute backend."""

from embedroute.backend import Accepts, Batch, LocalBackend, Vectors


class $title(LocalBackend, frozen=True):
    """A model in this process. This one counts letters; load yours instead."""

    alphabet: str = "etaoinshrdlu"

    accepts = Accepts()

    def load(self) -> str:
        """Load the model, in a worker thread, when it is used for the first time."""
        return self.alphabet

    def run(self, model: str, batch: Batch) -> Vectors:
        """Embed texts with the loaded model, in a worker thread."""
        rows = [[1.0 + text.count(letter) for letter in model] for text in batch.texts]
        return Vectors.from_lists(rows)
'''

LOCAL_TEST: Final = '''\
"""Tests the backend."""

from $module import $title


def test_the_backend_keeps_the_contract(check_backend):
    check_backend($title())
'''


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="what configs write: [providers.NAME]")
    parser.add_argument(
        "--local", action="store_true", help="a model in the process, and not an HTTP API"
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="where to make embedroute-NAME (default: the current directory)",
    )


def run(options: argparse.Namespace) -> int:
    """Write the package, and print what to do next.

    Raises:
        ConfigError: the name cannot be used, or the package exists.
    """
    name: str = options.name
    _check_name(name)
    package: Path = options.directory / f"embedroute-{name}"
    if package.exists():
        raise ConfigError([f"{package} exists. Choose another name or --directory."])
    package.mkdir(parents=True)
    for path, text in write_package(name, local=options.local).items():
        (package / path).write_text(text, encoding="utf-8")
        print(package / path)
    print(f"Next: cd {package} && pip install -e . pytest && pytest")
    return 0


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(
            [f"{name!r} is not a name: use lower-case letters, digits and single hyphens."]
        )
    if name in plugins.BUILT_IN or name in known_providers():
        # A config that names this provider uses the shipped backend (see plugins).
        raise ConfigError([f'embedroute ships a provider named "{name}". Choose another name.'])


def write_package(name: str, *, local: bool) -> Mapping[str, str]:
    """Return file name → content of the package for the backend ``name``."""
    module = f"embedroute_{name.replace('-', '_')}"
    words = {
        "name": name,
        "module": module,
        "title": "".join(word.capitalize() for word in name.split("-")),
    }
    files = {
        "pyproject.toml": PYPROJECT,
        f"{module}.py": LOCAL if local else HTTP,
        f"test_{module}.py": LOCAL_TEST if local else HTTP_TEST,
    }
    return {path: Template(text).substitute(words) for path, text in files.items()}


COMMAND: Final = Command(
    name="new-backend",
    help="write the package of a new backend, with a test that passes",
    run=run,
    add_options=_add_options,
)
