"""Finds out from the tests themselves how each backend is tested."""

import re
from pathlib import Path

from embedroute.plugins import BUILT_IN
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


def find_kinds() -> dict[str, set[str]]:
    """Return kind of test → the backends that have such tests."""
    return {"golden": _golden(), "server": _server(), "client": _client()}
