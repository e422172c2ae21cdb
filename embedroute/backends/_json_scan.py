"""Extracts the vectors from the JSON of a large response without decoding it in one piece.

Decoding a large body at once would hold the GIL and block the event loop.
"""

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
from embedroute.errors import InvalidUpstreamResponse, InvalidVector
from embedroute.runtime import TimeSlice, chunked
from embedroute.vectors import Array

T = TypeVar("T")

LONG: Final = 64 * 1024
"""Size in bytes from which extracting the vectors costs less than decoding them in place."""
NUMBERS: Final = 128 * 1024
"""Bytes of lists of numbers that are decoded at a time. This takes under 0.5 ms."""
SCANNED: Final = 4 * 1024 * 1024
"""Bytes in which JSON objects are counted at a time. This takes under 0.5 ms."""
_CLOSERS: Final = {b'"': b'"', b"[": b"]"}
_MARK: Final = b'"%b %%d"' % secrets.token_hex(8).encode()
"""Placeholder for an extracted vector. It is random, so an upstream cannot send it."""
_NEXT_ROW: Final = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*(?=\[)")
_NOT_A_NUMBER: Final = re.compile(rb"[\[,]\s*(?:null|NaN|-?Infinity)\s*[,\]]")
"""An item of a vector that is not a number, as servers in Python write it."""
_ROWS: Final = msgspec.json.Decoder(list[str | list[float]])


def split_vectors(
    response: UpstreamResponse,
    kind: type[T],
    name: str,
    get_vectors: Callable[[T], Iterable[msgspec.Raw]],
    count: int,
    *,
    in_one_list: bool = False,
) -> tuple[T, Sequence[memoryview]]:
    """Decode a response without its vectors; return it and the JSON texts of the vectors.

    ``kind`` has each vector as ``msgspec.Raw`` in a field called ``name``. ``get_vectors`` returns
    them in the order of the body. At most ``count`` are expected. The texts are not copied.

    If the vectors are ``in_one_list``, the field ``name`` is the list of all of them. It is the
    complete body if ``name`` is empty.

    Raises:
        InvalidUpstreamResponse: the body is not JSON, does not match ``kind``, or has more vectors.
    """
    extract = extract_rows if in_one_list else extract_vectors
    rest, texts = extract(response.content, name, 2 * count)
    if texts:
        # If another field has the same name, its values were extracted too. The marks then differ,
        # and the complete body is decoded below.
        with suppress(InvalidUpstreamResponse):
            answer = _decode(UpstreamResponse(response.status, response.headers, rest), kind, count)
            marks = [_MARK % index for index in range(len(texts))]
            if [bytes(raw) for raw in get_vectors(answer)] == marks and len(texts) <= count:
                return answer, texts
    answer = _decode(response, kind, count)
    texts = [memoryview(raw) for raw in get_vectors(answer)]
    refuse_more_rows(len(texts), count)
    return answer, texts


def refuse_more_rows(rows: int, count: int) -> None:
    """Reject a response with more than ``count`` rows, before their numbers are decoded.

    Raises:
        InvalidUpstreamResponse: there are more.
    """
    if rows > count:
        raise vectors.wrong_count(rows, count)


def _decode(response: UpstreamResponse, kind: type[T], count: int) -> T:
    """Decode a response if it has few enough JSON objects.

    The limit is one object per row, two for the objects around its vector, and 64 more.
    """
    objects = 0
    time_slice = TimeSlice(len(response.content))
    for start in range(0, len(response.content), SCANNED):
        objects += response.content.count(b"{", start, start + SCANNED)
        if objects > 3 * count + 64:
            raise InvalidUpstreamResponse(
                f"The upstream returned more rows than the expected {count}."
            )
        time_slice.yield_gil()
    return response.json(kind)


@lru_cache
def _field_pattern(name: str, opener: str) -> re.Pattern[bytes]:
    return re.compile(rb'"%b"[ \t\r\n]*:[ \t\r\n]*(%b)' % (name.encode(), opener.encode()))


def extract_vectors(
    content: bytes, name: str, most: int = sys.maxsize
) -> tuple[bytes, list[memoryview]]:
    """Extract the values of all fields called ``name`` from a JSON text.

    Return the text with a mark in place of each value, and the texts of the values. If there are
    more than ``most`` values, none is extracted.

    A vector ends at the first closing quote or bracket: a quote inside a JSON string is escaped
    with a backslash, which base64 does not contain, and a list of numbers contains no brackets. All
    values are expected to be of the same kind as the first one.
    """
    body = memoryview(content)
    pieces = list[bytes | memoryview]()
    values = list[memoryview]()
    position = 0
    time_slice = TimeSlice(len(content))
    first = _field_pattern(name, r'["\[]').search(content)
    if first is None:
        return content, []
    pattern = _field_pattern(name, "\\" + first[1].decode())
    closer = _CLOSERS[first[1]]
    while (match := pattern.search(content, position)) and (
        end := content.find(closer, match.end())
    ) >= 0:
        if len(values) == most:
            return content, []
        start = match.start(1)
        pieces += [body[position:start], _MARK % len(values)]
        values.append(body[start : end + 1])
        position = end + 1
        time_slice.yield_gil()
    pieces.append(body[position:])
    return b"".join(pieces), values


@lru_cache
def _list_pattern(name: str) -> re.Pattern[bytes]:
    before = rb'"%b"[ \t\r\n]*:' % name.encode() if name else rb"\A"
    return re.compile(before + rb"[ \t\r\n]*\[[ \t\r\n]*(?=\[)")


def extract_rows(
    content: bytes, name: str, most: int = sys.maxsize
) -> tuple[bytes, list[memoryview]]:
    """Extract the items of all fields called ``name`` that are lists of lists of numbers.

    It returns the same as ``extract_vectors``. An empty ``name`` means the complete body.
    """
    body = memoryview(content)
    pieces = list[bytes | memoryview]()
    values = list[memoryview]()
    position = 0
    time_slice = TimeSlice(len(content))
    pattern = _list_pattern(name)
    match = pattern.search(content)
    while match and (end := content.find(b"]", match.end())) >= 0:
        if len(values) == most:
            return content, []
        start = match.end()
        pieces += [body[position:start], _MARK % len(values)]
        values.append(body[start : end + 1])
        position = end + 1
        time_slice.yield_gil()
        match = _NEXT_ROW.match(content, position) or pattern.search(content, position)
    pieces.append(body[position:])
    return b"".join(pieces), values


def texts_to_array(
    texts: Sequence[memoryview], dtype: str = "float", width: int | None = None
) -> Array:
    """Convert n JSON texts, each base64 or a list of d numbers, to an (n, d) array.

    ``width`` is the expected d, if it is known.

    Raises:
        InvalidVector: a list contains null, NaN or Infinity.
        InvalidUpstreamResponse: a text is neither base64 nor numbers, has another width than the
            first, or is longer than ``width`` numbers can be.
    """
    longest = vectors.TEXT_OF_NUMBER * (width or vectors.WIDEST) + 1024
    if any(len(text) > longest for text in texts):
        raise InvalidUpstreamResponse(
            "The upstream returned a vector that is longer than the expected numbers can be."
        )
    if all(text[0] == ord('"') for text in texts):
        # Some servers escape slashes as "\/", which is valid JSON but not base64.
        with suppress(InvalidUpstreamResponse):
            return vectors.from_base64([text[1:-1] for text in texts], dtype)
    size = sum(map(len, texts))
    groups = chunked(len(texts), size, max(1, NUMBERS * len(texts) // max(1, size)))
    arrays = (vectors.from_rows(_decode_rows(texts[group]), dtype) for group in groups)
    return vectors.gathered(len(texts), arrays)


def _decode_rows(texts: Sequence[memoryview]) -> list[str | list[float]]:
    try:
        return _ROWS.decode(b"[" + b",".join(texts) + b"]")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        message = f"The upstream's response body is not the expected JSON: {error}"
        raise invalid_json(message, *texts) from None


def invalid_json(message: str, *texts: bytes | memoryview) -> InvalidUpstreamResponse:
    """Create the error for JSON that cannot be decoded.

    It is ``InvalidVector`` if a list in one of ``texts`` contains null, NaN or Infinity. The search
    holds the GIL for 7 ms per megabyte, so pass small texts.
    """
    if any(map(_NOT_A_NUMBER.search, texts)):
        return InvalidVector(message)
    return InvalidUpstreamResponse(message, reason="response is not the expected JSON")
