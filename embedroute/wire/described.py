"""The shapes of bodies as documents tell them: what a request must hold, and what each dialect answers."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from embedroute.wire import requests
from embedroute.wire.requests import LARGEST_SIZE, Content
from embedroute.wire.responses import ModelCard

_Text = Annotated[str, Meta(min_length=1)]
_Id = Annotated[int, Meta(ge=0, le=LARGEST_SIZE)] | Annotated[float, Meta(ge=0, le=LARGEST_SIZE, multiple_of=1)]
_Input = _Text | Annotated[list[_Text | _Id | Annotated[list[_Id], Meta(min_length=1)] | Content], Meta(min_length=1)]


class CreateEmbeddingRequest(requests.CreateEmbeddingRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
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
