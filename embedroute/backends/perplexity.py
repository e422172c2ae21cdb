"""Provides the backend for Perplexity's embeddings API.

The API returns base64 of signed bytes, whose vectors are not normalised, or of packed bits. Floats
are made of the signed bytes, scaled to length 1. The bits of each byte are reversed, because the
API puts the first dimension into the lowest bit and other APIs into the highest.

The models ``pplx-embed-context-…`` have an API for contextualised chunks. Each input is sent as a
document of one chunk.

Not verified: that a set bit means a positive number.

Source: docs.perplexity.ai, embeddings (2026-11), and perplexityai 0.46.1.
"""

from typing import Annotated, ClassVar, Final, Literal

from msgspec.structs import replace

from embedroute import vectors
from embedroute.backend import (
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
from embedroute.backends import _openai_response
from embedroute.backends._contextualized import read_only_chunks
from embedroute.backends._option_checks import check_base_url, check_values

CONTEXT: Final = "pplx-embed-context-"

_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_BYTES: Final = {"ubinary": _REVERSED, "binary": bytes(byte ^ 0x80 for byte in _REVERSED)}
"""dtype → byte of the API → byte of the gateway; a ``binary`` number is 128 less."""


class PerplexityOptions(Options, frozen=True, kw_only=True):
    """The parameters of Perplexity's API."""

    namespace: ClassVar[str] = "perplexity"

    dimensions: Annotated[Size | None, sets("dimensions")] = None
    encoding_format: Annotated[
        Literal["base64_int8", "base64_binary"] | None,
        sets("dtype", {"base64_int8": "int8", "base64_binary": "binary"}),
    ] = None


class Perplexity(HTTPBackend, frozen=True, kw_only=True):
    """The Perplexity API."""

    accepts: ClassVar[Accepts] = Accepts(
        dimensions=True,
        dtypes=("float", "int8", "binary", "ubinary"),
        options=("perplexity",),
        max_inputs=512,
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (PerplexityOptions,)

    api_key: Secret
    base_url: str = "https://api.perplexity.ai/v1"

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request; the API takes no ``user`` and no input type."""
        is_contextual = batch.model.startswith(CONTEXT)
        body = {
            "model": batch.model,
            "input": [[text] for text in batch.texts] if is_contextual else batch.texts,
            "dimensions": batch.dimensions,
            "encoding_format": "base64_binary" if batch.dtype in _BYTES else "base64_int8",
        }
        path = "contextualizedembeddings" if is_contextual else "embeddings"
        return UpstreamRequest.json(
            f"{self.base_url.rstrip('/')}/{path}", body, bearer=self.api_key
        )

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read signed bytes or packed bits, and make the numbers of the dtype of them."""
        if batch.dtype in _BYTES:
            answer = self._read(replace(batch, dtype="ubinary"), response)
            rows = [row.tobytes().translate(_BYTES[batch.dtype]) for row in answer.array]
            return replace(answer, array=vectors.from_bytes(rows, batch.dtype))
        answer = self._read(replace(batch, dtype="int8"), response)
        if batch.dtype == "int8":
            return answer
        return replace(answer, array=vectors.unit(answer.array))

    def _read(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        if batch.model.startswith(CONTEXT):
            return read_only_chunks(batch, response)
        return _openai_response.read(batch, response, self.map_error)
