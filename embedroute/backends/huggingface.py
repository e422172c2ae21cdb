"""Provides the backend for Hugging Face's inference providers (feature extraction).

The API reports no usage. A model without a pooling layer returns one vector per token, which is
refused.

Not verified: the limit of inputs per call.

Source: huggingface_hub 2.4.0 ``inference/_client.py`` and the feature extraction task reference.
"""

from typing import Annotated, ClassVar, Literal
from urllib.parse import quote

import msgspec

from embedroute.backend import (
    TRUNCATES,
    Accepts,
    Batch,
    HTTPBackend,
    Name,
    Options,
    Secret,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
    sets,
)
from embedroute.backends._json_scan import split_vectors, texts_to_array
from embedroute.backends._openai_response import count_in_headers
from embedroute.backends._option_checks import check_base_url, check_values
from embedroute.errors import InvalidUpstreamResponse


class HuggingFaceOptions(Options, frozen=True, kw_only=True):
    """The parameters of feature extraction."""

    namespace: ClassVar[str] = "huggingface"

    normalize: bool | None = None
    truncate: Annotated[bool | None, sets("truncate", TRUNCATES)] = None
    truncation_direction: Literal["left", "right"] | None = None
    prompt_name: Name | None = None


class HuggingFace(HTTPBackend, frozen=True, kw_only=True):
    """The router of Hugging Face.

    ``normalize`` is whether vectors are scaled to length 1, and ``truncate`` whether the API cuts a
    text that is longer than the model's context, at the side ``truncation_direction``. If one is
    None, the server decides. ``prompt_name`` names the prompt of the model's configuration that is
    put before each text.
    """

    accepts: ClassVar[Accepts] = Accepts(
        truncate=("none", "start", "end"), options=("huggingface",), max_inputs=32
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (HuggingFaceOptions,)

    api_key: Secret
    base_url: str = "https://router.huggingface.co/hf-inference"
    normalize: bool | None = True
    truncate: bool | None = False
    truncation_direction: Literal["left", "right"] | None = None
    prompt_name: str | None = None

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request; the name of the model is part of the path."""
        model = quote(batch.model, safe="/")
        truncate, direction = self.truncate, self.truncation_direction
        if batch.truncate is not None:
            truncate = batch.truncate != "none"
            direction = "left" if batch.truncate == "start" else "right" if truncate else None
        body = {
            "inputs": batch.texts,
            "normalize": self.normalize,
            "truncate": truncate,
            "truncation_direction": direction,
            "prompt_name": self.prompt_name,
            **batch.options,
        }
        url = f"{self.base_url.rstrip('/')}/models/{model}/pipeline/feature-extraction"
        return UpstreamRequest.json(url, body, bearer=self.api_key)

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors, which are the complete body."""
        _, texts = split_vectors(
            response,
            list[msgspec.Raw],
            "",
            lambda rows: rows,
            len(batch),
            in_one_list=True,
        )
        if any(bytes(text[1:]).lstrip()[:1] == b"[" for text in texts):
            raise InvalidUpstreamResponse(
                "The upstream returned one vector per token. Use a model with a pooling layer."
            )
        array = texts_to_array(texts, width=batch.width)
        return Vectors(array, count_in_headers(response.headers))
