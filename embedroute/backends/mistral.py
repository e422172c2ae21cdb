"""Mistral's embeddings API.

Source: mistralai/platform-docs-public ``openapi.yaml`` (2026-08-21); it refuses unknown fields, ``user`` among them.
"""

from typing import ClassVar

from embedroute.backend import (
    Accepts,
    Batch,
    HTTPBackend,
    Secret,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
)
from embedroute.backends import _openai_response
from embedroute.backends._validation import check_base_url, check_values


class Mistral(HTTPBackend, frozen=True):
    """One account at Mistral; ``https://api.eu.mistral.ai/v1`` is its European host."""

    accepts: ClassVar[Accepts] = Accepts(
        dimensions=True,
        base64=True,
        dtypes=("float", "int8", "uint8", "binary", "ubinary"),
        options=("mistral",),
        max_inputs=256,
        max_tokens=16_384,
    )

    api_key: Secret
    base_url: str = "https://api.mistral.ai/v1"

    def __post_init__(self) -> None:
        """Refuse what no request could be written with."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Ask for base64 where its form is documented, which is for float alone."""
        exact = batch.dtype == "float"
        body = {
            "model": batch.model,
            "input": batch.texts,
            "encoding_format": "base64" if exact else "float",
            "output_dimension": batch.dimensions,
            "output_dtype": None if exact else batch.dtype,
        }
        return UpstreamRequest.json(
            f"{self.base_url.rstrip('/')}/embeddings", body, bearer=self.api_key
        )

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read OpenAI's shape; a quantised row is a list of integers, ⌈d/8⌉ of them for the binary kinds."""
        return _openai_response.read(batch, response, self.map_error)
