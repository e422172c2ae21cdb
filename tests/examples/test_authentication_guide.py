"""Tests that the applications of docs/authentication.md let in those whom the guide says."""

import json
import re

import msgspec
import pytest
from starlette.testclient import TestClient

from embedroute import Caller
from tests.support.documents import ROOT, blocks

GUIDE = ROOT / "docs/authentication.md"
ASKED = {"model": "wordllama", "input": "a"}
ADA = {"authorization": "Bearer ada-token"}
EVE = {"authorization": "Bearer wrong"}


class Staff:
    """A user as an authentication middleware of the host leaves it in the scope."""

    def __init__(self, name):
        self.display_name, self.is_authenticated = name, bool(name)


def app_of(*words):
    """Run the block that contains ``words``, and return its application and its names."""
    (block,) = [text for text in blocks(GUIDE, "python") if all(word in text for word in words)]
    names = {"__name__": "guide"}
    exec(compile(block, GUIDE, "exec"), names)  # noqa: S102 - the guide's own code
    return names["app"]


def with_user(app, name):
    async def served(scope, receive, send):
        await app({**scope, "user": Staff(name)}, receive, send)

    return served


@pytest.mark.parametrize(
    ("words", "headers", "status"),
    [
        (["OAuth2PasswordBearer"], ADA, 200),
        (["OAuth2PasswordBearer"], EVE, 401),
        (["OAuth2PasswordBearer"], {}, 401),
        (["api_keys"], {"authorization": "Bearer search-key"}, 200),
        (["api_keys"], {"authorization": "Bearer ads-key"}, 403),
        (["api_keys"], {}, 401),
        (["TokenBackend"], ADA, 200),
        (["TokenBackend"], EVE, 401),
        (["STAFF"], ADA, 401),
    ],
)
def test_an_application_of_the_guide_lets_in_only_known_callers(words, headers, status):
    reply = TestClient(app_of(*words)).post("/ai/v1/embeddings", json=ASKED, headers=headers)

    assert reply.status_code == status


@pytest.mark.parametrize(
    ("name", "model", "status"),
    [
        ("ada", "wordllama", 200),
        ("bob", "wordllama", 200),
        ("ada", "hashed/m", 404),
        ("bob", "hashed/m", 404),
        ("", "wordllama", 401),
    ],
)
def test_the_function_of_the_guide_reads_the_user_of_the_host(name, model, status):
    client = TestClient(with_user(app_of("STAFF"), name))
    reply = client.post("/ai/v1/embeddings", json={**ASKED, "model": model})

    assert reply.status_code == status


def test_the_schemes_of_the_host_are_in_its_document():
    document = TestClient(app_of("OAuth2PasswordBearer")).get("/openapi.json").json()

    assert "OAuth2PasswordBearer" in json.dumps(document["components"]["securitySchemes"])


def test_the_guide_describes_every_field_of_a_caller_with_its_default():
    section = GUIDE.read_text(encoding="utf-8").split("## What a caller may do")[1]
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \|([^|]*)\|", section, re.MULTILINE))
    fields = msgspec.structs.fields(Caller)

    assert {field.name: "" if field.required else f"`{field.default!r}`" for field in fields} == {
        name: default.strip().replace('""', "''") for name, default in rows.items()
    }
