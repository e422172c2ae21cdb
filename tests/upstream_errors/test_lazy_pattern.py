"""The regular expressions of the package are compiled when they are needed, and not on import."""

import sys
from pathlib import Path

from tests.support.commands import run

ROOT = Path(__file__).parents[2]

SCRIPT = """
import anyio

from embedroute import Config, Gateway
from embedroute.upstream_errors import classify_response, compile_patterns

if {classify}:
    classify_response(429, {{}}, b"{{}}")
if {open}:
    async def open_gateway():
        async with Gateway(Config(gateway={{"auth": "open"}}), environ={{}}).lifespan():
            pass
    anyio.run(open_gateway)
print(len(list(compile_patterns())))
"""
"""Prints how many expressions were not compiled yet."""


def count_remaining(**steps):
    script = SCRIPT.format(**{"classify": False, "open": False} | steps)
    return int(run([sys.executable, "-c", script], ROOT))


def test_the_lifespan_compiles_what_the_import_has_not():
    assert 40 < count_remaining()
    assert 0 == count_remaining(open=True)


def test_an_expression_is_compiled_once():
    assert 0 < count_remaining(classify=True) < count_remaining()
