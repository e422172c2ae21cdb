"""Takes vectors out of a large answer's JSON where they lie: to scan that in one piece would hold all others up."""

import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Final, TypeVar

import msgspec

from embedroute import vectors
from embedroute.backend import UpstreamReply
from embedroute.errors import BadAnswer
from embedroute.turns import Turn, in_turns
from embedroute.vectors import Array

T = TypeVar("T")

LONG: Final = 64 * 1024
"""Bytes of an answer from which on taking its vectors out costs less than having them decoded in place."""
NUMBERS: Final = 128 * 1024
"""Bytes of lists of numbers that are read at a time; that takes under half a millisecond."""
_ENDS: Final = {b'"': b'"', b"[": b"]"}
_MARK: Final = b'"%b %%d"' % secrets.token_hex(8).encode()
"""Stands for a vector that was taken out; no body can hold it but by having been told."""
_ROWS: Final = msgspec.json.Decoder(list[str | list[float]])


def read_apart(
    reply: UpstreamReply, kind: type[T], name: str, found: Callable[[T], Iterable[msgspec.Raw]]
) -> tuple[T, Sequence[memoryview]]:
    """Read an answer and, apart from it, its vectors as JSON texts, which are not copied.

    ``kind`` holds each vector raw under ``name``, and ``found`` gives them in the order in which they are written.

    Raises:
        BadAnswer: the body is not JSON, or not of that kind.
    """
    rest, taken = lifted(reply.content, name)
    if taken:
        with suppress(BadAnswer):  # something else of that name was taken out as well: the whole body says
            answer = _read(UpstreamReply(reply.status, reply.headers, rest), kind)
            if [bytes(raw) for raw in found(answer)] == [_MARK % at for at in range(len(taken))]:
                return answer, taken
    answer = _read(reply, kind)
    return answer, [memoryview(raw) for raw in found(answer)]


def _read(reply: UpstreamReply, kind: type[T]) -> T:
    return reply.json(kind)


@lru_cache
def _begins(name: str, opener: str) -> re.Pattern[bytes]:
    return re.compile(rb'"%b"[ \t\r\n]*:[ \t\r\n]*(%b)' % (name.encode(), opener.encode()))


def lifted(content: bytes, name: str) -> tuple[bytes, list[memoryview]]:
    """Take what is called ``name`` out of a JSON text: what is left, with a mark in the place of each, and their texts.

    Inside a JSON string a quote has a backslash before it, which base64 never has, and a list of numbers holds no
    bracket: what decodes ends where it seems to. All are taken to be of the first one's kind.
    """
    whole, left, taken, at, turn = memoryview(content), list[bytes](), list[memoryview](), 0, Turn(len(content))
    if (first := _begins(name, r'["\[]').search(content)) is None:
        return content, []
    begins, end = _begins(name, "\\" + first[1].decode()), _ENDS[first[1]]
    while (begun := begins.search(content, at)) is not None and (ends := content.find(end, begun.end())) >= 0:
        left += [content[at : begun.start(1)], _MARK % len(taken)]
        taken.append(whole[begun.start(1) : ends + 1])
        at = ends + 1
        turn.rest()
    left.append(content[at:])
    return b"".join(left), taken


def array_of_texts(texts: Sequence[memoryview], dtype: str = "float") -> Array:
    """Make an (n, d) array of n vectors in JSON, each base64 or d numbers.

    Raises:
        BadAnswer: one is neither, or of another width.
    """
    if all(text[0] == ord('"') for text in texts):
        with suppress(BadAnswer):  # some write slashes as "\/", which is JSON and no base64
            return vectors.from_base64([text[1:-1] for text in texts], dtype)
    size = sum(map(len, texts))
    turns = in_turns(len(texts), size, max(1, NUMBERS * len(texts) // max(1, size)))
    return vectors.gathered(len(texts), (array_of(_decoded(texts[turn]), dtype) for turn in turns))


def _decoded(texts: Sequence[memoryview]) -> list[str | list[float]]:
    try:
        return _ROWS.decode(b"[" + b",".join(texts) + b"]")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswer(f"The upstream's body is not the JSON that was due: {error}") from None


def array_of(rows: Sequence[str | Sequence[float]], dtype: str = "float") -> Array:
    """Make an (n, d) array of n vectors, each base64 or d numbers.

    Raises:
        BadAnswer: one is neither, or of another width.
    """
    texts = [row for row in rows if isinstance(row, str)]
    if len(texts) == len(rows):
        return vectors.from_base64(texts, dtype)
    if not texts:
        return vectors.from_lists([row for row in rows if not isinstance(row, str)], dtype)
    return vectors.gathered(len(rows), (array_of([row], dtype) for row in rows))
