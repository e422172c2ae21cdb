"""Describes a mount as OpenAPI 3.1, from the same structs that decode requests and encode answers."""

from collections.abc import Mapping
from functools import cache
from typing import Final, cast

import msgspec

from embedroute.settings import DialectName
from embedroute.wire.described import ANSWERS, CreateEmbeddingRequest, Model, ModelList, OpenRouterModelList

STATUSES: Final = (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 502, 503, 504)
LIST_STATUSES: Final = (401, 500)
SENT: Final = "The models that the caller may use"

_ONE_GIVEN: Final = [{"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in ("input", "inputs")]


def operation(dialect: DialectName = "openai") -> dict[str, object]:
    """The OpenAPI operation of ``POST /v1/embeddings``; its ``$ref`` point into ``components()``."""
    return {
        "operationId": "createEmbedding",
        "summary": "Embed texts, token ids or content parts",
        "tags": ["embeddings"],
        "requestBody": {"required": True, "content": _json(CreateEmbeddingRequest)},
        "responses": _responses("One vector per input, in input order", ANSWERS[dialect][0], STATUSES, dialect),
    }


def models_operation(dialect: DialectName = "openai") -> dict[str, object]:
    """The OpenAPI operation of ``GET /v1/models``."""
    answers = _responses(SENT, ModelList, LIST_STATUSES, dialect)
    return {"operationId": "listModels", "summary": "List models", "tags": ["embeddings"], "responses": answers}


def _paths(dialect: DialectName) -> dict[str, object]:
    models, one = models_operation(dialect), {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    listed = _responses(f"{SENT}, as OpenRouter lists them", OpenRouterModelList, LIST_STATUSES, dialect)
    told = _responses("The model", Model, (401, 404, 500), dialect)
    return {
        "/v1/embeddings": {"post": operation(dialect)},
        "/v1/embeddings/models": {"get": {**models, "operationId": "listEmbeddingModels", "responses": listed}},
        "/v1/models": {"get": models},
        "/v1/models/{id}": {
            "get": {**models, "operationId": "getModel", "summary": "Describe a model", "parameters": [one], "responses": told}
        },
    }


@cache
def components(dialect: DialectName = "openai") -> dict[str, dict[str, object]]:
    """The JSON Schemas that the operations refer to, by name."""
    roots = [CreateEmbeddingRequest, *ANSWERS[dialect], Model, ModelList, OpenRouterModelList]
    _, schemas = msgspec.json.schema_components(roots, ref_template="#/components/schemas/{name}")
    read = msgspec.json.decode(msgspec.json.encode(schemas), type=dict[str, dict[str, object]])
    read["CreateEmbeddingRequest"]["anyOf"] = _ONE_GIVEN
    cast("dict[str, dict[str, object]]", read["TextPart"]["properties"])["text"]["minLength"] = 1
    return read


@cache
def openapi(server: str = ".", *, dialect: DialectName = "openai", secured: bool = True) -> bytes:
    """The OpenAPI document of a mount that speaks ``dialect``, and asks for a key if it is ``secured``.

    It is at ``server``, as seen from where the document is served.
    """
    document: dict[str, object] = {
        "openapi": "3.1.0",
        "info": {"title": "embedroute", "version": "1", "description": "OpenAI-compatible embeddings."},
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
    """Put the schemas where ``$ref`` points to them, for a host whose document has components of its own."""
    if "$ref" in described:
        return inlined(components(dialect)[str(described["$ref"]).rpartition("/")[2]], dialect)
    return {name: _inlined(value, dialect) for name, value in described.items()}


def _inlined(value: object, dialect: DialectName) -> object:
    if isinstance(value, list):
        return [_inlined(item, dialect) for item in cast("list[object]", value)]
    return inlined(cast("dict[str, object]", value), dialect) if isinstance(value, dict) else value


def _responses(text: str, answer: type, statuses: tuple[int, ...], dialect: DialectName) -> dict[str, object]:
    fault = {"description": "Error", "content": _json(ANSWERS[dialect][1])}
    return {"200": {"description": text, "content": _json(answer)}, **{str(status): fault for status in statuses}}


def _json(shape: type) -> dict[str, object]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape.__name__}"}}}
