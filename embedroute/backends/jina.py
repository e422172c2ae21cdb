"""Provides the backend for Jina AI's embeddings API.

The vector of an input does not depend on the other inputs of a call, which the cache and the
splitting of batches rely on. ``late_chunking`` would change that, so it is not an option.

Not verified: that clip models accept no other task than ``retrieval.query``, and the tasks of
models that are not in the shipped catalogue. Set ``tasks`` for them.

Source: jina-ai/jina-on-prem ``models/catalog.json`` (2026-08-13) and the OpenAPI document of
api.jina.ai.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Final, Literal

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
from embedroute.backends import _openai_response
from embedroute.backends._option_checks import check_base_url, check_values
from embedroute.errors import UpstreamRejectedInput
from embedroute.inputs import Part, TextPart

_RETRIEVAL: Final = {"query": "retrieval.query", "document": "retrieval.passage"}

TASKS: Final[Mapping[str, Mapping[str, str]]] = {
    "jina-embeddings-v2": {},
    "jina-embeddings-v3": {
        **_RETRIEVAL,
        "classification": "classification",
        "clustering": "separation",
        "similarity": "text-matching",
    },
    "jina-embeddings-v4": {
        **_RETRIEVAL,
        "similarity": "text-matching",
        "code_query": "code.query",
    },
    "jina-embeddings-v5": {
        **_RETRIEVAL,
        "classification": "classification",
        "clustering": "clustering",
        "similarity": "text-matching",
    },
    "jina-code-embeddings": {
        "query": "nl2code.query",
        "document": "nl2code.passage",
        "code_query": "nl2code.query",
    },
    "jina-clip": {"query": "retrieval.query"},
}
"""Beginning of the names of models → neutral input type → task."""


class JinaOptions(Options, frozen=True, kw_only=True):
    """The parameters of Jina's API. A ``task`` without a neutral name is sent unchanged."""

    namespace: ClassVar[str] = "jina"

    task: Annotated[Name | None, sets("input_type")] = None
    dimensions: Annotated[Size | None, sets("dimensions")] = None
    embedding_type: Annotated[
        Literal["float", "base64", "binary", "ubinary"] | None, sets("dtype", {"base64": "float"})
    ] = None
    normalized: bool | None = None
    truncate: Annotated[bool | None, sets("truncate", TRUNCATES)] = None


class Jina(HTTPBackend, frozen=True, kw_only=True):
    """The Jina API.

    ``normalized`` is whether vectors have length 1. ``truncate`` is whether the API cuts a text
    that is longer than the model's context; by default it refuses the text. ``tasks`` maps neutral
    input types to the tasks to send instead of those of the model.
    """

    accepts: ClassVar[Accepts] = Accepts(
        modalities=("text", "image"),
        fetches=True,
        dimensions=True,
        base64=True,
        input_types=(
            *("query", "document", "classification", "clustering", "similarity", "code_query"),
        ),
        dtypes=("float", "binary", "ubinary"),
        truncate=("none", "end"),
        options=("jina",),
        max_inputs=512,
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (JinaOptions,)

    api_key: Secret
    base_url: str = "https://api.jina.ai/v1"
    normalized: bool = True
    truncate: bool = False
    tasks: Mapping[str, str] = {}

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request; by default for base64.

        Raises:
            UpstreamRejectedInput: an input has several parts, or the model has no such task.
        """
        task = batch.input_type and self._get_task(batch.model, batch.input_type)
        truncate = batch.truncate == "end" if batch.truncate else self.truncate
        body = {
            "model": batch.model,
            "input": batch.texts or [_encode_parts(parts) for parts in batch.parts],
            "task": batch.options.get("task") or task,
            "dimensions": batch.dimensions,
            "embedding_type": "base64" if batch.dtype == "float" else batch.dtype,
            "normalized": None if batch.options.get("normalized", self.normalized) else False,
            "truncate": truncate or None,
        }
        return UpstreamRequest.json(
            f"{self.base_url.rstrip('/')}/embeddings", body, bearer=self.api_key
        )

    def _get_task(self, model: str, input_type: str) -> str:
        families = (tasks for name, tasks in TASKS.items() if model.startswith(name))
        known = next(families, TASKS["jina-embeddings-v5"])
        task = self.tasks.get(input_type) or known.get(input_type)
        if task is None:
            raise UpstreamRejectedInput(
                f"This model has no task for the input type '{input_type}'. "
                f"Use {', '.join(known) or 'none'}.",
                param="input_type",
            )
        return task

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read a response in OpenAI's format; many models report only ``total_tokens``."""
        return _openai_response.read(batch, response, self.map_error)


def _encode_parts(parts: Sequence[Part]) -> dict[str, object]:
    """Encode the only part of an input: the API makes one vector of each text and each image."""
    if len(parts) > 1:
        raise UpstreamRejectedInput(
            "Jina embeds one text or one image per input. Send each part as an input of its own.",
            param="input",
        )
    [part] = parts
    if isinstance(part, TextPart):
        return {"text": part.text}
    url = part.image_url.url
    return {"image": url.partition(";base64,")[2] if url.startswith("data:") else url}
