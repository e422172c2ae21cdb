"""Defines the structs of response bodies; the OpenAPI document is generated from them.

The name of a struct is that of its schema, and its docstring the description.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

Vector = Annotated[
    msgspec.Raw,
    Meta(
        extra_json_schema={
            "anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]
        }
    ),
]
"""A vector as JSON: an array of numbers, or base64."""


class Embedding(msgspec.Struct, frozen=True, gc=False):
    """One vector, as numbers or as base64 of little-endian float32 values."""

    embedding: Vector
    index: int
    object: Literal["embedding"]


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The number of tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class PhaseoUsage(Usage, frozen=True, kw_only=True, gc=False):
    """The number of tokens of all inputs; embeddings have no completion tokens."""

    completion_tokens: Literal[0]


class OpenRouterUsage(Usage, frozen=True, kw_only=True, gc=False):
    """The number of tokens of all inputs, in total and by modality, and the cost in USD.

    ``cost`` is absent if the price is unknown.
    """

    cost: float | UnsetType = UNSET
    prompt_tokens_details: Mapping[str, int] | UnsetType = UNSET


class CreateEmbeddingResponse(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="object", tag="list", gc=False
):
    """The response to an embeddings request."""

    data: Sequence[Embedding]
    model: str
    usage: Usage
    upstream_request: Any | UnsetType = UNSET
    upstream_response: Any | UnsetType = UNSET
    trace: Any | UnsetType = UNSET


class GoModelEmbeddingResponse(CreateEmbeddingResponse, frozen=True, kw_only=True, gc=False):
    """The response with its provider, which is absent if all vectors came from the cache."""

    provider: str | UnsetType = UNSET


class PhaseoEmbeddingResponse(CreateEmbeddingResponse, frozen=True, kw_only=True, gc=False):
    """The response to an embeddings request."""

    usage: PhaseoUsage


class OpenRouterEmbeddingResponse(CreateEmbeddingResponse, frozen=True, kw_only=True, gc=False):
    """The response with the id of the request."""

    id: str
    usage: OpenRouterUsage


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong, and what the client can do about it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The error response."""

    error: Error


class OpenRouterError(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong; ``code`` is the HTTP status, ``metadata`` names the provider that failed."""

    code: int
    message: str
    metadata: Mapping[str, str] | None


class OpenRouterErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The error response."""

    error: OpenRouterError
    user_id: str | None


class PhaseoErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
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
    failed_providers: Sequence[str]
    failed_statuses: Sequence[int | None]


class SpiceErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The error response: only a message."""

    error: str


class Model(msgspec.Struct, frozen=True, kw_only=True, tag_field="object", tag="model"):
    """A model and its properties; prices are in USD per million tokens."""

    id: str
    owned_by: str
    dimensions: int | None
    dimensions_allowed: Sequence[int] | None
    matryoshka: bool
    context_length: int | None
    modalities: Sequence[str]
    pricing: Mapping[str, str]
    providers: Sequence[str]
    supported_endpoints: Sequence[str]
    created: int


class ModelList(msgspec.Struct, frozen=True, kw_only=True, tag_field="object", tag="list"):
    """The models that the caller may use."""

    data: Sequence[Model]


class OpenRouterArchitecture(msgspec.Struct, frozen=True, kw_only=True):
    """The modalities of a model's inputs and outputs."""

    modality: str
    input_modalities: Sequence[str]
    output_modalities: Sequence[str]


class OpenRouterModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model in OpenRouter's format; prices are in USD per token."""

    id: str
    name: str
    created: int
    context_length: int | None
    architecture: OpenRouterArchitecture
    pricing: Mapping[str, str]
    supported_parameters: Sequence[str]


class OpenRouterModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The models that the caller may use."""

    data: Sequence[OpenRouterModel]


class PlanEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint that would be called, with the sizes of its calls and their cost in USD.

    ``price`` is in USD per million tokens, ``rests_for`` the remaining cool-down in seconds.
    """

    provider: str
    model: str
    price: Mapping[str, str]
    chunks: Sequence[int]
    cost: str | None
    rests_for: float


class PlanExclusion(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint that would not be called, and why."""

    provider: str
    model: str
    price: Mapping[str, str]
    filter: str
    reason: str


class PlanCache(msgspec.Struct, frozen=True, kw_only=True):
    """How many inputs are in the cache and how many are not."""

    hits: int
    misses: int


class PlanInputs(msgspec.Struct, frozen=True, kw_only=True):
    """How many inputs there are; the tokens are those of the inputs that are not in the cache."""

    count: int
    unique: int
    estimated_tokens: int


class Plan(msgspec.Struct, frozen=True, kw_only=True, tag_field="object", tag="plan"):
    """How a request would be served: the response to ``?explain=1``.

    ``fallback`` is the model that serves the request if every endpoint fails.
    """

    model: str
    fallback: str | None
    order: Sequence[PlanEndpoint]
    filtered: Sequence[PlanExclusion]
    cache: PlanCache
    inputs: PlanInputs
