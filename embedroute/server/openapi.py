"""Generates the OpenAPI 3.1 document from the structs that decode requests and encode responses."""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Final, cast

import msgspec
from msgspec import Meta

from embedroute.config import DialectName
from embedroute.protocol import DIALECTS, LARGEST_SIZE, Content, bodies, requests
from embedroute.server.exchange import EXPLAIN
from embedroute.server.routes import API, EMBED, GET_MODEL, Operation

_Text = Annotated[str, Meta(min_length=1)]
_Id = (
    Annotated[int, Meta(ge=0, le=LARGEST_SIZE)]
    | Annotated[float, Meta(ge=0, le=LARGEST_SIZE, multiple_of=1)]
)
_Input = (
    _Text
    | Annotated[
        list[_Text | _Id | Annotated[list[_Id], Meta(min_length=1)] | Content], Meta(min_length=1)
    ]
)


class CreateEmbeddingRequest(
    requests.CreateEmbeddingRequest, frozen=True, forbid_unknown_fields=True, kw_only=True
):
    """The body of ``POST /v1/embeddings``; an optional field may be ``null``."""

    # What the decoder checks after msgspec: no empty input, and token ids in range.

    input: _Input | None = None
    inputs: _Input | None = None


_MODEL_ID: Final = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_EXPLAIN: Final = {
    "name": "explain",
    "in": "query",
    "description": "Return the plan of the request without a call; the key needs debug.",
    "schema": {"enum": list(EXPLAIN)},
}
_INPUT_REQUIRED: Final = [
    {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
    for name in ("input", "inputs")
]


def describe(operation: Operation, dialect: DialectName = "openai") -> dict[str, object]:
    """Return the OpenAPI description of an operation; its ``$ref`` need ``components``."""
    described: dict[str, object] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": ["embeddings"],
    }
    if operation is EMBED:
        described["requestBody"] = {
            "required": True,
            "content": _json_content(CreateEmbeddingRequest),
        }
        described["parameters"] = [_EXPLAIN]
    if operation is GET_MODEL:
        described["parameters"] = [_MODEL_ID]
    if operation.body is None:
        success = _json_content(DIALECTS[dialect].success_body, bodies.Plan)
    else:
        success = _json_content(operation.body)
    error = {"description": "Error", "content": _json_content(DIALECTS[dialect].error_body)}
    described["responses"] = {
        "200": {"description": operation.description, "content": success},
        **{str(status): error for status in operation.statuses},
    }
    return described


@cache
def components(dialect: DialectName = "openai") -> dict[str, dict[str, object]]:
    """Return the JSON Schemas to which the operations refer, by name."""
    roots = [
        CreateEmbeddingRequest,
        DIALECTS[dialect].success_body,
        DIALECTS[dialect].error_body,
        bodies.Plan,
        *[operation.body for operation in API if operation.body],
    ]
    _, schemas = msgspec.json.schema_components(roots, ref_template="#/components/schemas/{name}")
    copies = msgspec.json.decode(msgspec.json.encode(schemas), type=dict[str, dict[str, object]])
    copies["CreateEmbeddingRequest"]["anyOf"] = _INPUT_REQUIRED
    cast("dict[str, dict[str, object]]", copies["TextPart"]["properties"])["text"]["minLength"] = 1
    return copies


@cache
def openapi(server: str = ".", *, dialect: DialectName = "openai", secured: bool = True) -> bytes:
    """Return the OpenAPI document as JSON.

    ``server`` is the URL of the mount, relative to the URL of the document. ``secured`` says
    whether requests need an API key.
    """
    document: dict[str, object] = {
        "openapi": "3.1.0",
        "info": {
            "title": "embedroute",
            "version": "1",
            "description": "OpenAI-compatible embeddings.",
        },
        "servers": [{"url": server}],
        "paths": {
            f"/v1{operation.path}": {operation.methods[0].lower(): describe(operation, dialect)}
            for operation in API
        },
        "components": {"schemas": components(dialect)},
    }
    if secured:
        schemes = {"bearer": {"type": "http", "scheme": "bearer"}}
        document["components"] = {"schemas": components(dialect), "securitySchemes": schemes}
        document["security"] = [{"bearer": []}]
    return msgspec.json.encode(document)


def inlined(described: Mapping[str, object], dialect: DialectName = "openai") -> dict[str, object]:
    """Replace each ``$ref`` by its schema, for a host that has its own document and components."""
    if "$ref" in described:
        return inlined(components(dialect)[str(described["$ref"]).rpartition("/")[2]], dialect)
    return {name: _inline_value(value, dialect) for name, value in described.items()}


def _inline_value(value: object, dialect: DialectName) -> object:
    if isinstance(value, list):
        return [_inline_value(item, dialect) for item in cast("list[object]", value)]
    return inlined(cast("dict[str, object]", value), dialect) if isinstance(value, dict) else value


def _json_content(*types: type) -> dict[str, object]:
    schemas = [{"$ref": f"#/components/schemas/{type_.__name__}"} for type_ in types]
    return {"application/json": {"schema": {"anyOf": schemas} if len(schemas) > 1 else schemas[0]}}
