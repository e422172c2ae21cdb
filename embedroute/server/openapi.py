"""Generates the OpenAPI 3.1 document, from structs that describe requests and responses.

Request bodies are described by the structs that decode them. The structs for response bodies are
only documentation, one set per dialect.
"""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Final, Literal, cast

import msgspec
from msgspec import Meta

from embedroute.config import DialectName
from embedroute.protocol import LARGEST_SIZE, Content, ModelCard, requests

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

    input: _Input | None = None
    inputs: _Input | None = None


class Embedding(msgspec.Struct, kw_only=True):
    """One vector, as numbers or as base64 of little-endian float32 values."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(msgspec.Struct, kw_only=True):
    """The number of tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class PhaseoUsage(Usage, kw_only=True):
    """The number of tokens of all inputs; embeddings have no completion tokens."""

    completion_tokens: Literal[0]


class OpenRouterUsage(Usage, kw_only=True):
    """The number of tokens of all inputs, in total and by modality, and the cost in USD."""

    cost: float
    prompt_tokens_details: dict[str, int] | msgspec.UnsetType = msgspec.UNSET


class _EmbeddingList(msgspec.Struct, kw_only=True):
    object: Literal["list"]
    data: list[Embedding]
    model: str


class CreateEmbeddingResponse(_EmbeddingList, kw_only=True):
    """The response to an embeddings request."""

    usage: Usage


class GoModelEmbeddingResponse(CreateEmbeddingResponse, kw_only=True):
    """The response with its provider, which is absent if all vectors came from the cache."""

    provider: str | msgspec.UnsetType = msgspec.UNSET


class PhaseoEmbeddingResponse(_EmbeddingList, kw_only=True):
    """The response to an embeddings request."""

    usage: PhaseoUsage


class OpenRouterEmbeddingResponse(_EmbeddingList, kw_only=True):
    """The response with the id of the request."""

    id: str
    usage: OpenRouterUsage


class Error(msgspec.Struct, kw_only=True):
    """What went wrong, and what the client can do about it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct, kw_only=True):
    """The error response."""

    error: Error


class OpenRouterError(msgspec.Struct, kw_only=True):
    """What went wrong; ``code`` is the HTTP status, ``metadata`` names the provider that failed."""

    code: int
    message: str
    metadata: dict[str, str] | None


class OpenRouterErrorResponse(msgspec.Struct, kw_only=True):
    """The error response."""

    error: OpenRouterError
    user_id: str | None


class PhaseoErrorResponse(msgspec.Struct, kw_only=True):
    """The error response: the kind and origin of the error, and the failed providers."""

    generation_id: str
    status_code: int
    error: str
    error_type: Literal["user", "system"]
    error_origin: Literal["upstream", "gateway"]
    reason: str
    description: str
    param: str | None
    attempt_count: int
    failed_providers: list[str]
    failed_statuses: list[int | None]


class SpiceErrorResponse(msgspec.Struct, kw_only=True):
    """The error response: only a message."""

    error: str


class Model(ModelCard, frozen=True, kw_only=True):
    """A model and its properties; prices are in USD per million tokens."""


class ModelList(msgspec.Struct, kw_only=True):
    """The models that the caller may use."""

    object: Literal["list"]
    data: list[Model]


class OpenRouterArchitecture(msgspec.Struct, kw_only=True):
    """The modalities of a model's inputs and outputs."""

    modality: str
    input_modalities: list[str]
    output_modalities: list[str]


class OpenRouterModel(msgspec.Struct, kw_only=True):
    """A model in OpenRouter's format; prices are in USD per token."""

    id: str
    name: str
    created: int
    context_length: int | None
    architecture: OpenRouterArchitecture
    pricing: dict[str, str]
    supported_parameters: list[str]


class OpenRouterModelList(msgspec.Struct, kw_only=True):
    """The models that the caller may use."""

    data: list[OpenRouterModel]


RESPONSES: Final[Mapping[str, tuple[type, type]]] = {
    "openai": (CreateEmbeddingResponse, ErrorResponse),
    "openrouter": (OpenRouterEmbeddingResponse, OpenRouterErrorResponse),
    "gomodel": (GoModelEmbeddingResponse, ErrorResponse),
    "phaseo": (PhaseoEmbeddingResponse, PhaseoErrorResponse),
    "spice": (CreateEmbeddingResponse, SpiceErrorResponse),
}
"""Dialect → the bodies of successful responses and of errors."""


STATUSES: Final = (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 502, 503, 504)
LIST_STATUSES: Final = (401, 500)
LIST_DESCRIPTION: Final = "The models that the caller may use"

_INPUT_REQUIRED: Final = [
    {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
    for name in ("input", "inputs")
]


def operation(dialect: DialectName = "openai") -> dict[str, object]:
    """Return the OpenAPI operation of ``POST /v1/embeddings``; its ``$ref`` need ``components``."""
    success = RESPONSES[dialect][0]
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
        "responses": _responses(LIST_DESCRIPTION, ModelList, LIST_STATUSES, dialect),
    }


def _paths(dialect: DialectName) -> dict[str, object]:
    list_models = models_operation(dialect)
    model_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    openrouter_responses = _responses(
        f"{LIST_DESCRIPTION}, as OpenRouter lists them", OpenRouterModelList, LIST_STATUSES, dialect
    )
    model_responses = _responses("The model", Model, (401, 404, 500), dialect)
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
    roots = [CreateEmbeddingRequest, *RESPONSES[dialect], Model, ModelList, OpenRouterModelList]
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
    error = {"description": "Error", "content": _json_content(RESPONSES[dialect][1])}
    return {
        "200": {"description": description, "content": _json_content(success)},
        **{str(status): error for status in statuses},
    }


def _json_content(type_: type) -> dict[str, object]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{type_.__name__}"}}}
