"""Serves clients of Text Embeddings Inference: ``/embed``, ``/info`` and ``/health``.

Source: the OpenAPI document of TEI 1.9. A server of TEI has one model, so its requests name none:
``/tei/{model}`` is the base URL of one model, and the paths without it serve the only model that
the caller may use. Without ``truncate``, the endpoint decides what happens to a text that is longer
than the model's context.
"""

from collections.abc import Generator, Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from embedroute.errors import EmbedrouteError, InvalidRequest
from embedroute.protocol import (
    ENCODER,
    NEUTRAL,
    EmbeddingRequest,
    Embeddings,
    LargeBody,
    Limits,
    Name,
    write_rows,
)
from embedroute.server.protocols.translation import (
    ModelQuestion,
    RawTexts,
    Translation,
    Width,
    read_body,
    refuse,
    write_body,
)
from embedroute.text import echo
from embedroute.trace import RequestTrace
from embedroute.vectors import to_unit_json
from embedroute.version import __version__

VECTORS: Final[Mapping[str, object]] = {
    "type": "array",
    "items": {"type": "array", "items": {"type": "number"}},
}
"""The JSON Schema of the response."""


class TEIEmbedRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request; ``truncation_direction`` is the side that is cut if ``truncate`` is true."""

    inputs: RawTexts
    normalize: Annotated[
        bool | None, Meta(description="Vectors have length 1; `false` is refused.")
    ] = None
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    prompt_name: Annotated[
        Name | None, Meta(description="What the inputs are: `query`, `document`, …")
    ] = None
    dimensions: Width = None


class TEIErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The error response."""

    error: str
    error_type: str


class TEIModelType(msgspec.Struct, frozen=True, kw_only=True):
    """The kind of a model."""

    embedding: Mapping[str, str]


class TEIInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The model, and the limits of a request."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: TEIModelType
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


class TEIFormat:
    """A bare list of vectors of length 1."""

    def success(self, answer: Embeddings, request: EmbeddingRequest) -> tuple[bytes] | LargeBody:
        """Write the vectors."""
        del request
        return write_rows(b"[]", answer.rows, to_unit_json)

    def error(self, error: EmbedrouteError, trace: RequestTrace) -> bytes:
        """Write the message, and TEI's kind of error."""
        del trace
        kinds = {429: "Overloaded", 502: "Backend", 503: "Overloaded", 504: "Backend"}
        other = "Validation" if error.status < 500 else "Unhealthy"
        kind = kinds.get(error.status, other)
        return ENCODER.encode(TEIErrorResponse(error=error.message, error_type=kind))


FORMAT: Final = TEIFormat()


def translate(body: bytes, model: str, limits: Limits) -> Generator[None, None, Translation]:
    """Translate a request of ``/embed`` for ``model``.

    Raises:
        InvalidRequest: the body is invalid, or asks for vectors that are not normalized.
    """
    request = yield from read_body(body, TEIEmbedRequest, limits)
    if request.normalize is False:
        refuse("normalize", "must not be false: the gateway returns vectors of length 1 here")
    names = {"input": "inputs"}
    input_type = request.prompt_name
    if input_type is not None:
        names["input_type"] = "prompt_name"
        if input_type.lower() not in NEUTRAL:
            advice = "Use 'query', 'document' or another input type."
            refuse("prompt_name", f"{echo(input_type)} is unknown", advice)
    translated = write_body(
        model=model,
        input=request.inputs,
        dimensions=request.dimensions,
        input_type=input_type,
        truncate=_get_truncate(request),
    )
    return Translation(body=translated, format=FORMAT, names=names)


def _get_truncate(request: TEIEmbedRequest) -> str | None:
    if request.truncate is None:
        return None
    if not request.truncate:
        return "none"
    return "start" if (request.truncation_direction or "right").lower() == "left" else "end"


def choose_model(question: ModelQuestion) -> str:
    """Return the only model that the caller may use.

    Raises:
        InvalidRequest: there is none, or there are several.
    """
    if len(question.models) != 1:
        count = len(question.models) or "no"
        raise InvalidRequest(
            f"A request without a model can be served only if there is one model, and this key may"
            f" use {count}. Use the base URL …/tei/MODEL.",
            param="model",
        )
    return question.models[0].id


def describe_model(question: ModelQuestion) -> TEIInfo:
    """Answer ``GET /info``.

    Raises:
        InvalidRequest: the path names no model, and there is not exactly one.
        ModelNotFound: there is no such model, or the caller may not use it.
    """
    model = question.find(question.name or choose_model(question))
    limits = question.limits
    return TEIInfo(
        model_id=model.id,
        model_sha=None,
        model_dtype="float32",
        model_type=TEIModelType(embedding={"pooling": "mean"}),
        max_concurrent_requests=512,
        max_input_length=model.context_length or limits.max_token_ids,
        max_batch_tokens=limits.max_token_ids,
        max_batch_requests=None,
        max_client_batch_size=limits.max_inputs,
        auto_truncate=False,
        tokenization_workers=1,
        version=__version__,
        sha=None,
        docker_label=None,
    )
