"""Provides the backend for Voyage AI's embeddings APIs.

The name of a model decides which API is called: ``voyage-multimodal-…`` the multimodal one,
``voyage-context-…`` the one for contextualised chunks, and all others the one for texts. For
contextualised chunks, each input is sent as a document of one chunk.

Not verified: ``encoding_format`` of the multimodal API. Voyage's own client sends it, but the
reference calls the field ``output_encoding``. Numbers in place of base64 are read too.

Source: voyage-ai/voyageai-python (2026-07-01) and voyageai 0.5.0.
"""

from typing import Annotated, ClassVar, Final, Literal

from embedroute.backend import (
    TRUNCATES,
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
from embedroute.backends._contextualized import read_only_chunks
from embedroute.backends._option_checks import check_base_url, check_values
from embedroute.errors import UpstreamRejectedInput
from embedroute.inputs import Part, TextPart

INPUT_TYPES: Final = {"query": "query", "document": "document", "code_query": "query"}
"""Neutral input type → Voyage's. The code models have no type of their own for code queries."""

MULTIMODAL: Final = "voyage-multimodal"
CONTEXT: Final = "voyage-context"

ATLAS_KEY: Final = "al-"
"""Beginning of the keys of MongoDB Atlas, which has a host of its own."""


class VoyageOptions(Options, frozen=True, kw_only=True):
    """The parameters of Voyage's APIs."""

    namespace: ClassVar[str] = "voyage"

    input_type: Annotated[Literal["query", "document"] | None, sets("input_type")] = None
    truncation: Annotated[bool | None, sets("truncate", TRUNCATES)] = None
    output_dimension: Annotated[Size | None, sets("dimensions")] = None
    output_dtype: Annotated[Dtype | None, sets("dtype")] = None


class Voyage(HTTPBackend, frozen=True, kw_only=True):
    """The Voyage API. A key of MongoDB Atlas (``al-…``) is sent to ``ai.mongodb.com``.

    ``truncation`` is whether the API cuts a text that is longer than the model's context; by
    default it refuses the text.
    """

    accepts: ClassVar[Accepts] = Accepts(
        modalities=("text", "image"),
        fetches=True,
        dimensions=True,
        base64=True,
        input_types=tuple(INPUT_TYPES),
        dtypes=("float", "int8", "uint8", "binary", "ubinary"),
        truncate=("none", "end"),
        options=("voyage",),
        max_inputs=1000,
        max_tokens=120_000,
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (VoyageOptions,)

    api_key: Secret
    base_url: str | None = None
    truncation: bool = False

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        if self.base_url is not None:
            check_base_url(self.base_url)
        check_values(api_key=self.api_key)

    @property
    def _base_url(self) -> str:
        if self.base_url is not None:
            return self.base_url.rstrip("/")
        is_atlas = self.api_key.reveal().startswith(ATLAS_KEY)
        return "https://ai.mongodb.com/v1" if is_atlas else "https://api.voyageai.com/v1"

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request of the model's API, for base64, which follows the dtype.

        Raises:
            UpstreamRejectedInput: a model for chunks gets content parts, or is asked to cut texts.
        """
        path, fields = self._encode_inputs(batch)
        body = {
            **fields,
            "model": batch.model,
            "input_type": batch.input_type and INPUT_TYPES[batch.input_type],
            "encoding_format": "base64",
            "output_dimension": batch.dimensions,
            "output_dtype": None if batch.dtype == "float" else batch.dtype,
        }
        return UpstreamRequest.json(f"{self._base_url}/{path}", body, bearer=self.api_key)

    def _encode_inputs(self, batch: Batch) -> tuple[str, dict[str, object]]:
        """Return the path of the API and the fields of the inputs."""
        if batch.model.startswith(CONTEXT):
            if batch.parts:
                raise UpstreamRejectedInput(
                    "This model takes texts only. Use a multimodal model.", param="input"
                )
            if batch.truncate == "end":
                raise UpstreamRejectedInput(
                    "The API of this model cuts no text. Use 'none', or omit it.", param="truncate"
                )
            inputs = [[text] for text in batch.texts]
            return "contextualizedembeddings", {"inputs": inputs}
        cut = {"truncation": batch.truncate == "end" if batch.truncate else self.truncation}
        if batch.model.startswith(MULTIMODAL) or batch.parts:
            contents = batch.parts or [(TextPart(text),) for text in batch.texts]
            encoded = [{"content": [_encode_part(part) for part in parts]} for parts in contents]
            return "multimodalembeddings", {"inputs": encoded, **cut}
        return "embeddings", {"input": batch.texts, **cut}

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors; the usage of all APIs is ``total_tokens``."""
        if batch.model.startswith(CONTEXT):
            return read_only_chunks(batch, response)
        return _openai_response.read(batch, response, self.map_error)


def _encode_part(part: Part) -> dict[str, object]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    url = part.image_url.url
    kind = "image_base64" if url.startswith("data:") else "image_url"
    return {"type": kind, kind: url}
