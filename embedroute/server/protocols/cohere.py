"""Serves clients of Cohere: ``/v2/embed``.

Source: Cohere's API reference of Embed v2, November 2026. ``priority`` changes no vector, so it has
no effect. Without ``truncate``, the endpoint decides what happens to a text that is longer than the
model's context.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, cast

import msgspec
from msgspec import UNSET, Meta, UnsetType

from embedroute.errors import EmbedrouteError
from embedroute.inputs import ImagePart, ImageURL, Kind
from embedroute.protocol import (
    ENCODER,
    Content,
    EmbeddingRequest,
    Embeddings,
    LargeBody,
    Limits,
    Name,
    write_rows,
)
from embedroute.server.protocols.translation import (
    RawTexts,
    Translation,
    Width,
    choose_source,
    read_body,
    refuse,
    write_body,
)
from embedroute.trace import RequestTrace
from embedroute.vectors import to_base64, to_json

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
RawContents = Annotated[
    msgspec.Raw,
    Meta(extra_json_schema={"type": "array", "items": {"type": "object"}}),
]


class CohereEmbedRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request; exactly one of ``texts``, ``images`` and ``inputs`` is required.

    ``priority`` has no effect.
    """

    model: Name
    input_type: Name
    texts: RawTexts = msgspec.field(default_factory=msgspec.Raw)
    images: list[str] | None = None
    inputs: RawContents = msgspec.field(default_factory=msgspec.Raw)
    output_dimension: Width = None
    embedding_types: Annotated[
        list[EmbeddingType] | None, Meta(description="One type; the default is `float`.")
    ] = None
    truncate: Literal["NONE", "START", "END"] | None = None
    max_tokens: Annotated[int | None, Meta(description="Refused: it cuts the inputs.")] = None
    priority: int | None = None


class CohereErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The error response."""

    id: str
    message: str


class CohereMeta(msgspec.Struct, frozen=True, kw_only=True):
    """The version of the API, and the tokens of all inputs."""

    api_version: Mapping[str, str]
    billed_units: Mapping[str, int]


class CohereEmbedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The vectors, by type, and the texts that were embedded."""

    id: str
    embeddings: Mapping[str, Sequence[Any]]
    meta: CohereMeta
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"
    texts: Sequence[str] | UnsetType = UNSET


class CohereFormat:
    """Cohere's "embeddings by type"."""

    def success(self, answer: Embeddings, request: EmbeddingRequest) -> tuple[bytes] | LargeBody:
        """Write the vectors of the one type that was requested."""
        kind = "base64" if request.base64 else request.dtype
        is_text = request.kind is Kind.TEXT
        envelope = CohereEmbedResponse(
            id=answer.trace.request_id,
            embeddings={kind: ()},
            meta=CohereMeta(
                api_version={"version": "2"}, billed_units={"input_tokens": answer.prompt_tokens}
            ),
            texts=cast("Sequence[str]", request.inputs) if is_text else UNSET,
        )
        write = to_base64 if request.base64 else to_json
        return write_rows(ENCODER.encode(envelope), answer.rows, write)

    def error(self, error: EmbedrouteError, trace: RequestTrace) -> bytes:
        """Write the id of the request and the message."""
        return ENCODER.encode(CohereErrorResponse(id=trace.request_id, message=error.message))


FORMAT: Final = CohereFormat()


def translate(body: bytes, model: str, limits: Limits) -> Generator[None, None, Translation]:
    """Translate a request of ``/v2/embed``.

    Raises:
        InvalidRequest: the body is invalid, or has a field that would change the vectors.
    """
    del model
    request = yield from read_body(body, CohereEmbedRequest, limits)
    source = choose_source(request, ("texts", "images", "inputs"))
    if request.max_tokens is not None:
        refuse("max_tokens", "would cut the inputs, which the gateway does not do")
    types = request.embedding_types or ["float"]
    if len(types) > 1:
        refuse("embedding_types", "must hold one type", "Send one request for each.")
    value: object = getattr(request, source)
    if source == "images":
        value = [_as_content(url) for url in request.images or ()]
    is_base64 = types[0] == "base64"
    translated = write_body(
        model=request.model,
        input=value,
        input_type=request.input_type,
        dimensions=request.output_dimension,
        encoding_format="base64" if is_base64 else None,
        output_dtype=None if is_base64 else types[0],
        truncate=request.truncate,
    )
    names = {"input": source, "dimensions": "output_dimension", "output_dtype": "embedding_types"}
    return Translation(body=translated, format=FORMAT, names=names)


def _as_content(url: str) -> Content:
    return Content([ImagePart(ImageURL(url))])
