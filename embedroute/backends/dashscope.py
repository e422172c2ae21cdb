"""Provides the backend for Alibaba's Model Studio (DashScope), with its native API.

The native API takes the input type, which the OpenAI-compatible one does not. Multimodal models
(``…-vl-embedding``, ``multimodal-…``, ``tongyi-embedding-vision-…``) have an API of their own, in
which an input is one text or one image.

Not verified: that vectors have length 1, and the list of error codes.

Source: help.aliyun.com, Model Studio text and multimodal embedding API (2026-10-12).
"""

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Literal

import msgspec

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
from embedroute.backends._json_scan import split_vectors, texts_to_array
from embedroute.backends._openai_response import first_count, read_modalities, sort_by_index
from embedroute.backends._option_checks import check_base_url, check_values
from embedroute.errors import InvalidUpstreamResponse, UpstreamRejectedInput
from embedroute.inputs import Part, TextPart

TEXT_TYPES: Final = {"query": "query", "document": "document"}
"""Neutral input type → text type."""

MULTIMODAL: Final = re.compile(r"multimodal-|tongyi-embedding-vision|.*-vl-embedding")
"""Names of the models of the multimodal API."""


class Row(msgspec.Struct, gc=False):
    """One vector. The text API calls its index ``text_index``, the multimodal one ``index``."""

    embedding: msgspec.Raw
    text_index: int | None = None
    index: int | None = None


class Output(msgspec.Struct, gc=False):
    """The vectors, in any order."""

    embeddings: list[Row]


class Usage(msgspec.Struct):
    """The billed tokens; the multimodal API splits them."""

    total_tokens: object = None
    input_tokens: object = None
    image_tokens: object = None


class Answer(msgspec.Struct):
    """The response. An error may have the status 200, and then has a ``code`` and no output."""

    output: Output | None = None
    usage: msgspec.Raw = msgspec.Raw()
    code: str | None = None


class DashScopeOptions(Options, frozen=True, kw_only=True):
    """The parameters of Model Studio's APIs."""

    namespace: ClassVar[str] = "dashscope"

    text_type: Annotated[Literal["query", "document"] | None, sets("input_type")] = None
    dimension: Annotated[Size | None, sets("dimensions")] = None
    instruct: Name | None = None


class DashScope(HTTPBackend, frozen=True, kw_only=True):
    """The native DashScope API.

    ``base_url`` is that of the key's region: ``dashscope-intl`` (Singapore), ``dashscope``
    (Beijing), ``dashscope-us``, or the host of a workspace. ``instruct`` is the task that newer
    models read before a text that is not a document.
    """

    accepts: ClassVar[Accepts] = Accepts(
        modalities=("text", "image"),
        fetches=True,
        dimensions=True,
        input_types=tuple(TEXT_TYPES),
        options=("dashscope",),
        max_inputs=10,
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (DashScopeOptions,)

    api_key: Secret
    base_url: str = "https://dashscope-intl.aliyuncs.com/api/v1"
    instruct: str | None = None

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        if "/compatible-mode" in self.base_url:
            raise ValueError(
                "base_url is that of the OpenAI-compatible API; end it with /api/v1, "
                'or set backend = "dashscope-compatible"'
            )
        check_values(api_key=self.api_key)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request of the text API or the multimodal API.

        Raises:
            UpstreamRejectedInput: an input has several parts, which the API would not fuse, or a
                multimodal model gets an input type.
        """
        is_multimodal = bool(batch.parts) or MULTIMODAL.match(batch.model) is not None
        api = "multimodal-embedding" if is_multimodal else "text-embedding"
        encode = _encode_contents if is_multimodal else _encode_texts
        inputs, parameters = encode(batch)
        parameters |= {
            "dimension": batch.dimensions,
            "instruct": batch.options.get("instruct")
            or (None if batch.input_type == "document" else self.instruct),
        }
        chosen = {name: value for name, value in parameters.items() if value is not None}
        return UpstreamRequest.json(
            f"{self.base_url.rstrip('/')}/services/embeddings/{api}/{api}",
            {"model": batch.model, "input": inputs, "parameters": chosen or None},
            bearer=self.api_key,
        )

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors, sorted by their index."""
        answer, texts = split_vectors(response, Answer, "embedding", _list_rows, len(batch))
        if answer.output is None:
            if answer.code:
                raise self.map_error(UpstreamResponse(400, response.headers, response.content))
            raise InvalidUpstreamResponse("The upstream's response has no output.")
        indexes = [
            row.text_index if row.text_index is not None else row.index
            for row in answer.output.embeddings
        ]
        array = texts_to_array(sort_by_index(texts, indexes), width=batch.width)
        usage = _decode_usage(answer.usage)
        tokens = first_count(usage.total_tokens, usage.input_tokens)
        image = read_modalities({"image_tokens": usage.image_tokens})
        return Vectors(array, tokens, image)


def _list_rows(answer: Answer) -> Sequence[msgspec.Raw]:
    return [row.embedding for row in answer.output.embeddings] if answer.output else []


def _decode_usage(raw: msgspec.Raw) -> Usage:
    try:
        return msgspec.json.decode(raw, type=Usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Usage()


Encoded = tuple[dict[str, object], dict[str, object]]
"""The fields ``input`` and ``parameters`` of a request."""


def _encode_texts(batch: Batch) -> Encoded:
    text_type = batch.input_type and TEXT_TYPES[batch.input_type]
    return {"texts": batch.texts}, {"text_type": text_type}


def _encode_contents(batch: Batch) -> Encoded:
    if batch.input_type is not None:
        raise UpstreamRejectedInput(
            "The multimodal models take no input type. Omit it.", param="input_type"
        )
    contents = batch.parts or [(TextPart(text),) for text in batch.texts]
    return {"contents": [_encode_parts(parts) for parts in contents]}, {}


def _encode_parts(parts: Sequence[Part]) -> dict[str, object]:
    if len(parts) > 1:
        raise UpstreamRejectedInput(
            "DashScope embeds one text or one image per input. "
            "Send each part as an input of its own.",
            param="input",
        )
    [part] = parts
    return {"text": part.text} if isinstance(part, TextPart) else {"image": part.image_url.url}
