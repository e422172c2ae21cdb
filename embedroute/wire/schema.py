"""Describes a mount as OpenAPI 3.1, from the same structs that decode requests and encode answers."""

from collections.abc import Mapping
from functools import cache
from typing import cast

import msgspec

from embedroute.wire.requests import CreateEmbeddingRequest


class _Vector(msgspec.Struct, kw_only=True):
    """One vector: numbers, or base64 of little-endian float32."""

    object: str
    index: int
    embedding: list[float] | str


class _Usage(msgspec.Struct, kw_only=True):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class _Answer(msgspec.Struct, kw_only=True):
    """The success body."""

    object: str
    data: list[_Vector]
    model: str
    usage: _Usage


class _Fault(msgspec.Struct, kw_only=True):
    """What went wrong, and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class _Envelope(msgspec.Struct, kw_only=True):
    """The error body."""

    error: _Fault


NAMES = {
    "_Vector": "Embedding",
    "_Usage": "Usage",
    "_Answer": "CreateEmbeddingResponse",
    "_Fault": "Error",
    "_Envelope": "ErrorResponse",
}
STATUSES = (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 502, 503, 504)


@cache
def operation() -> dict[str, object]:
    """The OpenAPI operation of ``POST /v1/embeddings``; its ``$ref`` point into ``components()``."""
    fault = {"description": "Error", "content": _json("ErrorResponse")}
    return {
        "operationId": "createEmbedding",
        "summary": "Embed texts, token ids or content parts",
        "tags": ["embeddings"],
        "requestBody": {"required": True, "content": _json("CreateEmbeddingRequest")},
        "responses": {
            "200": {"description": "One vector per input, in input order", "content": _json("CreateEmbeddingResponse")},
            **{str(status): fault for status in STATUSES},
        },
    }


@cache
def components() -> dict[str, dict[str, object]]:
    """The JSON Schemas that ``operation()`` refers to, by name."""
    _, schemas = msgspec.json.schema_components(
        [CreateEmbeddingRequest, _Answer, _Envelope], ref_template="#/components/schemas/{name}"
    )
    text = msgspec.json.encode(schemas)
    for held, name in NAMES.items():
        text = text.replace(f"schemas/{held}".encode(), f"schemas/{name}".encode())
    read = msgspec.json.decode(text, type=dict[str, dict[str, object]])
    return {NAMES.get(name, name): {**schema, "title": NAMES.get(name, name)} for name, schema in read.items()}


@cache
def openapi(server: str = ".") -> bytes:
    """The OpenAPI document of a mount, which is at ``server`` as seen from where the document is served."""
    one = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    document: dict[str, object] = {
        "openapi": "3.1.0",
        "info": {"title": "embedroute", "version": "1", "description": "OpenAI-compatible embeddings."},
        "servers": [{"url": server}],
        "paths": {
            "/v1/embeddings": {"post": operation()},
            "/v1/embeddings/models": {"get": {**models_operation(), "operationId": "listEmbeddingModels"}},
            "/v1/models": {"get": models_operation()},
            "/v1/models/{id}": {
                "get": {**models_operation(), "operationId": "getModel", "summary": "Describe a model", "parameters": [one]}
            },
        },
        "components": {"schemas": components(), "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
        "security": [{"bearer": []}],
    }
    return msgspec.json.encode(document)


def models_operation() -> dict[str, object]:
    """The OpenAPI operation of ``GET /v1/models``."""
    answers = {
        "200": {"description": "The models that the caller may use"},
        "401": {"description": "Error", "content": _json("ErrorResponse")},
    }
    return {"operationId": "listModels", "summary": "List models", "tags": ["embeddings"], "responses": answers}


def inlined(described: Mapping[str, object]) -> dict[str, object]:
    """Put the schemas where ``$ref`` points to them, for a host whose document has components of its own."""
    if "$ref" in described:
        return inlined(components()[str(described["$ref"]).rpartition("/")[2]])
    return {name: _inlined(value) for name, value in described.items()}


def _inlined(value: object) -> object:
    if isinstance(value, list):
        return [_inlined(item) for item in cast("list[object]", value)]
    return inlined(cast("dict[str, object]", value)) if isinstance(value, dict) else value


def _json(name: str) -> dict[str, object]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
