"""What the documents say is true: their code runs, configs load, tables are complete, and links lead somewhere."""

import ast
import json
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import httpx2
import msgspec
import pytest

from embedroute import (
    ApiKey,
    BreakerPolicy,
    CacheSettings,
    ConfigError,
    Endpoint,
    Gateway,
    Model,
    Provider,
    RetryPolicy,
    Settings,
    errors,
)
from embedroute.backend import Accepts
from embedroute.backends.openai import OpenAI
from tests.support.commands import SERVE, run, serving
from tests.support.documents import (
    DOCUMENTS,
    README,
    ROOT,
    SENTENCES,
    blocks,
    has,
    nearer_and_farther,
)
from tests.support.serving import Serving

(TOML,) = blocks(README, "toml")
ENVIRON = {name: f"test-{name}" for name in re.findall(r'"env:(\w+)"', TOML)}
CONFIGURATION = ROOT / "docs" / "configuration.md"
LOCAL = "http://127.0.0.1:8000"
NONE = "\N{EN DASH}"


@pytest.fixture(scope="module")
def example():
    """The server that ``scripts/serve`` ends in, but for its port."""
    with Serving("example_app.main", debug=False) as server:
        yield server.url


def test_the_curl_line_works_as_it_stands(example):
    """Its model, key and body, sent to the example."""
    (line,) = [block for block in blocks(README, "sh") if block.startswith("curl ")]
    words = shlex.split(line.replace("\\\n", " "))
    headers = dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "-H")
    body = words[words.index("-d") + 1]

    answer = httpx2.post(
        words[1].replace(LOCAL, example), headers=headers, content=body, timeout=120
    )

    assert words[1].startswith(f"{LOCAL}/")
    assert (answer.status_code, json.loads(body)["input"]) == (200, SENTENCES)
    near, far = nearer_and_farther(answer.json())
    assert near > far


@pytest.mark.parametrize(
    ("block", "path", "headers"),
    [
        ("app.mount", "/ai/v1/embeddings", {}),
        ("EmbeddingsMiddleware", "/v1/embeddings", {"authorization": "Bearer test-SEARCH_KEY"}),
        (
            "embeddings_router",
            "/ai/v1/embeddings",
            {"authorization": "Bearer test-TEAM_A_KEY", "x-tenant": "blue"},
        ),
    ],
)
def test_the_applications_of_the_readme_serve(tmp_path, block, path, headers):
    """Each is a module of its own, beside the README's config."""
    (tmp_path / "app.py").write_text(has(README, block), encoding="utf-8")
    (tmp_path / "embedroute.toml").write_text(TOML, encoding="utf-8")
    request = {"model": "wordllama", "input": SENTENCES}

    with serving([sys.executable, *SERVE, "app:app"], tmp_path, ENVIRON) as url:
        answer = httpx2.post(f"{url}{path}", json=request, headers=headers, timeout=120)
        elsewhere = httpx2.post(f"{url}/elsewhere", json=request, headers=headers, timeout=120)

    near, far = nearer_and_farther(answer.json())
    assert near > far
    assert elsewhere.status_code == 404


def test_the_backend_of_the_readme_is_the_one_that_is_shipped():
    assert has(README, "Acme(HTTPBackend") == (
        ROOT / "example_app/acme_backend/acme_backend.py"
    ).read_text(encoding="utf-8")


SCRIPTS = [
    (document, block)
    for document in DOCUMENTS
    for block in blocks(document, "python")
    if document != README or "asyncio.run" in block
]


@pytest.mark.parametrize(("document", "block"), SCRIPTS, ids=lambda item: getattr(item, "name", ""))
def test_the_scripts_of_the_documents_run(example, tmp_path, document, block):
    """Their comments on what is printed are true too, and so is a test that they hold."""
    tests = [
        node.name
        for node in ast.parse(block).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
    ]
    script = "\n".join([block.replace(LOCAL, example), *(f"{name}()" for name in tests)])

    path = os.pathsep.join(
        [str(ROOT), str(ROOT / "example_app" / "acme_backend")]
    )  # as if that were installed
    said = run([sys.executable, "-c", script], tmp_path, {"PYTHONPATH": path})

    assert said.split() == " ".join(re.findall(r"print\(.*\)  # (.*)", block)).split(), document


