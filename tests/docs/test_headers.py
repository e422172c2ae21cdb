"""The reference of the headers lists every header that the code reads or sends, and no others."""

import ast
import re

import pytest
from starlette.responses import PlainTextResponse

from embedroute.server import allow_origins
from tests.support.asgi_client import call
from tests.support.documents import ROOT
from tests.support.tables import names, section

HEADERS = ROOT / "docs" / "headers.md"
SOURCES = [
    *sorted((ROOT / "embedroute" / "server").rglob("*.py")),
    ROOT / "embedroute" / "limits" / "rates.py",
    ROOT / "embedroute" / "uvicorn.py",
]
"""The modules that read requests or write responses."""
NODES = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text("utf-8")))]
UNITS = ("requests", "tokens")
"""How the names of the headers of rate limits end."""
READABLE = {
    *("content-type", "content-length", "www-authenticate", "allow", "accept-encoding"),
    *("content-security-policy", "x-content-type-options", "referrer-policy", "cache-control"),
}
"""Response headers that a script of another origin may read anyway, or has no use for."""


def documented(heading):
    return names(section(HEADERS, heading))


def literal(node):
    """The name of a header that a node writes as bytes, or an empty string."""
    is_bytes = isinstance(node, ast.Constant) and isinstance(node.value, bytes)
    name = node.value.decode() if is_bytes else ""
    return name if re.fullmatch("[a-z]+(-[a-z0-9]+)*", name) else ""


def sent():
    """Names in pairs of a name and a value."""
    for node in NODES:
        if isinstance(node, ast.Tuple) and len(node.elts) == 2:
            first = node.elts[0]
            if isinstance(first, ast.BinOp) and isinstance(first.left, ast.Constant):
                yield from (first.left.value.decode() + unit for unit in UNITS)
            elif (name := literal(first)) and name not in UNITS:
                yield name


def read():
    """Names that are looked up in the headers of a request, and the headers of API keys."""
    for node in NODES:
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            (".values", "_by_name.get")
        ):
            yield from map(literal, node.args)
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]).endswith(
            "_by_name"
        ):
            yield literal(node.left)
        elif isinstance(node, ast.Compare) and ast.unparse(node.left) == "name":
            yield literal(node.comparators[0])
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "KEY_HEADER":
            yield literal(node.value)


def test_the_reference_lists_the_headers_that_the_code_reads():
    assert set(documented("## Request headers")) == set(read()) - {""}


def test_the_reference_lists_the_headers_that_the_code_sends():
    headers = documented("## Response headers")

    assert set(headers) == set(sent())
    assert len(headers) == len(set(headers))


@pytest.mark.anyio
async def test_scripts_of_other_origins_may_read_every_header_of_the_gateway():
    app = allow_origins(PlainTextResponse(""), ["*"])
    answer = await call(app, "GET", "/", [("origin", "https://a.example")])

    exposed = answer.header("access-control-expose-headers").split(", ")
    assert set(exposed) == set(documented("## Response headers")) - READABLE
