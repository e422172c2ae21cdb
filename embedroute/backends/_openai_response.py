"""Reads the answer that OpenAI made common: rows with an index, as base64 or numbers, and errors inside a 200."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from embedroute.backend import Batch, UpstreamResponse, Vectors, parse_token_count
from embedroute.backends._json_scan import (
    LONG,
    array_of,
    array_of_texts,
    refuse_more_rows,
    split_vectors,
)
from embedroute.errors import InvalidUpstreamResponse, UpstreamError

STATUSES: Final = {
    "context_length_exceeded": 400,
    "insufficient_quota": 429,
    "invalid_api_key": 401,
    "model_not_found": 404,
    "rate_limit_exceeded": 429,
    "server_error": 500,
}
"""Error code inside a 200 → the status that OpenAI sends with it."""

COUNTED: Final = ("num_tokens", "x-compute-tokens")
"""Headers in which Cohere and TEI tell the tokens of a call."""

EMPTY: Final = frozenset({b"", b"null", b"false", b'""', b"{}", b"[]"})


class Row(msgspec.Struct, gc=False):
    """One vector: base64, or numbers."""

    embedding: str | list[float]
    index: int | None = None


class LongRow(msgspec.Struct, gc=False):
    """One vector of a large answer: still JSON, or the mark of what was taken out."""

    embedding: msgspec.Raw
    index: int | None = None


class Usage(msgspec.Struct):
    """What the call was billed; Voyage and Jina know a total alone."""

    prompt_tokens: object = None
    total_tokens: object = None


class Fault(msgspec.Struct):
    """The part of an error inside a 200 that says what kind it is."""

    code: int | str | None = None


class Answer(msgspec.Struct):
    """The whole answer. What may be odd without harm stays raw until it is wanted."""

    data: list[Row] | None = None
    error: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()


class LongAnswer(msgspec.Struct):
    """A large answer; its vectors are read in turns, so that no other thread waits for all of them."""

    data: list[LongRow] | None = None
    error: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()


T = TypeVar("T")
_USAGE: Final = msgspec.json.Decoder(Usage)


def read(
    batch: Batch, response: UpstreamResponse, map_error: Callable[[UpstreamResponse], UpstreamError]
) -> Vectors:
    """Read a 200 whose rows are as ``Row`` says, in any order that ``index`` makes good.

    Raises:
        InvalidUpstreamResponse: the body is of another shape, or the indexes are not 0 … n-1.
        UpstreamError: the body is an error; ``map_error`` judges it by the status that its code stands for.
    """
    texts: Sequence[memoryview] = ()
    if len(response.content) < LONG:
        answer = response.json(Answer)
    else:
        answer, texts = split_vectors(response, LongAnswer, "embedding", _raw, len(batch))
    if answer.data is None or bytes(answer.error) not in EMPTY:
        raise _fault_in(answer.error, response, map_error)
    count = len(batch)
    if len(answer.data) > count:
        refuse_more_rows(len(answer.data), count)
    indexes = [row.index for row in answer.data]
    if isinstance(answer, LongAnswer):
        array = array_of_texts(sort_by_index(texts, indexes), batch.dtype, batch.width)
    else:
        array = array_of(
            sort_by_index([row.embedding for row in answer.data], indexes), batch.dtype
        )
    return Vectors(array, _prompt_tokens(answer.usage, response.headers))


def _raw(answer: LongAnswer) -> list[msgspec.Raw]:
    return [row.embedding for row in answer.data or ()]


def sort_by_index(rows: Sequence[T], indexes: Sequence[int | None]) -> Sequence[T]:
    """Put rows in the order of their indexes; rows that have none are in order.

    Raises:
        InvalidUpstreamResponse: an index is missing beside others, comes twice, or is out of range.
    """
    if indexes == list(range(len(rows))) or not any(index is not None for index in indexes):
        return rows
    placed = dict(zip(indexes, rows, strict=True))
    if placed.keys() != set(range(len(rows))):
        raise InvalidUpstreamResponse(
            f"The upstream's {len(rows)} rows are not numbered 0 to {len(rows) - 1}, each once."
        )
    return [placed[index] for index in range(len(rows))]


def _prompt_tokens(usage: msgspec.Raw, headers: Mapping[str, str]) -> int | None:
    try:
        told = _USAGE.decode(usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        told = Usage()
    # Headers are only read where they are wanted, which is hardly ever.
    count = parse_token_count(told.prompt_tokens) or first_count(
        told.prompt_tokens, told.total_tokens
    )
    return count or first_count(*(_whole(headers.get(name, "")) for name in COUNTED))


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def first_count(*said: object) -> int | None:
    """Take the first of what is said that is a count of tokens; some JSON writers make floats of all numbers."""
    whole = (int(it) if isinstance(it, float) and it.is_integer() else it for it in said)
    return next((count for it in whole if (count := parse_token_count(it)) is not None), None)


def _fault_in(
    error: msgspec.Raw,
    response: UpstreamResponse,
    map_error: Callable[[UpstreamResponse], UpstreamError],
) -> UpstreamError:
    status = _parse_status(error)
    if 400 <= status <= 599:
        return map_error(UpstreamResponse(status, response.headers, response.content))
    return InvalidUpstreamResponse(map_error(response).message, upstream_status=response.status)


def _parse_status(error: msgspec.Raw) -> int:
    try:
        code = msgspec.json.decode(error, type=Fault).code
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    if isinstance(code, int):
        return code
    return (
        int(code)
        if code and code.isascii() and code.isdigit() and len(code) == 3
        else STATUSES.get(code or "", 0)
    )
