"""Reads responses in OpenAI's format: rows with an index, as base64 or numbers.

Some servers send an error in this format with status 200, so that is handled too.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Final, TypeVar, cast

import msgspec

from embedroute import vectors
from embedroute.backend import Batch, UpstreamResponse, Vectors, parse_token_count
from embedroute.backends._json_scan import (
    LONG,
    invalid_json,
    refuse_more_rows,
    split_vectors,
    texts_to_array,
)
from embedroute.errors import (
    InvalidUpstreamResponse,
    Rejected,
    UpstreamError,
    UpstreamUnavailable,
)

STATUSES: Final = {
    "context_length_exceeded": 400,
    "insufficient_quota": 429,
    "invalid_api_key": 401,
    "model_not_found": 404,
    "rate_limit_exceeded": 429,
    "server_error": 500,
}
"""The status that OpenAI sends with each error code, for errors with status 200."""

TOKEN_HEADERS: Final = ("num_tokens", "x-compute-tokens")
"""Headers in which Cohere and TEI report the tokens of a call."""

MODALITIES: Final = ("text", "image", "audio", "video")
"""The modalities of OpenRouter's ``prompt_tokens_details``; ``cached_tokens`` is not one."""

EMPTY: Final = frozenset({b"", b"null", b"false", b'""', b"{}", b"[]"})


class Row(msgspec.Struct, gc=False):
    """One vector, as base64 or numbers."""

    embedding: str | list[float]
    index: int | float | str | None = None


class LongRow(msgspec.Struct, gc=False):
    """One vector of a large response, as JSON or as the mark of an extracted vector."""

    embedding: msgspec.Raw
    index: int | float | str | None = None


class Usage(msgspec.Struct):
    """The billed tokens. Voyage and Jina report only a total, and OpenRouter also modalities.

    Voyage's ``text_tokens`` are those of the total that are not of images.
    """

    prompt_tokens: object = None
    total_tokens: object = None
    prompt_tokens_details: object = None
    text_tokens: object = None


class ErrorBody(msgspec.Struct):
    """The field of an error that identifies its kind."""

    code: int | str | None = None


class Answer(msgspec.Struct):
    """A response. The fields that may be malformed are decoded only when they are used."""

    data: list[Row] | None = None
    error: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    model: object = None


class LongAnswer(msgspec.Struct):
    """A large response. Its vectors are decoded in groups, so that other threads can run."""

    data: list[LongRow] | None = None
    error: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    model: msgspec.Raw = msgspec.Raw()


T = TypeVar("T")
_GET_INDEX: Final = attrgetter("index")
_GET_EMBEDDING: Final = attrgetter("embedding")
_USAGE: Final = msgspec.json.Decoder(Usage)


def read(
    batch: Batch, response: UpstreamResponse, map_error: Callable[[UpstreamResponse], UpstreamError]
) -> Vectors:
    """Read the vectors of a 2xx response, sorted by ``index``.

    Raises:
        InvalidVector: a vector contains null, NaN or Infinity.
        InvalidUpstreamResponse: the body has another format, or the indexes are not 0 … n-1.
        UpstreamError: the body is an error. ``map_error`` classifies it by the status that belongs
            to its code.
    """
    texts: Sequence[memoryview] = ()
    if len(response.content) < LONG:
        try:
            answer = response.json(Answer)
        except InvalidUpstreamResponse as error:
            raise invalid_json(error.message, response.content) from None
    else:
        answer, texts = split_vectors(response, LongAnswer, "embedding", _raw, len(batch))
    if answer.data is None or bytes(answer.error) not in EMPTY:
        raise _read_error(answer.error, response, map_error)
    count = len(batch)
    if len(answer.data) > count:
        refuse_more_rows(len(answer.data), count)
    indexes = list(map(_GET_INDEX, answer.data))
    is_sorted = indexes == list(range(len(indexes)))
    if isinstance(answer, LongAnswer):
        texts = texts if is_sorted else sort_by_index(texts, indexes)
        array = texts_to_array(texts, batch.dtype, batch.width)
        model = _decode_model(answer.model)
    else:
        rows: list[str | list[float]] = list(map(_GET_EMBEDDING, answer.data))
        rows = rows if is_sorted else [*sort_by_index(rows, indexes)]
        array = vectors.from_rows(rows, batch.dtype)
        model = answer.model if isinstance(answer.model, str) else None
    return Vectors(array, *read_usage(answer.usage, response.headers), model=model)


