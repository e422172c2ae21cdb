"""Reads the answer that OpenAI made common: rows with an index, as base64 or numbers, and errors inside a 200."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from embedroute.backend import Batch, UpstreamReply, Vectors, count_of
from embedroute.errors import BadAnswer, UpstreamError
from embedroute.turns import LARGE, Turn, in_turns
from embedroute.vectors import gathered

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
    """One vector of a large answer: still text, or the number of its text."""

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
    """A large answer; its rows are read in turns, so that no other thread waits for all of them."""

    data: list[LongRow] | None = None
    error: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()


AnyRow = TypeVar("AnyRow", Row, LongRow)
LONG: Final = 64 * 1024
"""Bytes of an answer from which on taking its base64 out costs less than having it decoded as strings."""
_VECTOR: Final = re.compile(rb'"embedding"[ \t\r\n]*:[ \t\r\n]*')
_TEXT: Final = re.compile(_VECTOR.pattern + b'"')
_LONG_ROWS, _USAGE = msgspec.json.Decoder(list[str | list[float]]), msgspec.json.Decoder(Usage)


def read(batch: Batch, reply: UpstreamReply, fault: Callable[[UpstreamReply], UpstreamError]) -> Vectors:
    """Read a 200 whose rows are as ``Row`` says, in any order that ``index`` makes good.

    Raises:
        BadAnswer: the body is of another shape, or the indexes are not 0 … n-1.
        UpstreamError: the body is an error; ``fault`` judges it by the status that its code stands for.
    """
    texts, answer = _long_answer(reply) if len(reply.content) >= LONG else ((), reply.json(Answer))
    if answer.data is None or bytes(answer.error) not in EMPTY:
        raise _fault_in(answer.error, reply, fault)
    prompt_tokens = _prompt_tokens(answer.usage, reply.headers)
    if isinstance(answer, LongAnswer):
        return _long_vectors(in_order(answer.data), texts, prompt_tokens, batch.dtype)
    return _vectors([row.embedding for row in in_order(answer.data)], prompt_tokens, batch.dtype)


def _long_answer(reply: UpstreamReply) -> tuple[Sequence[memoryview], Answer | LongAnswer]:
    """Read all but the vectors, and the texts of those if all rows are base64."""
    rest, texts = lifted(reply.content)
    if texts:
        answer: LongAnswer = UpstreamReply(reply.status, reply.headers, rest).json(LongAnswer)
        if [bytes(row.embedding) for row in answer.data or ()] == [b"%d" % at for at in range(len(texts))]:
            return texts, answer
    return (), reply.json(LongAnswer if len(reply.content) >= LARGE else Answer)


def lifted(content: bytes) -> tuple[bytes, list[memoryview]]:
    """Take the base64 out of a JSON text: what is left, each text's number in its place, and the texts, which are not copied.

    Inside a JSON string a quote has a backslash before it, which base64 never has: what decodes ends where it seems to.
    A text whose first vector is no string is left as it is.
    """
    whole, left, texts, at, turn = memoryview(content), list[bytes](), list[memoryview](), 0, Turn(len(content))
    if (first := _VECTOR.search(content)) is None or content[first.end() : first.end() + 1] != b'"':
        return content, []
    while (begins := _TEXT.search(content, at)) is not None and (ends := content.find(b'"', begins.end())) >= 0:
        left += [content[at : begins.end() - 1], b"%d" % len(texts)]
        texts.append(whole[begins.end() : ends])
        at = ends + 1
        turn.rest()
    left.append(content[at:])
    return b"".join(left), texts


def _long_vectors(rows: Sequence[LongRow], texts: Sequence[memoryview], prompt_tokens: int | None, dtype: str) -> Vectors:
    if texts:
        return Vectors.from_base64([texts[int(row.embedding)] for row in rows], prompt_tokens=prompt_tokens, dtype=dtype)
    turns = in_turns(len(rows), sum(len(row.embedding) for row in rows))
    groups = (_vectors(_decoded(rows[turn]), None, dtype).array for turn in turns)
    return Vectors(gathered(len(rows), groups), prompt_tokens)


def _decoded(rows: Sequence[LongRow]) -> list[str | list[float]]:
    try:
        return _LONG_ROWS.decode(b"[" + b",".join([row.embedding for row in rows]) + b"]")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswer(f"The upstream's body is not the JSON that was due: {error}") from None


def in_order(rows: Sequence[AnyRow]) -> Sequence[AnyRow]:
    """Put rows in the order of their indexes; rows that have none are in order.

    Raises:
        BadAnswer: an index is missing beside others, comes twice, or is out of range.
    """
    indexes = [row.index for row in rows]
    if indexes == list(range(len(rows))) or not any(index is not None for index in indexes):
        return rows
    placed = {row.index: row for row in rows}
    if placed.keys() != set(range(len(rows))):
        raise BadAnswer(f"The upstream's {len(rows)} rows are not numbered 0 to {len(rows) - 1}, each once.")
    return [placed[index] for index in range(len(rows))]


def _vectors(embeddings: Sequence[str | list[float]], prompt_tokens: int | None, dtype: str) -> Vectors:
    texts = [row for row in embeddings if isinstance(row, str)]
    if len(texts) == len(embeddings):
        return Vectors.from_base64(texts, prompt_tokens=prompt_tokens, dtype=dtype)
    numbers = [row for row in embeddings if isinstance(row, list)]
    if not texts:
        return Vectors.from_lists(numbers, prompt_tokens=prompt_tokens, dtype=dtype)
    each = (_vectors([row], None, dtype).array for row in embeddings)
    return Vectors(gathered(len(embeddings), each), prompt_tokens)


def _prompt_tokens(usage: msgspec.Raw, headers: Mapping[str, str]) -> int | None:
    try:
        told = _USAGE.decode(usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        told = Usage()
    # Headers are only read where they are wanted, which is hardly ever.
    count = count_of(told.prompt_tokens) or first_count(told.prompt_tokens, told.total_tokens)
    return count or first_count(*(_whole(headers.get(name, "")) for name in COUNTED))


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def first_count(*said: object) -> int | None:
    """Take the first of what is said that is a count of tokens; some JSON writers make floats of all numbers."""
    whole = (int(it) if isinstance(it, float) and it.is_integer() else it for it in said)
    return next((count for it in whole if (count := count_of(it)) is not None), None)


def _fault_in(error: msgspec.Raw, reply: UpstreamReply, fault: Callable[[UpstreamReply], UpstreamError]) -> UpstreamError:
    status = _status_of(error)
    if 400 <= status <= 599:
        return fault(UpstreamReply(status, reply.headers, reply.content))
    return BadAnswer(fault(reply).message, upstream_status=reply.status)


def _status_of(error: msgspec.Raw) -> int:
    try:
        code = msgspec.json.decode(error, type=Fault).code
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    if isinstance(code, int):
        return code
    return int(code) if code and code.isascii() and code.isdigit() and len(code) == 3 else STATUSES.get(code or "", 0)
