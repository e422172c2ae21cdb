"""Provides the backend for NVIDIA's embedding NIMs, hosted or on an own server.

Not verified: the default limit of inputs per call (none is documented), and the format of errors.

Source: docs.nvidia.com, NeMo Retriever embedding NIM 2.4 API reference, and
langchain-ai/langchain-nvidia (2026-08).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Final, Literal

from embedroute.backend import (
    Accepts,
    Batch,
    Dtype,
    HTTPBackend,
    Options,
    Secret,
    Size,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
    sets,
)
from embedroute.backends import _openai_response
from embedroute.backends._option_checks import check_base_url, check_values
from embedroute.errors import UpstreamRejectedInput
from embedroute.inputs import Part, TextPart

INPUT_TYPES: Final[Mapping[str, str]] = {
    "query": "query",
    "document": "passage",
    "code_query": "query",
}
"""Neutral input type → NVIDIA's."""

SUFFIXES: Final = ("-query", "-passage")
"""Ends of names of models that state the input type themselves."""


class NvidiaOptions(Options, frozen=True, kw_only=True):
    """The parameters of NVIDIA's API."""

    namespace: ClassVar[str] = "nvidia"

    input_type: Annotated[Literal["query", "passage"] | None, sets("input_type")] = None
    embedding_type: Annotated[Dtype | None, sets("dtype")] = None
    dimensions: Annotated[Size | None, sets("dimensions")] = None
    truncate: Annotated[Literal["NONE", "START", "END"] | None, sets("truncate")] = None


class Nvidia(HTTPBackend, frozen=True, kw_only=True):
    """The NVIDIA API, or a NIM at ``base_url`` (then a key is optional).

    Most models require an input type; a request without one is sent with ``default_input_type``,
    or without the field if that is ``omit``. ``truncate`` is what the API does with a text that is
    longer than the model's context: refuse it (``NONE``), or cut its start or end.
    """

    accepts: ClassVar[Accepts] = Accepts(
        modalities=("text", "image"),
        dimensions=True,
        base64=True,
        input_types=tuple(INPUT_TYPES),
        dtypes=("float", "int8", "uint8", "binary", "ubinary"),
        truncate=("none", "start", "end"),
        options=("nvidia",),
        max_inputs=50,
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (NvidiaOptions,)

    api_key: Secret | None = None
    base_url: str = "https://integrate.api.nvidia.com/v1"
    default_input_type: Literal["query", "passage", "omit"] = "passage"
    truncate: Literal["NONE", "START", "END"] = "NONE"

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request; for base64 if the vectors are floats.

        Raises:
            UpstreamRejectedInput: an input has several images or several texts.
        """
        is_float = batch.dtype == "float"
        body = {
            "model": batch.model,
            "input": batch.texts or [_encode_parts(parts) for parts in batch.parts],
            "modality": [_name_modality(parts) for parts in batch.parts] or None,
            "input_type": self._get_input_type(batch),
            "encoding_format": "base64" if is_float else "float",
            "embedding_type": None if is_float else batch.dtype,
            "dimensions": batch.dimensions,
            "truncate": batch.truncate.upper() if batch.truncate else self.truncate,
        }
        return UpstreamRequest.json(
            f"{self.base_url.rstrip('/')}/embeddings", body, bearer=self.api_key
        )

    def _get_input_type(self, batch: Batch) -> str | None:
        if batch.input_type is not None:
            return INPUT_TYPES[batch.input_type]
        if self.default_input_type == "omit" or batch.model.endswith(SUFFIXES):
            return None
        return self.default_input_type

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read a response in OpenAI's format; quantised rows are lists of integers."""
        return _openai_response.read(batch, response, self.map_error)


def _encode_parts(parts: Sequence[Part]) -> str:
    """Write an input as its text, a space and the data URL of its image."""
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    images = [part.image_url.url for part in parts if not isinstance(part, TextPart)]
    if len(texts) > 1 or len(images) > 1:
        raise UpstreamRejectedInput(
            "NVIDIA embeds one text, one image or one of each per input. Split the input.",
            param="input",
        )
    return " ".join([*texts, *images])


def _name_modality(parts: Sequence[Part]) -> str:
    kinds = {isinstance(part, TextPart) for part in parts}
    if len(kinds) > 1:
        return "text_image"
    return "text" if kinds == {True} else "image"
