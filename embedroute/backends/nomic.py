"""Provides the backend for Nomic's Atlas embeddings API (texts).

Not verified: the limit of inputs per call, and that vectors of reduced width have length 1; the
gateway scales them.

Source: nomic-ai/nomic ``nomic/embed.py`` (2026-08).
"""

from typing import Annotated, ClassVar, Final, Literal

import msgspec

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
from embedroute.backends._json_scan import split_vectors, texts_to_array
from embedroute.backends._openai_response import read_usage
from embedroute.backends._option_checks import check_base_url, check_values

TASKS: Final = {
    "query": "search_query",
    "document": "search_document",
    "classification": "classification",
    "clustering": "clustering",
}
"""Neutral input type → task type."""


class Answer(msgspec.Struct):
    """The response: one vector per text, in order."""

    embeddings: list[msgspec.Raw]
    usage: msgspec.Raw = msgspec.Raw()
    model: str | None = None


class NomicOptions(Options, frozen=True, kw_only=True):
    """The parameters of Nomic's API."""

    namespace: ClassVar[str] = "nomic"

    task_type: Annotated[
        Literal["search_query", "search_document", "classification", "clustering"] | None,
        sets("input_type"),
    ] = None
    dimensionality: Annotated[Size | None, sets("dimensions")] = None
    long_text_mode: Annotated[
        Literal["truncate", "mean"] | None, sets("truncate", {"truncate": "end"})
    ] = None
    max_tokens_per_text: Annotated[int, msgspec.Meta(ge=1, le=8192)] | None = None


class Nomic(HTTPBackend, frozen=True, kw_only=True):
    """The Nomic Atlas API.

    A request without an input type is sent with ``default_task_type``. ``long_text_mode`` is what
    the API does with a text that is longer than ``max_tokens_per_text``: cut it, or average the
    vectors of its parts. It has no mode that refuses such a text.
    """

    accepts: ClassVar[Accepts] = Accepts(
        dimensions=True,
        input_types=tuple(TASKS),
        truncate=("end",),
        options=("nomic",),
        max_inputs=400,
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (NomicOptions,)

    api_key: Secret
    base_url: str = "https://api-atlas.nomic.ai/v1"
    default_task_type: Literal[
        "search_query", "search_document", "classification", "clustering"
    ] = "search_document"
    long_text_mode: Literal["truncate", "mean"] = "truncate"
    max_tokens_per_text: int = 8192

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request."""
        body = {
            "texts": batch.texts,
            "model": batch.model,
            "task_type": TASKS[batch.input_type] if batch.input_type else self.default_task_type,
            "dimensionality": batch.dimensions,
            "long_text_mode": "truncate" if batch.truncate else self.long_text_mode,
            "max_tokens_per_text": self.max_tokens_per_text,
            **batch.options,
        }
        return UpstreamRequest.json(
            f"{self.base_url.rstrip('/')}/embedding/text", body, bearer=self.api_key
        )

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors, which are lists of numbers."""
        answer, texts = split_vectors(
            response,
            Answer,
            "embeddings",
            lambda answer: answer.embeddings,
            len(batch),
            in_one_list=True,
        )
        array = texts_to_array(texts, width=batch.width)
        return Vectors(array, *read_usage(answer.usage, response.headers), model=answer.model)
