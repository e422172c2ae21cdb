"""The shapes of bodies as documents tell them: what a request must hold, and what each dialect answers.

Describes a mount as OpenAPI 3.1, from the same structs that decode requests and encode answers.
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
    """The body of ``POST /v1/embeddings``; ``null`` means absent wherever a field is optional."""

    input: _Input | None = None
    inputs: _Input | None = None


class Embedding(msgspec.Struct, kw_only=True):
    """One vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class PhaseoUsage(Usage, kw_only=True):
    """Tokens of all inputs; embeddings complete nothing."""

    completion_tokens: Literal[0]


class OpenRouterUsage(Usage, kw_only=True):
    """Tokens of all inputs, in all and by modality, and what they cost in USD."""

    cost: float
    prompt_tokens_details: dict[str, int] | msgspec.UnsetType = msgspec.UNSET


class _Answer(msgspec.Struct, kw_only=True):
    object: Literal["list"]
    data: list[Embedding]
    model: str


class CreateEmbeddingResponse(_Answer, kw_only=True):
    """The success body."""

    usage: Usage


class GoModelEmbeddingResponse(CreateEmbeddingResponse, kw_only=True):
    """The success body, and who gave the vectors, if they were not all known already."""

    provider: str | msgspec.UnsetType = msgspec.UNSET


class PhaseoEmbeddingResponse(_Answer, kw_only=True):
    """The success body."""

    usage: PhaseoUsage


class OpenRouterEmbeddingResponse(_Answer, kw_only=True):
    """The success body with the request's id."""

    id: str
    usage: OpenRouterUsage


class Error(msgspec.Struct, kw_only=True):
    """What went wrong, and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct, kw_only=True):
    """The error body."""

    error: Error


class OpenRouterError(msgspec.Struct, kw_only=True):
    """What went wrong; ``code`` is the status, ``metadata`` tells whose upstream it was."""

    code: int
    message: str
    metadata: dict[str, str] | None


class OpenRouterErrorResponse(msgspec.Struct, kw_only=True):
    """The error body."""

    error: OpenRouterError
    user_id: str | None


class PhaseoErrorResponse(msgspec.Struct, kw_only=True):
    """The error body: whose fault it was, and who failed with what."""

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
    """The error body: a message."""

    error: str


class Model(ModelCard, frozen=True, kw_only=True):
    """A model, and the facts that choosing one needs; prices in USD per million tokens."""


class ModelList(msgspec.Struct, kw_only=True):
    """The models that the caller may use."""

    object: Literal["list"]
    data: list[Model]


class OpenRouterArchitecture(msgspec.Struct, kw_only=True):
    """What a model takes and gives."""

    modality: str
    input_modalities: list[str]
    output_modalities: list[str]


class OpenRouterModel(msgspec.Struct, kw_only=True):
    """A model as OpenRouter lists it; prices in USD per token."""

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


ANSWERS: Final[Mapping[str, tuple[type, type]]] = {
    "openai": (CreateEmbeddingResponse, ErrorResponse),
    "openrouter": (OpenRouterEmbeddingResponse, OpenRouterErrorResponse),
    "gomodel": (GoModelEmbeddingResponse, ErrorResponse),
    "phaseo": (PhaseoEmbeddingResponse, PhaseoErrorResponse),
    "spice": (CreateEmbeddingResponse, SpiceErrorResponse),
}
"""Dialect → the bodies of its successes and of its errors."""


STATUSES: Final = (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 502, 503, 504)
LIST_STATUSES: Final = (401, 500)
SENT: Final = "The models that the caller may use"

_ONE_GIVEN: Final = [
    {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
    for name in ("input", "inputs")
]


def operation(dialect: DialectName = "openai") -> dict[str, object]:
    """The OpenAPI operation of ``POST /v1/embeddings``; its ``$ref`` point into ``components()``."""
    return {
        "operationId": "createEmbedding",
        "summary": "Embed texts, token ids or content parts",
        "tags": ["embeddings"],
        "requestBody": {"required": True, "content": _json(CreateEmbeddingRequest)},
        "responses": _responses(
            "One vector per input, in input order", ANSWERS[dialect][0], STATUSES, dialect
        ),
    }


def models_operation(dialect: DialectName = "openai") -> dict[str, object]:
    """The OpenAPI operation of ``GET /v1/models``."""
    answers = _responses(SENT, ModelList, LIST_STATUSES, dialect)
    return {
        "operationId": "listModels",
        "summary": "List models",
        "tags": ["embeddings"],
        "responses": answers,
    }


def _paths(dialect: DialectName) -> dict[str, object]:
    models, one = (
        models_operation(dialect),
        {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},
    )
    listed = _responses(
        f"{SENT}, as OpenRouter lists them", OpenRouterModelList, LIST_STATUSES, dialect
    )
    told = _responses("The model", Model, (401, 404, 500), dialect)
    return {
        "/v1/embeddings": {"post": operation(dialect)},
        "/v1/embeddings/models": {
            "get": {**models, "operationId": "listEmbeddingModels", "responses": listed}
        },
        "/v1/models": {"get": models},
        "/v1/models/{id}": {
            "get": {
                **models,
                "operationId": "getModel",
                "summary": "Describe a model",
                "parameters": [one],
                "responses": told,
            }
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
    """Put the schemas where ``$ref`` points to them, for a host whose document has components of its own."""
    if "$ref" in described:
        return inlined(components(dialect)[str(described["$ref"]).rpartition("/")[2]], dialect)
    return {name: _inlined(value, dialect) for name, value in described.items()}


def _inlined(value: object, dialect: DialectName) -> object:
    if isinstance(value, list):
        return [_inlined(item, dialect) for item in cast("list[object]", value)]
    return inlined(cast("dict[str, object]", value), dialect) if isinstance(value, dict) else value


def _responses(
    text: str, answer: type, statuses: tuple[int, ...], dialect: DialectName
) -> dict[str, object]:
    fault = {"description": "Error", "content": _json(ANSWERS[dialect][1])}
    return {
        "200": {"description": text, "content": _json(answer)},
        **{str(status): fault for status in statuses},
    }


def _json(shape: type) -> dict[str, object]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape.__name__}"}}}
