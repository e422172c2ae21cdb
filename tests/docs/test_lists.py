"""Lists of names in the documentation are complete."""

import ast
import tomllib

from starlette.applications import Starlette
from starlette.testclient import TestClient

from embedroute.server import allow_origins
from tests.support.documents import ROOT, has
from tests.support.tables import names, section


def test_the_table_of_extras_is_complete():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    documented = names(section(ROOT / "docs/index.md", "### Extras"))

    assert sorted(documented) == sorted(project["optional-dependencies"])


def test_the_example_of_cors_exposes_the_headers_that_serve_exposes():
    tree = ast.parse(has(ROOT / "docs/guides/fastapi.md", "expose_headers"))
    (exposed,) = [
        ast.literal_eval(keyword.value)
        for keyword in ast.walk(tree)
        if isinstance(keyword, ast.keyword) and keyword.arg == "expose_headers"
    ]

    served = TestClient(allow_origins(Starlette(), ["*"])).get(
        "/", headers={"origin": "https://a.b"}
    )

    assert exposed == served.headers["access-control-expose-headers"].split(", ")
