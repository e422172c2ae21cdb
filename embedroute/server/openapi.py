"""Generates the OpenAPI 3.1 document from the structs that decode requests and encode responses."""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Final, cast

import msgspec
from msgspec import Meta

from embedroute.config import DialectName
from embedroute.protocol import DIALECTS, LARGEST_SIZE, Content, bodies, requests

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


STATUSES: Final = (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 502, 503, 504)
LIST_STATUSES: Final = (401, 500)
LIST_DESCRIPTION: Final = "The models that the caller may use"

_INPUT_REQUIRED: Final = [
    {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
    for name in ("input", "inputs")
]


def operation(dialect: DialectName = "openai") -> dict[str, object]:
    """Return the OpenAPI operation of ``POST /v1/embeddings``; its ``$ref`` need ``components``."""
    success = DIALECTS[dialect].success_body
    return {
        "operationId": "createEmbedding",
        "summary": "Embed texts, token ids or content parts",
        "tags": ["embeddings"],
        "requestBody": {"required": True, "content": _json_content(CreateEmbeddingRequest)},
        "responses": _responses("One vector per input, in input order", success, STATUSES, dialect),
    }


def models_operation(dialect: DialectName = "openai") -> dict[str, object]:
    """Return the OpenAPI operation of ``GET /v1/models``."""
    return {
        "operationId": "listModels",
        "summary": "List models",
        "tags": ["embeddings"],
        "responses": _responses(LIST_DESCRIPTION, bodies.ModelList, LIST_STATUSES, dialect),
    }


def _paths(dialect: DialectName) -> dict[str, object]:
    list_models = models_operation(dialect)
    model_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    openrouter_responses = _responses(
        f"{LIST_DESCRIPTION}, as OpenRouter lists them",
        bodies.OpenRouterModelList,
        LIST_STATUSES,
        dialect,
    )
    model_responses = _responses("The model", bodies.Model, (401, 404, 500), dialect)
    return {
        "/v1/embeddings": {"post": operation(dialect)},
        "/v1/embeddings/models": {
            "get": {
                **list_models,
                "operationId": "listEmbeddingModels",
                "responses": openrouter_responses,
            }
        },
        "/v1/models": {"get": list_models},
        "/v1/models/{id}": {
            "get": {
                **list_models,
                "operationId": "getModel",
                "summary": "Describe a model",
                "parameters": [model_id],
                "responses": model_responses,
            }
        },
    }


@cache
def components(dialect: DialectName = "openai") -> dict[str, dict[str, object]]:
    """Return the JSON Schemas to which the operations refer, by name."""
    roots = [
        CreateEmbeddingRequest,
        DIALECTS[dialect].success_body,
        DIALECTS[dialect].error_body,
        bodies.Model,
        bodies.ModelList,
        bodies.OpenRouterModelList,
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
        "paths": _paths(dialect),
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


def _responses(
    description: str, success: type, statuses: tuple[int, ...], dialect: DialectName
) -> dict[str, object]:
    error = {"description": "Error", "content": _json_content(DIALECTS[dialect].error_body)}
    return {
        "200": {"description": description, "content": _json_content(success)},
        **{str(status): error for status in statuses},
    }


def _json_content(type_: type) -> dict[str, object]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{type_.__name__}"}}}
