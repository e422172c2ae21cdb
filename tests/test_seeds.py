"""The documents' own examples: every request that they show is answered, every answer that they show fits our reading."""

import json
from pathlib import Path

import jsonschema
import pytest

from embedroute import Config, Gateway, Provider, embeddings_app
from embedroute.testing import ScriptedBackend
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

SCHEMAS = {
    path.stem: json.loads(path.read_text())
    for path in (Path(__file__).parent / "data" / "schemas").glob("*.json")
}
REQUESTS = [
    (name, request)
    for name, document in SCHEMAS.items()
    for request in document["examples"]["requests"]
]
RESPONSES = [
    (name, status, body)
    for name, document in SCHEMAS.items()
    for status, body in document["examples"]["responses"].items()
]

# Phaseo's page fills its example with placeholders, which these replace.
FILLED = {
    "model": "text-embedding-3-small",
    "encoding_format": "float",
    "order": ["p"],
    "only": ["p"],
    "ignore": ["azure"],
}


def filled(value, name=""):
    if isinstance(value, dict):
        return {key: filled(inner, key) for key, inner in value.items()}
    if value in ("<string>", ["<string>"]):
        return FILLED.get(name, "text")
    return value


def validator(document, schema):
    return jsonschema.Draft202012Validator({**schema, "$defs": document["$defs"]})


def gateway_of():
    class Anything(ScriptedBackend, frozen=True, kw_only=True):
        """Accepts every option that the examples name."""

        accepts = ScriptedBackend.accepts.__class__(
            tokens=True,
            dimensions=True,
            user=True,
            input_types=("query", "document"),
            options=("google", "mistral"),
        )

    models = [
        "text-embedding-3-large",
        "text-embedding-3-small",
        "text-embedding-ada-002",
        "openai/text-embedding-3-small",
    ]
    return Gateway(
        Config(
            gateway={"auth": "open", "debug": True},
            providers={"p": Provider(backend=Anything(width=1536))},
            models={
                name: {"dimensions": 1536, "matryoshka": True, "endpoints": [{"provider": "p"}]}
                for name in models
            },
        )
    )


async def post(dialect, body):
    app = embeddings_app(gateway_of(), dialect=dialect)
    return await call(
        app,
        "POST",
        "/v1/embeddings",
        [("content-type", "application/json")],
        [json.dumps(body).encode()],
    )


@pytest.mark.parametrize(("dialect", "request_"), REQUESTS)
async def test_a_documented_request_is_answered_in_its_dialect(dialect, request_):
    body = filled(request_)
    if "embedding_options" in body:
        # The example shows both namespaces at once, which no single provider supports.
        body["embedding_options"].pop("mistral")
    document = SCHEMAS[dialect]
    validator(document, document["request"]).validate(body)

    answer = await post(dialect, body)

    assert (answer.status, answer.json.get("error")) == (200, None)
    shown = {
        name: value
        for name, value in answer.json.items()
        if name not in {"trace", "upstream_request", "upstream_response"}
    }
    validator(document, document["responses"]["200"]).validate(shown)
    assert shown["model"] == body["model"]
    assert len(shown["data"][0]["embedding"]) == body.get("dimensions", 1536)


@pytest.mark.parametrize(("dialect", "status", "body"), RESPONSES)
def test_a_documented_answer_fits_the_schema_that_ours_are_held_to(dialect, status, body):
    document = SCHEMAS[dialect]
    if dialect == "phaseo":
        body = {
            **body,
            "object": "list",
            "data": [{**row, "object": "embedding"} for row in body["data"]],
        }

    validator(document, document["responses"][status]).validate(body)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schemas_themselves_are_sound(name):
    document = SCHEMAS[name]
    for schema in (document["request"], *document["responses"].values()):
        jsonschema.Draft202012Validator.check_schema({**schema, "$defs": document["$defs"]})
    assert document["source"]
