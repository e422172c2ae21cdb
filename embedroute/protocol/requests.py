"""Defines the JSON body of ``POST /v1/embeddings`` as structs.

The OpenAPI document is generated from them. ``extra_json_schema`` is what ``input_kinds`` checks
after the decoder, so that its errors name the field.

It accepts the fields of all five documented systems (see ``dialects``). The ``provider`` object
holds the routing preferences, as OpenRouter and Phaseo document them. The tables at the end map
each vendor's values of ``input_type`` to neutral names. Their sources are the API references of
Cohere, Voyage, Gemini, Jina, NVIDIA, DashScope, Nomic, Amazon Nova and Azure.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from embedroute.backend import LARGEST_SIZE, LONGEST_NAME, Dtype, Name
from embedroute.inputs import ImagePart, TextPart

MOST_NAMES: Final = 64
"""Maximum names in a list."""

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
    """Limits at percentiles, in seconds or tokens per second; all that are set must be met."""

    p50: Cutoff | None = None
    p75: Cutoff | None = None
    p90: Cutoff | None = None
    p99: Cutoff | None = None

    def limits(self) -> dict[int, float]:
        """Return percentile → limit for those that are set."""
        return {
            int(name[1:]): value
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not None
        }


class MaxPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Maximum prices in USD, per million tokens (``prompt``, ``completion``) or per unit."""

    prompt: Amount | None = None
    completion: Amount | None = None
    request: Amount | None = None
    image: Amount | None = None
    audio: Amount | None = None

    def limits(self) -> dict[str, Decimal]:
        """Return kind → maximum price for those that are set; floats in their shortest form."""
        return {
            name: Decimal(str(value))
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not None
        }


