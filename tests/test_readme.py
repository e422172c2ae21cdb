"""What the README and the tables of the references say is true. ``tests/docs`` runs all code blocks."""

import json
import os
import re
import shlex
import sys
import tomllib

import httpx2
import msgspec
import pytest

from embedroute import (
    ApiKey,
    BreakerPolicy,
    CacheSettings,
    Endpoint,
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
from tests.support.pages import name_of
from tests.support.serving import Serving

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


def test_the_application_of_the_readme_serves(tmp_path):
    (tmp_path / "app.py").write_text(has(README, "app.mount"), encoding="utf-8")
    request = {"model": "wordllama", "input": SENTENCES}

    with serving([sys.executable, *SERVE, "app:app"], tmp_path) as url:
        answer = httpx2.post(f"{url}/ai/v1/embeddings", json=request, timeout=120)
        elsewhere = httpx2.post(f"{url}/elsewhere", json=request, timeout=120)

    near, far = nearer_and_farther(answer.json())
    assert near > far
    assert elsewhere.status_code == 404


def test_a_reader_finishes_the_readme():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


def test_the_config_of_the_example_holds_the_key_of_the_readme():
    keys = tomllib.loads((ROOT / "example_app/embedroute.toml").read_text(encoding="utf-8"))["keys"]

    assert [
        f"Bearer {keys['demo']['key']}" in block
        for block in blocks(README, "sh")
        if block.startswith("curl ")
    ] == [True]


def rows_under(heading: str) -> dict[str, str]:
    """First cell → third, of the table below a heading of the configuration reference."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    section = text.split(f"\n{heading}\n", 1)[1].split("\n## ")[0].split("\nAll other keys")[0]
    section = section.split("\nOther backends have")[0]
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
"""A link to a file; ``scripts/docs`` checks those between pages, with their anchors."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document):
    targets = LINK.findall(document.read_text(encoding="utf-8"))

    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize(
    "script",
    [
        "scripts/serve",
        "scripts/test",
        "scripts/check",
        "scripts/docs",
        "scripts/install",
        ".ci/run",
    ],
)
def test_the_commands_can_be_run(script):
    assert os.access(ROOT / script, os.X_OK)
    run(["sh", "-n", ROOT / script], ROOT)


def test_ci_runs_the_command_of_the_readme():
    (commands,) = [block for block in blocks(README, "sh") if block.startswith("scripts/")]
    test = commands.splitlines()[1].split()[0]

    assert test in (ROOT / ".ci/run").read_text(encoding="utf-8").split()
