"""Google's Gemini API, in its own shape: the OpenAI-like door of it knows no task types.

Source: ai.google.dev embeddings guide and googleapis/python-genai (2026-08-21). What an input is for is a
``taskType`` up to gemini-embedding-001; gemini-embedding-2 ignores that and wants it written before the text.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final
from urllib.parse import quote

import msgspec

from embedroute import vectors
from embedroute.backend import (
    Accepts,
    Batch,
    HTTPBackend,
    Secret,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
)
from embedroute.backends._json_scan import array_of_texts, split_vectors
from embedroute.backends._openai_response import first_count
from embedroute.backends._validation import check_base_url, check_values
from embedroute.errors import InvalidUpstreamResponse, UpstreamRejectedInput
from embedroute.inputs import Part, TextPart

TASKS: Final[Mapping[str, tuple[str, str]]] = {
    "query": ("RETRIEVAL_QUERY", "task: search result | query: "),
    "document": ("RETRIEVAL_DOCUMENT", "title: none | text: "),
    "classification": ("CLASSIFICATION", "task: classification | query: "),
    "clustering": ("CLUSTERING", "task: clustering | query: "),
    "similarity": ("SEMANTIC_SIMILARITY", "task: sentence similarity | query: "),
    "qa": ("QUESTION_ANSWERING", "task: question answering | query: "),
    "fact_check": ("FACT_VERIFICATION", "task: fact checking | query: "),
    "code_query": ("CODE_RETRIEVAL_QUERY", "task: code retrieval | query: "),
}
"""Neutral word → task type, prefix."""

SECOND: Final = "gemini-embedding-2"
"""Begins the names of the models that want prefixes and answer vectors of length 1 at any width."""

FULL_WIDTH: Final = 3072
"""Narrower than this, an older model answers vectors that are not of length 1."""


class Embedding(msgspec.Struct, gc=False):
    """One vector: a list of numbers in JSON, or the mark of what was taken out."""

    values: msgspec.Raw


class Detail(msgspec.Struct, rename="camel"):
    """The tokens of one modality, over all inputs."""

    modality: str
    token_count: int = 0


class Usage(msgspec.Struct, rename="camel"):
    """What the call was billed; only gemini-embedding-2 says so."""

    prompt_token_count: int | float | None = None
    prompt_token_details: list[Detail] = []


class Answer(msgspec.Struct, rename="camel"):
    """One vector per request, in their order."""

    embeddings: list[Embedding]
    usage_metadata: msgspec.Raw = msgspec.Raw()


class Gemini(HTTPBackend, frozen=True, kw_only=True):
    """One account at the Gemini API (``generativelanguage.googleapis.com``)."""

    accepts: ClassVar[Accepts] = Accepts(
        modalities=("text", "image"),
        dimensions=True,
        input_types=tuple(TASKS),
        options=("google",),
        max_inputs=100,
        max_bytes=3 * 1024 * 1024,  # a body of 4 MiB is refused, and JSON may lengthen a text
    )

    api_key: Secret
    base_url: str = "https://generativelanguage.googleapis.com/v1beta"

    def __post_init__(self) -> None:
        """Refuse what no request could be written with."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Write one request per input; the key goes in a header, for an URL shows in logs.

        Raises:
            UpstreamRejectedInput: a title without a document, or an input type for an image alone.
        """
        title = batch.options.get("title")
        if title is not None and batch.input_type != "document":
            raise UpstreamRejectedInput(
                "'title' goes with the task type RETRIEVAL_DOCUMENT only; set that, or leave 'title' out.",
                param="embedding_options.google.title",
            )
        name = batch.model.removeprefix("models/")
        write = _prefixed if SECOND in name else _tasked
        settings = {"outputDimensionality": batch.dimensions} if batch.dimensions else {}
        contents = batch.parts or [(TextPart(text),) for text in batch.texts]
        requests = [
            {"model": f"models/{name}", **write(parts, batch.input_type, title), **settings}
            for parts in contents
        ]
        url = f"{self.base_url.rstrip('/')}/models/{quote(name, safe='')}:batchEmbedContents"
        return UpstreamRequest.json(
            url, {"requests": requests}, headers={"x-goog-api-key": self.api_key}
        )

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors, and scale those to length 1 that the model leaves as they fall."""
        answer, texts = split_vectors(
            response,
            Answer,
            "values",
            lambda said: [row.values for row in said.embeddings],
            len(batch),
        )
        if not all(text[0] == ord("[") for text in texts):
            raise InvalidUpstreamResponse("The upstream's rows are not lists of numbers.")
        usage = _usage(answer.usage_metadata)
        tokens = first_count(usage.prompt_token_count)
        found = array_of_texts(texts, width=batch.width)
        split = {
            detail.modality.lower(): detail.token_count
            for detail in usage.prompt_token_details
            if detail.token_count > 0
        }
        plain = SECOND in batch.model or found.shape[1] >= FULL_WIDTH
        return Vectors(found if plain else vectors.unit(found), tokens, split)


def _usage(said: msgspec.Raw) -> Usage:
    try:
        return msgspec.json.decode(said, type=Usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Usage()


def _tasked(parts: Sequence[Part], input_type: str | None, title: str | None) -> dict[str, object]:
    asked = {"taskType": TASKS[input_type][0]} if input_type else {}
    named = {"title": title} if title else {}
    return {"content": {"parts": [_part(part) for part in parts]}, **asked, **named}


def _prefixed(
    parts: Sequence[Part], input_type: str | None, title: str | None
) -> dict[str, object]:
    written = [_part(part) for part in parts]
    if input_type:
        prefix = f"title: {title} | text: " if title else TASKS[input_type][1]
        first = next(
            (place for place, part in enumerate(parts) if isinstance(part, TextPart)), None
        )
        if first is None:
            raise UpstreamRejectedInput(
                "'input_type' is told to this model in words, so an image needs a text beside it; leave 'input_type' out.",
                param="input_type",
            )
        written[first] = {"text": f"{prefix}{written[first]['text']}"}
    return {"content": {"parts": written}}


def _part(part: Part) -> dict[str, object]:
    if isinstance(part, TextPart):
        return {"text": part.text}
    media_type, comma, payload = part.image_url.url.removeprefix("data:").partition(";base64,")
    if not comma:
        raise UpstreamRejectedInput(
            "This model takes images as base64 'data:' URLs only.", param="input"
        )
    return {"inline_data": {"mime_type": media_type, "data": payload}}
