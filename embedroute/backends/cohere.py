"""Provides the backend for Cohere's embed API, version 2.

Texts are sent as ``texts``. Content parts are sent as ``inputs``, which need embed-v4.0 or later.
The models of version 3 take one image per call, as ``images``.

Not verified: that the base64 vectors are little-endian (``encoding_format = "base64"``).

Source: cohere-ai/cohere-developer-experience ``cohere-openapi.yaml`` (2026-08-20).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Final, Literal

import msgspec

from embedroute.backend import (
    KEEPS_VECTORS,
    Accepts,
    Batch,
    HTTPBackend,
    Options,
    Secret,
    Size,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
    sets,
)
from embedroute.backends._json_scan import split_vectors, texts_to_array
from embedroute.backends._openai_response import count_in_headers, first_count
from embedroute.backends._option_checks import check_base_url, check_values
from embedroute.errors import BatchTooLarge, UpstreamRejectedInput
from embedroute.inputs import ImagePart, Part

INPUT_TYPES: Final[Mapping[str, str]] = {
    "query": "search_query",
    "document": "search_document",
    "classification": "classification",
    "clustering": "clustering",
    "image": "image",
}
"""Neutral input type → Cohere's."""

VERSION_3: Final = "-v3.0"
"""End of the names of models that take one image per call, and only as ``images``."""


class BilledUnits(msgspec.Struct):
    """The tokens of a call, by modality."""

    input_tokens: object = None
    image_tokens: object = None


class Meta(msgspec.Struct):
    """What a call cost."""

    billed_units: BilledUnits | None = None


class Answer(msgspec.Struct):
    """The response: for each of ``embedding_types`` a list of vectors, in order."""

    embeddings: dict[str, list[msgspec.Raw] | None]
    meta: msgspec.Raw = msgspec.Raw()


class CohereOptions(Options, frozen=True, kw_only=True):
    """The parameters of Embed v2. ``max_tokens`` is the number of tokens to which a text is cut."""

    namespace: ClassVar[str] = "cohere"

    input_type: Annotated[
        Literal["search_query", "search_document", "classification", "clustering", "image"] | None,
        sets("input_type"),
    ] = None
    output_dimension: Annotated[Size | None, sets("dimensions")] = None
    embedding_types: Annotated[
        Annotated[
            list[Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]],
            msgspec.Meta(min_length=1, max_length=1),
        ]
        | None,
        sets("dtype", {"base64": "float"}),
    ] = None
    truncate: Annotated[Literal["NONE", "START", "END"] | None, sets("truncate")] = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=128_000)] | None = None
    priority: Annotated[Annotated[int, msgspec.Meta(ge=0, le=999)] | None, KEEPS_VECTORS] = None


class Cohere(HTTPBackend, frozen=True, kw_only=True):
    """The Cohere API.

    Current models require an input type; a request without one is sent with ``default_input_type``.
    ``truncate`` is what the API does with a text that is longer than the model's context: refuse it
    (``NONE``), or cut its start or end. ``encoding_format`` is how floats are requested.
    """

    accepts: ClassVar[Accepts] = Accepts(
        modalities=("text", "image"),
        dimensions=True,
        input_types=tuple(INPUT_TYPES),
        dtypes=("float", "int8", "uint8", "binary", "ubinary"),
        truncate=("none", "start", "end"),
        options=("cohere",),
        max_inputs=96,
        max_bytes=20 * 1024 * 1024,
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (CohereOptions,)

    api_key: Secret
    base_url: str = "https://api.cohere.com"
    default_input_type: Literal[
        "search_query", "search_document", "classification", "clustering"
    ] = "search_document"
    truncate: Literal["NONE", "START", "END"] = "NONE"
    encoding_format: Literal["float", "base64"] = "float"

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request for one type of embedding.

        Raises:
            BatchTooLarge: the call has several images, and the model takes one.
            UpstreamRejectedInput: the model does not take text and images in one input, or the
                input type ``image`` is set for a text.
        """
        body = {
            "model": batch.model,
            "input_type": self._get_input_type(batch),
            **_encode_inputs(batch),
            "embedding_types": [self._get_type(batch)],
            "output_dimension": batch.dimensions,
            "truncate": batch.truncate.upper() if batch.truncate else self.truncate,
            "max_tokens": batch.options.get("max_tokens"),
            "priority": batch.options.get("priority"),
        }
        return UpstreamRequest.json(
            f"{self.base_url.rstrip('/')}/v2/embed", body, bearer=self.api_key
        )

    def _get_input_type(self, batch: Batch) -> str:
        if batch.model.endswith(VERSION_3) and batch.parts:
            return "image"
        if batch.input_type == "image" and batch.texts:
            raise UpstreamRejectedInput(
                "The input type 'image' is for images. Omit it, or send images.",
                param="input_type",
            )
        if batch.input_type is None:
            return self.default_input_type
        return INPUT_TYPES[batch.input_type]

    def _get_type(self, batch: Batch) -> str:
        return self.encoding_format if batch.dtype == "float" else batch.dtype

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors of the requested type, and the billed tokens."""
        kind = self._get_type(batch)
        answer, texts = split_vectors(
            response,
            Answer,
            kind,
            lambda answer: answer.embeddings[kind] or (),
            len(batch),
            in_one_list=True,
        )
        array = texts_to_array(texts, batch.dtype, batch.width)
        return Vectors(array, *_read_usage(answer.meta, response.headers))


def _encode_inputs(batch: Batch) -> dict[str, object]:
    if batch.texts:
        return {"texts": batch.texts}
    if not batch.model.endswith(VERSION_3):
        return {"inputs": [{"content": parts} for parts in batch.parts]}
    if len(batch.parts) > 1:
        raise BatchTooLarge("This model takes one image per call.")
    return {"images": [_get_only_image(batch.parts[0])]}


def _get_only_image(parts: Sequence[Part]) -> str:
    if len(parts) == 1 and isinstance(parts[0], ImagePart):
        return parts[0].image_url.url
    raise UpstreamRejectedInput(
        "This model takes one image per input. Send texts as strings, or use embed-v4.0.",
        param="input",
    )


def _read_usage(
    raw: msgspec.Raw, headers: Mapping[str, str]
) -> tuple[int | None, Mapping[str, int]]:
    """Return the billed tokens, and those of each modality if there are images."""
    try:
        units = msgspec.json.decode(raw, type=Meta).billed_units or BilledUnits()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        units = BilledUnits()
    counts = {"text": first_count(units.input_tokens), "image": first_count(units.image_tokens)}
    by_modality = {name: count for name, count in counts.items() if count}
    tokens = sum(by_modality.values()) or count_in_headers(headers)
    return tokens, by_modality if "image" in by_modality else {}
