"""Provides the backend for Mistral's embeddings API.

The API rejects unknown fields, including ``user``.

Source: mistralai/platform-docs-public ``openapi.yaml`` (2026-08-21).
"""

from typing import Annotated, ClassVar, Literal

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


class MistralOptions(Options, frozen=True, kw_only=True):
    """The parameters of Mistral's API; an empty string counts as absent."""

    namespace: ClassVar[str] = "mistral"

    output_dimension: Annotated[Size | None, sets("dimensions")] = None
    output_dtype: Annotated[Dtype | Literal[""] | None, sets("dtype")] = None


class Mistral(HTTPBackend, frozen=True):
    """The Mistral API. Its European host has the base URL ``https://api.eu.mistral.ai/v1``."""

    accepts: ClassVar[Accepts] = Accepts(
        dimensions=True,
        base64=True,
        dtypes=("float", "int8", "uint8", "binary", "ubinary"),
        truncate=("none",),
        options=("mistral",),
        max_inputs=256,
        max_tokens=16_384,
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (MistralOptions,)

    api_key: Secret
    base_url: str = "https://api.mistral.ai/v1"

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Request base64 for floats only: its format is not documented for the other dtypes."""
        is_float = batch.dtype == "float"
        body = {
            "model": batch.model,
            "input": batch.texts,
            "encoding_format": "base64" if is_float else "float",
            "output_dimension": batch.dimensions,
            "output_dtype": None if is_float else batch.dtype,
        }
        return UpstreamRequest.json(
            f"{self.base_url.rstrip('/')}/embeddings", body, bearer=self.api_key
        )

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read a response in OpenAI's format.

        A quantised row is a list of integers: d of them, or ⌈d/8⌉ for ``binary`` and ``ubinary``.
        """
        return _openai_response.read(batch, response, self.map_error)
