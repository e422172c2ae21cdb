"""Tests that docs/configuration.md lists the options of the backends that it describes."""

import re
from pathlib import Path

import msgspec
import pytest

from embedroute import plugins

PAGE = Path("docs/configuration.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([a-z-]+)` \| `([a-z_]+)` \| (.+?) \| .+ \|$", PAGE, re.MULTILINE)
BACKENDS = sorted({backend for backend, _, _ in ROWS if backend in plugins.BUILT_IN})


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_options_of_a_backend_are_documented_with_their_defaults(backend):
    documented = {option: default for name, option, default in ROWS if name == backend}
    options = {
        field.name: None if field.required else field.default
        for field in msgspec.structs.fields(plugins.load(backend))
        if field.name not in {"api_key", "base_url"}
    }

    assert documented == {name: write(default) for name, default in options.items()}


def write(default):
    if default is None or default == "":
        return "\N{EN DASH}"
    if default is msgspec.NODEFAULT:  # a table, which has a factory
        return "`{}`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`"
