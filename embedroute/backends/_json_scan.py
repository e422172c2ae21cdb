"""Takes vectors out of a large answer's JSON where they lie: to scan that in one piece would hold all others up."""

import re
import secrets
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Final, TypeVar

import msgspec

from embedroute import vectors
from embedroute.backend import UpstreamResponse
from embedroute.errors import InvalidUpstreamResponse
from embedroute.runtime import TimeSlice, chunked
from embedroute.vectors import Array

T = TypeVar("T")

LONG: Final = 64 * 1024
"""Bytes of an answer from which on taking its vectors out costs less than having them decoded in place."""
NUMBERS: Final = 128 * 1024
"""Bytes of lists of numbers that are read at a time; that takes under half a millisecond."""
SCANNED: Final = 4 * 1024 * 1024
"""Bytes in which JSON objects are counted at a time; that takes under half a millisecond."""
_ENDS: Final = {b'"': b'"', b"[": b"]"}
_MARK: Final = b'"%b %%d"' % secrets.token_hex(8).encode()
"""Stands for a vector that was taken out; no body can hold it but by having been told."""
_ROWS: Final = msgspec.json.Decoder(list[str | list[float]])


def split_vectors(
    response: UpstreamResponse,
    kind: type[T],
    name: str,
    found: Callable[[T], Iterable[msgspec.Raw]],
    count: int,
) -> tuple[T, Sequence[memoryview]]:
    """Read an answer and, apart from it, its vectors as JSON texts, which are not copied.

    ``kind`` holds each vector raw under ``name``, and ``found`` gives them in the order in which they are written.
    At most ``count`` are due.

    Raises:
        InvalidUpstreamResponse: the body is not JSON, or not of that kind, or holds more vectors.
    """
    rest, taken = lifted(response.content, name, 2 * count)
    if taken:
        with suppress(
            InvalidUpstreamResponse
        ):  # something else of that name was taken out as well: the whole body says
            answer = _read(UpstreamResponse(response.status, response.headers, rest), kind, count)
            if [bytes(raw) for raw in found(answer)] == [
                _MARK % at for at in range(len(taken))
            ] and len(taken) <= count:
                return answer, taken
    answer = _read(response, kind, count)
    texts = [memoryview(raw) for raw in found(answer)]
    refuse_more_rows(len(texts), count)
    return answer, texts


def refuse_more_rows(rows: int, count: int) -> None:
    """Refuse an answer of more ``rows`` than the ``count`` that are due, before their numbers are read.

    Raises:
        InvalidUpstreamResponse: there are more.
    """
    if rows > count:
        raise InvalidUpstreamResponse(f"The upstream answered {rows} rows for {count} inputs.")


def _read(response: UpstreamResponse, kind: type[T], count: int) -> T:
    """Decode an answer that has few enough JSON objects: one for a row, two for what its vector stands in, and 64."""
    objects, turn = 0, TimeSlice(len(response.content))
    for start in range(0, len(response.content), SCANNED):
        objects += response.content.count(b"{", start, start + SCANNED)
        if objects > 3 * count + 64:
            raise InvalidUpstreamResponse(
                f"The upstream answered more rows than the {count} that were due."
            )
        turn.yield_gil()
    return response.json(kind)


@lru_cache
def _begins(name: str, opener: str) -> re.Pattern[bytes]:
    return re.compile(rb'"%b"[ \t\r\n]*:[ \t\r\n]*(%b)' % (name.encode(), opener.encode()))


def lifted(content: bytes, name: str, most: int = sys.maxsize) -> tuple[bytes, list[memoryview]]:
    """Take what is called ``name`` out of a JSON text: what is left, with a mark in the place of each, and their texts.

    If there are more than ``most``, none is taken. Inside a JSON string a quote has a backslash before it, which base64
    never has, and a list of numbers holds no bracket: what decodes ends where it seems to. All are taken to be of the
    first one's kind.
    """
    whole, left, taken, at, turn = (
        memoryview(content),
        list[bytes | memoryview](),
        list[memoryview](),
        0,
        TimeSlice(len(content)),
    )
    if (first := _begins(name, r'["\[]').search(content)) is None:
        return content, []
    begins, end = _begins(name, "\\" + first[1].decode()), _ENDS[first[1]]
    while (begun := begins.search(content, at)) and (ends := content.find(end, begun.end())) >= 0:
        if len(taken) == most:
            return content, []
        left += [whole[at : begun.start(1)], _MARK % len(taken)]
        taken.append(whole[begun.start(1) : ends + 1])
        at = ends + 1
        turn.yield_gil()
    left.append(whole[at:])
    return b"".join(left), taken


def array_of_texts(
    texts: Sequence[memoryview], dtype: str = "float", width: int | None = None
) -> Array:
    """Make an (n, d) array of n vectors in JSON, each base64 or d numbers, of which ``width`` are due if that is known.

    Raises:
        InvalidUpstreamResponse: one is neither, or of another width, or longer than the numbers that are due can be.
    """
    longest = vectors.TEXT_OF_NUMBER * (width or vectors.WIDEST) + 1024
    if any(len(text) > longest for text in texts):
        raise InvalidUpstreamResponse(
            "The upstream answered a vector that is longer than the numbers that were due."
        )
    if all(text[0] == ord('"') for text in texts):
        with suppress(
            InvalidUpstreamResponse
        ):  # some write slashes as "\/", which is JSON and no base64
            return vectors.from_base64([text[1:-1] for text in texts], dtype)
    size = sum(map(len, texts))
    turns = chunked(len(texts), size, max(1, NUMBERS * len(texts) // max(1, size)))
    return vectors.gathered(len(texts), (array_of(_decoded(texts[turn]), dtype) for turn in turns))


def _decoded(texts: Sequence[memoryview]) -> list[str | list[float]]:
    try:
        return _ROWS.decode(b"[" + b",".join(texts) + b"]")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidUpstreamResponse(
            f"The upstream's body is not the JSON that was due: {error}"
        ) from None


def array_of(rows: Sequence[str | Sequence[float]], dtype: str = "float") -> Array:
    """Make an (n, d) array of n vectors, each base64 or d numbers.

    Raises:
        InvalidUpstreamResponse: one is neither, or of another width.
    """
    texts = [row for row in rows if isinstance(row, str)]
    if len(texts) == len(rows):
        return vectors.from_base64(texts, dtype)
    if not texts:
        return vectors.from_lists([row for row in rows if not isinstance(row, str)], dtype)
    return vectors.gathered(len(rows), (array_of([row], dtype) for row in rows))
