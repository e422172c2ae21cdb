"""Translates the fields and the inputs of Jina's ``POST /v1/embeddings``.

Source: the OpenAPI document of api.jina.ai, November 2026. Without ``truncate``, the endpoint
decides what happens to a text that is longer than the model's context.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from embedroute.errors import EmbedrouteError
from embedroute.inputs import ImagePart, ImageURL, TextPart
from embedroute.protocol import (
    ENCODER,
    NEUTRAL,
    Content,
    EmbeddingRequest,
    Embeddings,
    LargeBody,
    Name,
    OpenAIDialect,
)
from embedroute.server.protocols.translation import Neutral, refuse
from embedroute.text import echo
from embedroute.trace import RequestTrace
from embedroute.vectors import to_unit

_IMAGES: Final[Mapping[str, str]] = {
    "iVBOR": "image/png",
    "/9j/": "image/jpeg",
    "R0lGOD": "image/gif",
    "UklGR": "image/webp",
}
"""The first characters of an image in base64 → its media type."""


class JinaFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields that OpenAI's API does not have."""

    task: Annotated[Name | None, Meta(description="What the inputs are: `retrieval.query`, …")] = (
        None
    )
    normalized: Annotated[
        bool | None, Meta(description="Vectors have length 1; `false` is refused.")
    ] = None
    embedding_type: Literal["float", "base64", "binary", "ubinary"] | None = None
    truncate: Annotated[
        bool | None, Meta(description="Whether a text that is too long is cut at its end.")
    ] = None
    late_chunking: Annotated[bool | None, Meta(description="`true` is refused.")] = None
    return_multivector: Annotated[bool | None, Meta(description="`true` is refused.")] = None


class JinaItem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input: a text, or an image as a URL or in base64."""

    text: str | None = None
    image: str | None = None


class JinaFormat(OpenAIDialect):
    """OpenAI's format, with Jina's errors. Floats have length 1, which is Jina's default."""

    def success(self, answer: Embeddings, request: EmbeddingRequest) -> tuple[bytes] | LargeBody:
        """Write the body of a 200."""
        if request.dtype == "float":
            answer = msgspec.structs.replace(answer, rows=[to_unit(row) for row in answer.rows])
        return super().success(answer, request)

    def error(self, error: EmbedrouteError, trace: RequestTrace) -> bytes:
        """Write the message, the id of the request and the code."""
        code = error.code or error.type
        detail = {"message": error.message, "request_id": trace.request_id, "code": code}
        return ENCODER.encode({"detail": detail})


def translate(fields: JinaFields) -> Neutral:
    """Return the neutral fields that have the same effect.

    Raises:
        InvalidRequest: a field would change the vectors in a way that the gateway cannot.
    """
    if fields.normalized is False:
        refuse("normalized", "must not be false: the gateway returns vectors of length 1 here")
    for name in ("late_chunking", "return_multivector"):
        if getattr(fields, name):
            refuse(name, "would change the vectors, and the gateway cannot set it")
    values: dict[str, Any] = {}
    names = {"output_dtype": "embedding_type"}
    if fields.task is not None:
        if fields.task.lower() not in NEUTRAL:
            advice = "Use 'retrieval.query', 'retrieval.passage' or another task."
            refuse("task", f"{echo(fields.task)} is unknown", advice)
        values["input_type"] = fields.task
        names["input_type"] = "task"
    if fields.embedding_type in {"float", "base64"}:
        values["encoding_format"] = fields.embedding_type
    elif fields.embedding_type is not None:
        values["output_dtype"] = fields.embedding_type
    if fields.truncate is not None:
        values["truncate"] = "end" if fields.truncate else "none"
    return Neutral(values=values, names=names)


def translate_input(raw: msgspec.Raw) -> object:
    """Return the value of ``input`` with Jina's objects as content objects or texts.

    A value that Jina's reference does not document is returned unchanged.
    """
    if b"{" not in memoryview(raw).tobytes():
        return raw
    try:
        items = msgspec.json.decode(raw, type=JinaItem | list[str | JinaItem])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return raw
    items = [items] if isinstance(items, JinaItem) else items
    objects = [JinaItem(text=item) if isinstance(item, str) else item for item in items]
    if all(item.text is not None and item.image is None for item in objects):
        return [item.text for item in objects]
    return [_as_content(item) for item in objects]


def _as_content(item: JinaItem) -> Content:
    parts = list[TextPart | ImagePart]()
    if item.text is not None:
        parts.append(TextPart(item.text))
    if item.image is not None:
        parts.append(ImagePart(ImageURL(_as_url(item.image))))
    return Content(parts)


def _as_url(image: str) -> str:
    for start, media_type in _IMAGES.items():
        if image.startswith(start):
            return f"data:{media_type};base64,{image}"
    return image
