"""Provides the backend for the own API of Hugging Face's Text Embeddings Inference (TEI).

A TEI server embeds with one model and ignores the name in a request. Its OpenAI-compatible API is
used if ``base_url`` ends in ``/v1``. It has neither prompts nor the other options.

Token ids must be of the vocabulary of the served model, so they are not accepted by default. Set
``accepts = { tokens = true }`` if the clients use its tokenizer.

Source: huggingface/text-embeddings-inference 1.9.3 ``docs/openapi.json`` and ``router/src``.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import msgspec

from embedroute.backend import (
    TRUNCATES,
    Accepts,
    Batch,
    HTTPBackend,
    Name,
    Options,
    Secret,
    Size,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
    sets,
)
from embedroute.backends._json_scan import split_vectors, texts_to_array
from embedroute.backends._openai_response import count_in_headers
from embedroute.backends._option_checks import check_base_url, check_values, refuse_options
from embedroute.backends.openai import OpenAI
from embedroute.errors import InvalidUpstreamResponse


class TEIOptions(Options, frozen=True, kw_only=True):
    """The parameters of ``/embed``."""

    namespace: ClassVar[str] = "tei"

    normalize: bool | None = None
    truncate: Annotated[bool | None, sets("truncate", TRUNCATES)] = None
    truncation_direction: Literal["Left", "Right"] | None = None
    prompt_name: Name | None = None
    dimensions: Annotated[Size | None, sets("dimensions")] = None


class TEI(HTTPBackend, frozen=True, kw_only=True, dict=True):
    """A TEI server.

    ``truncate`` is whether the server cuts a text that is longer than the context of the model, at
    the side ``truncation_direction``; None leaves it to the server. ``prompts`` maps the neutral
    input types to names of prompts in the configuration of the model, for endpoints whose
    ``accepts`` lists input types; ``prompt_name`` is for requests without one.
    """

    serves_one_model: ClassVar[bool] = True
    accepts: ClassVar[Accepts] = Accepts(
        dimensions=True,
        truncate=("none", "start", "end"),
        options=("tei",),
        max_inputs=32,
        max_bytes=1_500_000,
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (TEIOptions,)

    api_key: Secret | None = None
    base_url: str = "http://localhost:3000"
    normalize: bool = True
    truncate: bool | None = False
    truncation_direction: Literal["left", "right"] | None = None
    prompt_name: str | None = None
    prompts: Mapping[str, str] = {}

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request for TEI's own API, or for the compatible one."""
        if self._compatible is not None:
            refuse_options(batch)
            return self._compatible.build(batch)
        truncate, direction = self.truncate, self.truncation_direction
        if batch.truncate is not None:
            truncate = batch.truncate != "none"
            direction = "left" if batch.truncate == "start" else "right" if truncate else None
        body = {
            "inputs": batch.texts or batch.tokens,
            "normalize": self.normalize,
            "truncate": truncate,
            "truncation_direction": direction and direction.title(),
            "prompt_name": self._get_prompt(batch.input_type),
            "dimensions": batch.dimensions,
            **batch.options,
        }
        url = f"{self.base_url.rstrip('/')}/embed"
        return UpstreamRequest.json(url, body, bearer=self.api_key)

    @cached_property
    def _compatible(self) -> OpenAI | None:
        """The backend for the OpenAI-compatible API, if ``base_url`` is its address."""
        is_compatible = self.base_url.rstrip("/").endswith("/v1")
        return OpenAI(api_key=self.api_key, base_url=self.base_url) if is_compatible else None

    def _get_prompt(self, input_type: str | None) -> str | None:
        return self.prompts.get(input_type, input_type) if input_type else self.prompt_name

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors, which are the complete body, and the tokens, which are in a header."""
        if self._compatible is not None:
            return self._compatible.parse(batch, response)
        return read_rows(batch, response)


def read_rows(batch: Batch, response: UpstreamResponse) -> Vectors:
    """Read a response that is a list of vectors.

    Raises:
        InvalidUpstreamResponse: it is another JSON, or it has one vector per token.
    """
    _, texts = split_vectors(
        response, list[msgspec.Raw], "", lambda rows: rows, len(batch), in_one_list=True
    )
    if any(bytes(text[1:]).lstrip()[:1] == b"[" for text in texts):
        raise InvalidUpstreamResponse(
            "The upstream returned one vector per token. Use a model with a pooling layer."
        )
    return Vectors(texts_to_array(texts, width=batch.width), count_in_headers(response.headers))
