"""The request as it stands on the wire: the union of what five documented systems accept, typed field by field."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from embedroute.inputs import ImagePart, TextPart
from embedroute.wire.preferences import LONGEST_NAME, Name, Preferences

MOST_PARTS = 32
"""Content parts that one input may hold."""

Dtype = Literal["float", "int8", "uint8", "binary", "ubinary"]
LARGEST_SIZE = 2**31 - 1
"""Numbers in a vector that a request may ask for: what every upstream's JSON reader holds."""
Size = Annotated[int, Meta(ge=1, le=LARGEST_SIZE)]
GoogleTask = Literal[
    "TASK_TYPE_UNSPECIFIED",
    "RETRIEVAL_QUERY",
    "RETRIEVAL_DOCUMENT",
    "SEMANTIC_SIMILARITY",
    "CLASSIFICATION",
    "CLUSTERING",
    "QUESTION_ANSWERING",
    "FACT_VERIFICATION",
    "CODE_RETRIEVAL_QUERY",
]


class Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A multimodal input: its parts together become one vector."""

    content: Annotated[list[TextPart | ImagePart], Meta(min_length=1, max_length=MOST_PARTS)]


WireItems = list[str | int | float | list[int | float] | Content]
WireInput = str | WireItems
"""msgspec takes no union of two array types, so the kinds are told apart by the first item."""


class GoogleOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Gemini's own knobs (Phaseo's document)."""

    output_dimensionality: Size | None = None
    task_type: GoogleTask | None = None
    title: Name | None = None


class MistralOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Mistral's own knobs (Phaseo's document)."""

    output_dimension: Size | None = None
    output_dtype: Dtype | None = None


class EmbeddingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Knobs of one upstream API, under its name."""

    google: GoogleOptions | None = None
    mistral: MistralOptions | None = None


class Debug(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a caller wants to see of its request's journey; never sent upstream."""

    enabled: bool | None = None
    return_upstream_request: bool | None = None
    return_upstream_response: bool | None = None
    trace: bool | None = None
    trace_level: Literal["summary", "full"] | None = None

    def wanted(self) -> bool:
        """Whether anything is asked for: a true flag counts as enabled unless ``enabled`` is false."""
        if self.enabled is not None:
            return self.enabled
        return bool(self.return_upstream_request or self.return_upstream_response or self.trace)

    def flagged(self) -> bool:
        """Whether any flag at all is true, which needs permission even beside ``enabled: false``."""
        return bool(self.enabled or self.return_upstream_request or self.return_upstream_response or self.trace)


class CreateEmbeddingRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /v1/embeddings``; ``null`` means absent wherever a field is optional."""

    model: Annotated[str, Meta(min_length=1, max_length=LONGEST_NAME)]
    input: WireInput | None = None
    inputs: WireInput | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=0, le=LARGEST_SIZE)] | None = None
    input_type: Name | None = None
    user: Name | None = None
    provider: Name | Preferences | None = None
    embedding_options: EmbeddingOptions | None = None
    debug: Debug | None = None


class LenientRequest(CreateEmbeddingRequest, frozen=True, forbid_unknown_fields=False, kw_only=True):
    """The same under ``unknown_fields = "ignore"``: unknown top-level fields are skipped, never forwarded."""