class Sort(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The object form of ``sort``."""

    by: SortKey | None = None
    partition: Literal["model", "none"] | None = None


class Preferences(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which providers may serve a request, and in what order; every field is optional."""

    order: Annotated[Names | None, Meta(description="Providers to try first, in order.")] = None
    only: Annotated[Names | None, Meta(description="The only providers that may serve.")] = None
    ignore: Annotated[Names | None, Meta(description="Providers that may not serve.")] = None
    allow_fallbacks: Annotated[
        bool | None,
        Meta(description="`false`: only the first provider, or only those of `order`."),
    ] = None
    require_parameters: Annotated[
        bool | None,
        Meta(description="Only providers that support every parameter of the request."),
    ] = None
    data_collection: Annotated[
        Literal["allow", "deny"] | None,
        Meta(description="`deny`: only providers that do not store data."),
    ] = None
    zdr: Annotated[bool | None, Meta(description="Only providers with zero data retention.")] = None
    enforce_distillable_text: Annotated[
        bool | None, Meta(description="Only models whose output may be used for training.")
    ] = None
    quantizations: Annotated[
        Annotated[list[Quantization], Meta(max_length=MOST_NAMES)] | None,
        Meta(description="Only endpoints with one of these quantizations."),
    ] = None
    sort: Annotated[
        SortKey | Sort | None,
        Meta(description="Sort the providers by this instead of balancing by price."),
    ] = None
    max_price: Annotated[
        MaxPrice | None, Meta(description="Only providers that cost at most this.")
    ] = None
    preferred_max_latency: Annotated[
        Cutoff | Percentiles | None,
        Meta(description="Prefer providers with at most this latency in seconds."),
    ] = None
    preferred_min_throughput: Annotated[
        Cutoff | Percentiles | None,
        Meta(description="Prefer providers with at least these tokens per second."),
    ] = None
    include_alpha: Annotated[
        bool | None, Meta(description="Also use endpoints in the stage `alpha`.")
    ] = None

    def sort_key(self) -> SortKey | None:
        """The sort key, from either form of ``sort``."""
        return self.sort.by if isinstance(self.sort, Sort) else self.sort


NO_PREFERENCES: Final = Preferences()


def cutoffs(preference: float | Percentiles | None) -> dict[int, float]:
    """Return percentile → limit; a single number applies to the median."""
    if preference is None:
        return {}
    return preference.limits() if isinstance(preference, Percentiles) else {50: preference}


MOST_PARTS = 32
"""Maximum content parts of one input."""


class Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A multimodal input; its parts become one vector."""

    content: Annotated[list[TextPart | ImagePart], Meta(min_length=1, max_length=MOST_PARTS)]


WireText = Annotated[str, Meta(extra_json_schema={"minLength": 1})]
_ID_RANGE = {"minimum": 0, "maximum": LARGEST_SIZE}
WireId = (
    Annotated[int, Meta(extra_json_schema=_ID_RANGE)]
    | Annotated[float, Meta(extra_json_schema={**_ID_RANGE, "multipleOf": 1})]
)
WireIds = Annotated[list[WireId], Meta(extra_json_schema={"minItems": 1})]
WireItems = Annotated[
    list[WireText | WireId | WireIds | Content], Meta(extra_json_schema={"minItems": 1})
]
WireInput = WireText | WireItems
"""msgspec supports no union of two array types, so ``input_kinds`` separates the kinds of items."""


Truncate = Literal["none", "start", "end", "NONE", "START", "END"]
"""``truncate`` of a request: the neutral names, also as Cohere and NVIDIA write them."""


class Debug(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The debug output that a request enables; it is never sent upstream."""

    enabled: Annotated[
        bool | None, Meta(description="Absent: enabled if another field is true.")
    ] = None
    return_upstream_request: Annotated[
        bool | None, Meta(description="Return the bodies sent to providers.")
    ] = None
    return_upstream_response: Annotated[
        bool | None, Meta(description="Return the bodies received from providers.")
    ] = None
    trace: Annotated[bool | None, Meta(description="Return what happened, step by step.")] = None
    trace_level: Annotated[
        Literal["summary", "full"] | None, Meta(description="`summary` holds no values.")
    ] = None

    def is_enabled(self) -> bool:
        """Whether debug is enabled: by ``enabled`` or, if it is not set, by another true flag."""
        if self.enabled is not None:
            return self.enabled
        return bool(self.return_upstream_request or self.return_upstream_response or self.trace)

    def any_flag_set(self) -> bool:
        """Whether any flag is true; this needs permission even if ``enabled`` is false."""
        return bool(
            self.enabled
            or self.return_upstream_request
            or self.return_upstream_response
            or self.trace
        )


class CreateEmbeddingRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /v1/embeddings``; an optional field that is ``null`` counts as absent."""

    model: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=LONGEST_NAME,
            description="A model of `GET /v1/models`, optionally with a suffix such as `:query`.",
        ),
    ]
    input: Annotated[
        WireInput | None,
        Meta(description="One input or many: texts, token ids or content parts."),
    ] = None
    inputs: Annotated[WireInput | None, Meta(description="Another name of `input`.")] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Meta(description="`base64` returns little-endian float32 values; the default is `float`."),
    ] = None
    dimensions: Annotated[
        Annotated[int, Meta(ge=0, le=LARGEST_SIZE)]
        | Annotated[float, Meta(ge=0, le=LARGEST_SIZE, multiple_of=1)]
        | None,
        Meta(description="The length of the vectors; 0 counts as absent."),
    ] = None
    input_type: Annotated[
        Name | None, Meta(description="What the inputs are: `query`, `document`, …")
    ] = None
    user: Annotated[Name | None, Meta(description="An id of your end user.")] = None
    provider: Annotated[
        Name | Preferences | None,
        Meta(description="The provider to use, or preferences among providers."),
    ] = None
    output_dtype: Annotated[
        Dtype | None, Meta(description="The type of the numbers; the default is `float`.")
    ] = None
    truncate: Annotated[
        Truncate | None,
        Meta(description="Where to cut a text that is too long; `none` refuses it."),
    ] = None
    embedding_options: Annotated[
        dict[str, Any] | None, Meta(description="Parameters of single upstream APIs, by API.")
    ] = None
    debug: Annotated[Debug | None, Meta(description="Needs a key that may debug.")] = None


class LenientRequest(
    CreateEmbeddingRequest, frozen=True, forbid_unknown_fields=False, kw_only=True
):
    """The body if ``unknown_fields`` lists names: unknown top-level fields are checked later."""


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
"""Neutral input type → its spellings, in lower case.

Azure's ``text`` covers everything but queries and documents. It is mapped to ``similarity``, the
most general of these types.
"""

NEUTRAL: Final[Mapping[str, str]] = {
    spelling: neutral for neutral, spellings in SPELLINGS.items() for spelling in spellings
}
"""Spelling in lower case → neutral input type."""