def _decode_model(model: msgspec.Raw) -> str | None:
    """Return the name of the model in a large response; None if it is not a text."""
    if len(bytes(model)) > LONG:
        return None
    try:
        return msgspec.json.decode(model, type=str | None)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _raw(answer: LongAnswer) -> list[msgspec.Raw]:
    return [row.embedding for row in answer.data or ()]


def sort_by_index(rows: Sequence[T], indexes: Sequence[int | float | str | None]) -> Sequence[T]:
    """Sort rows by their indexes; rows without indexes are already in order.

    Google's OpenAI-compatible API omits the index 0, and some servers write an index as text or as
    a float. One missing index is unambiguous if the others are all but one of 0 … n-1.

    Raises:
        InvalidUpstreamResponse: an index is out of range or repeated, or several are missing.
    """
    if not any(index is not None for index in indexes):
        return rows
    numbers = [None if index is None else _parse_index(index) for index in indexes]
    expected = set(range(len(rows)))
    if numbers.count(None) == 1:
        numbers[numbers.index(None)] = min(expected.difference(numbers), default=None)
    by_index = dict(zip(numbers, rows, strict=True))
    if by_index.keys() != expected:
        raise InvalidUpstreamResponse(
            f"The upstream returned {len(rows)} rows"
            f" whose indexes are not 0 to {len(rows) - 1}, each once."
        )
    return [by_index[index] for index in range(len(rows))]


def _parse_index(index: float | str) -> int:
    """Return an index as an integer, or -1 if it is none."""
    if isinstance(index, str):
        return int(index) if index.isascii() and index.isdigit() and len(index) < 8 else -1
    return int(index) if float(index).is_integer() else -1


def read_usage(
    usage: msgspec.Raw, headers: Mapping[str, str]
) -> tuple[int | None, Mapping[str, int]]:
    """Return the tokens of the call, and those of each modality if they are reported."""
    try:
        decoded = _USAGE.decode(usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = Usage()
    count = parse_token_count(decoded.prompt_tokens) or first_count(
        decoded.prompt_tokens, decoded.total_tokens
    )
    # Headers are decoded when they are read, so read them only if the body has no count.
    if not count:
        count = count_in_headers(headers)
    details = decoded.prompt_tokens_details
    if not details and decoded.text_tokens is not None:
        details = _split_total(count, first_count(decoded.text_tokens))
    return count, read_modalities(details) if details else {}


def _split_total(total: int | None, text: int | None) -> dict[str, int | None]:
    """Return the tokens of texts, and the others as those of images, if there are any."""
    rest = (total or 0) - (text or 0)
    return {"text_tokens": text, "image_tokens": rest} if rest > 0 else {}


def count_in_headers(headers: Mapping[str, str]) -> int | None:
    """Return the tokens of the call that a header states, or None."""
    return first_count(*(_parse_digits(headers.get(name, "")) for name in TOKEN_HEADERS))


def read_modalities(details: object) -> dict[str, int]:
    """Return the valid counts of the modalities in ``prompt_tokens_details``."""
    if not isinstance(details, Mapping):
        return {}
    fields = cast("Mapping[object, object]", details)
    return {
        name: count
        for name in MODALITIES
        if (count := first_count(fields.get(f"{name}_tokens"))) is not None
    }


def _parse_digits(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def first_count(*values: object) -> int | None:
    """Return the first valid token count; some JSON encoders write all numbers as floats."""
    integers = (
        int(value) if isinstance(value, float) and value.is_integer() else value for value in values
    )
    counts = (parse_token_count(value) for value in integers)
    return next((count for count in counts if count is not None), None)


def _read_error(
    error: msgspec.Raw,
    response: UpstreamResponse,
    map_error: Callable[[UpstreamResponse], UpstreamError],
) -> UpstreamError:
    status = _parse_status(error)
    if 400 <= status <= 599:
        return map_error(UpstreamResponse(status, response.headers, response.content))
    refusal = map_error(UpstreamResponse(400, response.headers, response.content))
    if not isinstance(refusal, Rejected | UpstreamUnavailable):
        return refusal  # OpenRouter: a 200 whose message holds its upstream's refusal
    return InvalidUpstreamResponse(map_error(response).message, upstream_status=response.status)


def _parse_status(error: msgspec.Raw) -> int:
    try:
        code = msgspec.json.decode(error, type=ErrorBody).code
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    if isinstance(code, int):
        return code
    if code and code.isascii() and code.isdigit() and len(code) == 3:
        return int(code)
    return STATUSES.get(code or "", 0)
