"""The ``provider`` object: how a client words its routing preferences (OpenRouter's and Phaseo's documents).

The request as it stands on the wire: the union of what five documented systems accept, typed field by field.

The words for what an input is for: one neutral vocabulary, and how each vendor spells it.

Sources: the API references of Cohere, Voyage, Gemini, Jina, NVIDIA, DashScope, Nomic, Amazon Nova and Azure.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from embedroute.inputs import ImagePart, TextPart

LONGEST_NAME: Final = 512
"""Characters that a name may have: of a model, a provider, a user, a title or an input type."""
MOST_NAMES: Final = 64
"""Names that a list may hold."""

Name = Annotated[str, Meta(max_length=LONGEST_NAME)]
Names = Annotated[list[Name], Meta(max_length=MOST_NAMES)]
Amount = (
    Annotated[int, Meta(ge=0)]
    | Annotated[float, Meta(ge=0)]
    | Annotated[str, Meta(pattern=r"\A[0-9]{1,18}(\.[0-9]{1,18})?\Z")]
)
Cutoff = Annotated[int, Meta(ge=0)] | Annotated[float, Meta(ge=0)]
SortKey = Literal["price", "throughput", "latency", "exacto"]
Quantization = Literal["int4", "int8", "fp4", "fp6", "fp8", "fp16", "bf16", "fp32", "unknown"]


class Percentiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cut-offs at percentiles, in seconds or tokens a second; every given one must hold."""

    p50: Cutoff | None = None
    p75: Cutoff | None = None
    p90: Cutoff | None = None
    p99: Cutoff | None = None

    def given(self) -> dict[int, float]:
        """Percentile → cut-off, of those that are set."""
        return {
            int(name[1:]): value
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not None
        }


class MaxPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hard caps: ``prompt`` and ``completion`` in USD per million tokens, the others in USD per unit."""

    prompt: Amount | None = None
    completion: Amount | None = None
    request: Amount | None = None
    image: Amount | None = None
    audio: Amount | None = None

    def given(self) -> dict[str, Decimal]:
        """Kind → cap, of those that are set; a JSON number counts as its shortest decimal text."""
        return {
            name: Decimal(str(value))
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not None
        }


class Sort(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The long form of ``sort``."""

    by: SortKey | None = None
    partition: Literal["model", "none"] | None = None


class Preferences(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which providers may serve a request, and in what order; every field is optional."""

    order: Names | None = None
    only: Names | None = None
    ignore: Names | None = None
    allow_fallbacks: bool | None = None
    require_parameters: bool | None = None
    data_collection: Literal["allow", "deny"] | None = None
    zdr: bool | None = None
    enforce_distillable_text: bool | None = None
    quantizations: Annotated[list[Quantization], Meta(max_length=MOST_NAMES)] | None = None
    sort: SortKey | Sort | None = None
    max_price: MaxPrice | None = None
    preferred_max_latency: Cutoff | Percentiles | None = None
    preferred_min_throughput: Cutoff | Percentiles | None = None
    include_alpha: bool | None = None

    def sort_key(self) -> SortKey | None:
        """What to sort by, in either form."""
        return self.sort.by if isinstance(self.sort, Sort) else self.sort


NO_PREFERENCES: Final = Preferences()


def cutoffs(wish: float | Percentiles | None) -> dict[int, float]:
    """Percentile → cut-off; a bare number means the median."""
    if wish is None:
        return {}
    return wish.given() if isinstance(wish, Percentiles) else {50: wish}


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

    def is_enabled(self) -> bool:
        """Whether anything is asked for: a true flag counts as enabled unless ``enabled`` is false."""
        if self.enabled is not None:
            return self.enabled
        return bool(self.return_upstream_request or self.return_upstream_response or self.trace)

    def any_flag_set(self) -> bool:
        """Whether any flag at all is true, which needs permission even beside ``enabled: false``."""
        return bool(
            self.enabled
            or self.return_upstream_request
            or self.return_upstream_response
            or self.trace
        )


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


class LenientRequest(
    CreateEmbeddingRequest, frozen=True, forbid_unknown_fields=False, kw_only=True
):
    """The same under ``unknown_fields = "ignore"``: unknown top-level fields are skipped, never forwarded."""


SPELLINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "query": (
        "query",
        "search_query",
        "retrieval_query",
        "retrieval.query",
        "generic_retrieval",
        "text_retrieval",
    ),
    "document": (
        "document",
        "search_document",
        "retrieval_document",
        "retrieval.passage",
        "passage",
        "generic_index",
    ),
    "classification": ("classification",),
    "clustering": ("clustering", "separation"),
    "similarity": ("similarity", "semantic_similarity", "text-matching", "text"),
    "qa": ("qa", "question_answering"),
    "fact_check": ("fact_check", "fact_verification"),
    "code_query": ("code_query", "code_retrieval_query", "code.query", "nl2code.query"),
    "image": ("image", "image_retrieval"),
}
"""Neutral word → every spelling of it, in lower case. Azure's ``text``, which is for whatever is neither query nor
document, is read as the least special of its meanings.
"""

NEUTRAL: Final[Mapping[str, str]] = {
    spelling: word for word, spellings in SPELLINGS.items() for spelling in spellings
}
"""Spelling in lower case → neutral word."""

GOOGLE_TASKS: Final[Mapping[str, str | None]] = {
    "TASK_TYPE_UNSPECIFIED": None,
    "RETRIEVAL_QUERY": "query",
    "RETRIEVAL_DOCUMENT": "document",
    "SEMANTIC_SIMILARITY": "similarity",
    "CLASSIFICATION": "classification",
    "CLUSTERING": "clustering",
    "QUESTION_ANSWERING": "qa",
    "FACT_VERIFICATION": "fact_check",
    "CODE_RETRIEVAL_QUERY": "code_query",
}
"""Gemini's ``taskType`` → neutral word."""
