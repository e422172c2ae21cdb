"""Provides the backend for Ollama's own embeddings API.

The vectors have length 1, also after they were truncated to ``dimensions``. The OpenAI-compatible
API of the same server is used if ``base_url`` ends in ``/v1``. It has no options, and cuts texts
that are too long without a sign.

Source: ollama/ollama ``server/routes.go`` and ``docs/api.md`` (2026-08-21).
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar

import msgspec

from embedroute.backend import (
    KEEPS_VECTORS,
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
from embedroute.backends._openai_response import first_count
from embedroute.backends._option_checks import check_base_url, check_values, refuse_options
from embedroute.backends.openai import OpenAI


class Answer(msgspec.Struct):
    """The response: one vector per input, in order."""

    embeddings: list[msgspec.Raw]
    prompt_eval_count: object = None
    model: object = None


class OllamaOptions(Options, frozen=True, kw_only=True):
    """The parameters of ``/api/embed``. ``options`` are added to the ``model_options``."""

    namespace: ClassVar[str] = "ollama"

    truncate: Annotated[bool | None, sets("truncate", TRUNCATES)] = None
    dimensions: Annotated[Size | None, sets("dimensions")] = None
    keep_alive: Annotated[Name | int | None, KEEPS_VECTORS] = None
    options: dict[Name, bool | int | float | Name] | None = None


class Ollama(HTTPBackend, frozen=True, kw_only=True, dict=True):
    """An Ollama server, or ``https://ollama.com`` with an API key.

    ``truncate`` is whether the server cuts a text that is longer than the context of the model. The
    context is ``num_ctx`` in ``model_options``; if it is not set, the server chooses it by the
    memory of the GPU. ``keep_alive`` is how long the model stays loaded: ``5m``, or seconds.
    """

    accepts: ClassVar[Accepts] = Accepts(
        dimensions=True, truncate=("none", "end"), options=("ollama",)
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (OllamaOptions,)

    api_key: Secret | None = None
    base_url: str = "http://localhost:11434"
    truncate: bool = False
    keep_alive: str | int | None = None
    model_options: Mapping[str, bool | int | float | str] = {}

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request for Ollama's own API, or for the compatible one."""
        if self._compatible is not None:
            refuse_options(batch)
            return self._compatible.build(batch)
        body = {
            "model": batch.model,
            "input": batch.texts,
            "truncate": batch.truncate == "end" if batch.truncate else self.truncate,
            "dimensions": batch.dimensions,
            "keep_alive": batch.options.get("keep_alive", self.keep_alive),
            "options": {**self.model_options, **batch.options.get("options", {})} or None,
        }
        return UpstreamRequest.json(
            f"{self.base_url.rstrip('/')}/api/embed", body, bearer=self.api_key
        )

    @cached_property
    def _compatible(self) -> OpenAI | None:
        """The backend for the OpenAI-compatible API, if ``base_url`` is its address."""
        is_compatible = self.base_url.rstrip("/").endswith("/v1")
        return OpenAI(api_key=self.api_key, base_url=self.base_url) if is_compatible else None

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors, and the count of evaluated tokens."""
        if self._compatible is not None:
            return self._compatible.parse(batch, response)
        answer, texts = split_vectors(
            response,
            Answer,
            "embeddings",
            lambda answer: answer.embeddings,
            len(batch),
            in_one_list=True,
        )
        array = texts_to_array(texts, width=batch.width)
        model = answer.model if isinstance(answer.model, str) else None
        return Vectors(array, first_count(answer.prompt_eval_count), model=model)