TABLES = [(document, block) for document in DOCUMENTS for block in blocks(document, "toml")]


@pytest.mark.parametrize(("document", "block"), TABLES, ids=lambda item: getattr(item, "name", ""))
def test_the_configs_of_the_documents_load(tmp_path, document, block):
    """But for Acme's backend, which is not installed here."""
    config = tmp_path / "embedroute.toml"
    config.write_text(block, encoding="utf-8")
    environ = {name: f"test-{name}" for name in re.findall(r'"env:(\w+)"', block)}

    assert [mistake for mistake in mistakes_of(config, environ) if '"acme"' not in mistake] == [], (
        document
    )


def mistakes_of(config: Path, environ: dict[str, str]) -> tuple[str, ...]:
    try:
        Gateway.from_file(config, environ=environ)
    except ConfigError as error:
        return error.mistakes
    return ()


def test_the_config_of_the_example_holds_the_key_of_the_readme():
    keys = tomllib.loads((ROOT / "example_app/embedroute.toml").read_text(encoding="utf-8"))["keys"]

    assert [
        f"Bearer {keys['demo']['key']}" in block
        for block in blocks(README, "sh")
        if "curl" in block
    ] == [True]


def rows_under(heading: str) -> dict[str, str]:
    """First cell → third, of the table below a heading of the configuration reference."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    section = text.split(f"\n{heading}\n", 1)[1].split("\n## ")[0].split("\nAll other keys")[0]
    return {
        row[0].strip(" `"): row[2].strip(" `")
        for row in map(cells, section.splitlines())
        if row[0].startswith(" `")
    }


def cells(line: str) -> list[str]:
    return line.strip("|").split("|") if line.startswith("|") else [""]


def default_of(field: msgspec.structs.FieldInfo) -> str:
    """A field's default as TOML writes it, a dash for none."""
    if field.required:
        return "required"
    default = (
        field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    )
    return NONE if default is None else json.dumps(msgspec.to_builtins(default))


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("## `[gateway]`", Settings),
        ("## `[gateway.retries]`", RetryPolicy),
        ("## `[gateway.breaker]`", BreakerPolicy),
        ("## `[keys.NAME]`", ApiKey),
        ("## `[cache]`", CacheSettings),
        ("## `[providers.SLUG]`", Provider),
        ("All other keys are options of the backend, for `openai`:", OpenAI),
        ("## `[models.NAME]`", Model),
        ("## `[[models.NAME.endpoints]]`", Endpoint),
        ("## `accepts`", Accepts),
    ],
)
def test_the_configuration_reference_is_complete(heading, struct):
    """Every key, with its default. A table inside a table has a heading of its own."""
    fields = {
        field.encode_name: default_of(field)
        for field in msgspec.structs.fields(struct)
        if not isinstance(field.default, msgspec.Struct)
    }
    fields.pop("options", None) if struct is Provider else None

    assert rows_under(heading) == fields


def test_the_errors_reference_holds_every_code():
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.EmbedrouteError)
    ]

    assert [kind.code for kind in kinds if kind.code and f"`{kind.code}`" not in text] == []
    assert [kind.type for kind in kinds if f"`{kind.type}`" not in text] == []


LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[\w-]+)?\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda item: item.name)
def test_links_lead_somewhere(document):
    targets = LINK.findall(document.read_text(encoding="utf-8"))

    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize(
    "script", ["scripts/serve", "scripts/test", "scripts/check", "scripts/install", ".ci/run"]
)
def test_the_commands_can_be_run(script):
    assert os.access(ROOT / script, os.X_OK)
    run(["sh", "-n", ROOT / script], ROOT)


def test_ci_runs_the_command_of_the_readme():
    (commands,) = [block for block in blocks(README, "sh") if block.startswith("scripts/")]
    test = commands.splitlines()[1].split()[0]

    assert test in (ROOT / ".ci/run").read_text(encoding="utf-8").split()
