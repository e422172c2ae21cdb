"""Provides the backend for Google's Gemini API.

It uses the native API, because the OpenAI-compatible one does not support task types. Models up to
gemini-embedding-001 take the input type as ``taskType``; gemini-embedding-2 ignores that field and
takes it as a prefix of the text.

Source: ai.google.dev embeddings guide and googleapis/python-genai (2026-08-21).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Final, Literal
from urllib.parse import quote

import msgspec

from embedroute import vectors
from embedroute.backend import (
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
from embedroute.backends._data_urls import read_image
from embedroute.backends._json_scan import split_vectors, texts_to_array
from embedroute.backends._openai_response import first_count
from embedroute.backends._option_checks import check_base_url, check_values
from embedroute.errors import InvalidRequest, InvalidUpstreamResponse
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
"""Input type → task type and prefix."""

SECOND: Final = "gemini-embedding-2"
"""Start of the names of models that use prefixes. Their vectors have length 1 at any width."""

FULL_WIDTH: Final = 3072
"""Width below which the vectors of older models do not have length 1."""


class Embedding(msgspec.Struct, gc=False):
    """One vector, as a JSON list of numbers or as the mark of an extracted vector."""

    values: msgspec.Raw


class Detail(msgspec.Struct, rename="camel"):
    """The tokens of one modality, over all inputs."""

    modality: str
    token_count: int = 0


class Usage(msgspec.Struct, rename="camel"):
    """The billed tokens. Only gemini-embedding-2 reports them."""

    prompt_token_count: int | float | None = None
    prompt_token_details: list[Detail] = []


class Answer(msgspec.Struct, rename="camel"):
    """The response: one vector per request, in order."""

    embeddings: list[Embedding]
    usage_metadata: msgspec.Raw = msgspec.Raw()


GoogleTask = Literal[
    "",
    "TASK_TYPE_UNSPECIFIED",
    "RETRIEVAL_QUERY",
    "RETRIEVAL_DOCUMENT",
    "SEMANTIC_SIMILARITY",
    "CLASSIFICATION",
    "CLUSTERING",
    "QUESTION_ANSWERING",
    "FACT_VERIFICATION",
    "CODE_RETRIEVAL_QUERY",
]
"""The values of ``task_type``; the first two count as absent."""


class GoogleOptions(Options, frozen=True, kw_only=True):
    """The parameters of Google's APIs, as Phaseo documents them."""

    namespace: ClassVar[str] = "google"

    output_dimensionality: Annotated[Size | None, sets("dimensions")] = None
    task_type: Annotated[GoogleTask | None, sets("input_type")] = None
    title: Annotated[Name | None, sets("title")] = None


class Gemini(HTTPBackend, frozen=True, kw_only=True):
    """The Gemini API (``generativelanguage.googleapis.com``)."""

    accepts: ClassVar[Accepts] = Accepts(
        modalities=("text", "image"),
        dimensions=True,
        input_types=tuple(TASKS),
        options=("google",),
        max_inputs=100,
        max_bytes=3 * 1024 * 1024,  # the API rejects 4 MiB, and JSON escapes lengthen a text
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (GoogleOptions,)

    api_key: Secret
    base_url: str = "https://generativelanguage.googleapis.com/v1beta"

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build one request per input. The key goes in a header, because URLs are logged.

        Raises:
            InvalidRequest: an input without text needs a prefix, or an image is not a base64
                ``data:`` URL.
        """
        title = batch.options.get("title") if batch.input_type == "document" else None
        name = batch.model.removeprefix("models/")
        settings = {"outputDimensionality": batch.dimensions} if batch.dimensions else {}
        contents = batch.parts or [(TextPart(text),) for text in batch.texts]
        requests = [
            {
                "model": f"models/{name}",
                **encode_content(name, parts, batch.input_type, title),
                **settings,
            }
            for parts in contents
        ]
        url = f"{self.base_url.rstrip('/')}/models/{quote(name, safe='')}:batchEmbedContents"
        return UpstreamRequest.json(
            url, {"requests": requests}, headers={"x-goog-api-key": self.api_key}
        )

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors, and normalise those that the model does not normalise."""
        answer, texts = split_vectors(
            response,
            Answer,
            "values",
            lambda answer: [row.values for row in answer.embeddings],
            len(batch),
        )
        if not all(text[0] == ord("[") for text in texts):
            raise InvalidUpstreamResponse("The upstream returned rows that are not lists.")
        usage = _decode_usage(answer.usage_metadata)
        tokens = first_count(usage.prompt_token_count)
        array = texts_to_array(texts, width=batch.width)
        modality_tokens = {
            detail.modality.lower(): detail.token_count
            for detail in usage.prompt_token_details
            if detail.token_count > 0
        }
        is_normalized = SECOND in batch.model or array.shape[1] >= FULL_WIDTH
        if not is_normalized:
            array = vectors.unit(array)
        return Vectors(array, tokens, modality_tokens)


def _decode_usage(raw: msgspec.Raw) -> Usage:
    try:
        return msgspec.json.decode(raw, type=Usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Usage()


def encode_content(
    model: str, parts: Sequence[Part], input_type: str | None, title: str | None
) -> dict[str, object]:
    """Return the fields of a request for one input: ``content``, ``taskType`` and ``title``.

    Raises:
        InvalidRequest: an input without text needs a prefix, or an image is not a base64
            ``data:`` URL.
    """
    encode = _content_with_prefix if SECOND in model else _content_with_task_type
    return encode(parts, input_type, title)


def _content_with_task_type(
    parts: Sequence[Part], input_type: str | None, title: str | None
) -> dict[str, object]:
    task_type = {"taskType": TASKS[input_type][0]} if input_type else {}
    title_field = {"title": title} if title else {}
    return {
        "content": {"parts": [_encode_part(part) for part in parts]},
        **task_type,
        **title_field,
    }


def _content_with_prefix(
    parts: Sequence[Part], input_type: str | None, title: str | None
) -> dict[str, object]:
    encoded = [_encode_part(part) for part in parts]
    if input_type:
        prefix = f"title: {title} | text: " if title else TASKS[input_type][1]
        text_indexes = (index for index, part in enumerate(parts) if isinstance(part, TextPart))
        first = next(text_indexes, None)
        if first is None:
            raise InvalidRequest(
                "This model takes 'input_type' as a prefix of a text. "
                "Add a text part to each image, or omit 'input_type'.",
                param="input_type",
            )
        encoded[first] = {"text": f"{prefix}{encoded[first]['text']}"}
    return {"content": {"parts": encoded}}


def _encode_part(part: Part) -> dict[str, object]:
    if isinstance(part, TextPart):
        return {"text": part.text}
    image = read_image(part)
    return {"inline_data": {"mime_type": image.media_type, "data": image.payload}}
