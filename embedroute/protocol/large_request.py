"""Decodes the body of a large request in steps of a few milliseconds, without blocking the loop.

A single call of the JSON decoder may block for 100 ms for 32 MiB of text, and for seconds for
millions of empty values. So decoding has these steps:

1. Count the characters outside strings, slice by slice. A body with more of them than any valid
   request is refused before it is decoded.
2. Replace each string of more than ``LONGEST_NAME`` bytes by a placeholder: its index, written
   with more than ``LONGEST_NAME`` digits. No other string is that long, so placeholders are
   unambiguous. The result is the *outline* of the body, which is decoded at once.
3. Refuse an outline in which an object has a key twice, by counting colons: each member of an
   object has one.
4. Decode the long strings piece by piece and put them into the decoded outline. Joining the pieces
   is one step, so a string that is too long or has no use is refused or only checked before it.
"""

import re
from collections.abc import Generator, Iterator, Mapping
from itertools import accumulate
from operator import gt
from typing import Final

import msgspec

from embedroute.errors import InvalidRequest
from embedroute.inputs import ImagePart, ImageURL, TextPart
from embedroute.protocol import decode_errors
from embedroute.protocol.decode_errors import DEEPEST, EXAMINED, parse_again, refuse_depth
from embedroute.protocol.input_kinds import Limits, text_too_long
from embedroute.protocol.requests import (
    LONGEST_NAME,
    MOST_PARTS,
    Content,
    CreateEmbeddingRequest,
    WireInput,
    WireItems,
)
from embedroute.text import echo

SLICE: Final = 1 << 16
"""Bytes that are searched for quotes in one step."""
PIECE: Final = 1 << 18
"""Bytes of a string that are decoded in one step."""

_DECODER: Final = msgspec.json.Decoder(str)
_NO_BRACKETS: Final = bytes(set(range(256)).difference(b"[]{}"))
_NESTING: Final = [(byte in b"[{") - (byte in b"]}") for byte in range(256)]
_DIGITS_TO_ZERO: Final = bytes.maketrans(b"123456789E", b"000000000e")
_LONG_NUMBERS: Final = (b"e000", b"e+000", b"e-000", b"0" * 32)
_KEY: Final = re.compile(rb'"[ \t\r\n]{0,64}:')
_UNFINISHED: Final = re.compile(
    rb"(?:\\u[dD][89abAB][0-9a-fA-F]{2})?(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z"
)
"""An incomplete escape sequence or surrogate pair at the end; it belongs to the next piece."""

MOST_OTHER: Final = 20_000
"""Maximum values, and members of objects, of a large body besides its inputs.

Ignored fields may hold any values.
"""
MOST_LONG_NUMBERS: Final = 100
"""Maximum long numbers (see ``Marks``) of a large body; token ids are short."""


class Marks(msgspec.Struct):
    """Counts of JSON syntax characters outside strings.

    ``quotes`` counts the quotes around strings, ``outside`` all bytes outside strings. ``depth`` is
    the level of nesting at the end. ``long_numbers`` have an exponent of three or more digits, or
    32 digits in a row; to decode one takes microseconds, a hundred times as long as a token id.
    """

    commas: int = 0
    arrays: int = 0
    objects: int = 0
    colons: int = 0
    quotes: int = 0
    outside: int = 0
    depth: int = 0
    long_numbers: int = 0


def most_marks(limits: Limits) -> Marks:
    """Return the maximum of each count over all valid requests of every kind of input."""
    parts = limits.max_inputs * MOST_PARTS
    commas = max(limits.max_token_ids, 2 * parts) + limits.max_inputs + MOST_OTHER
    return Marks(
        commas=commas,
        arrays=limits.max_inputs + MOST_OTHER,
        objects=2 * parts + limits.max_inputs + MOST_OTHER,
        colons=3 * parts + limits.max_inputs + MOST_OTHER,
        quotes=10 * parts + 2 * limits.max_inputs + 2 * MOST_OTHER,
        outside=32 * commas,
        depth=DEEPEST,
        long_numbers=MOST_LONG_NUMBERS,
    )


class Outline(msgspec.Struct, frozen=True):
    """A body with placeholders for its long strings; ``strings`` are their offsets in the body."""

    json: bytes
    strings: list[tuple[int, int]]
    marks: Marks


def make_outline(body: bytes, limits: Limits) -> Generator[None, None, Outline]:
    """Replace the long strings of a body by placeholders, and count the rest.

    Raises:
        InvalidRequest: the body has more values than any valid request, or a key of more than
            ``LONGEST_NAME`` bytes.
    """
    pieces = list[bytes]()
    strings = list[tuple[int, int]]()
    marks = Marks()
    copied = 0
    for start, end in _find_long_strings(body, marks, limits):
        yield
        if end > start:
            if _KEY.match(body, end):
                raise InvalidRequest(
                    f"The body has a key of more than {LONGEST_NAME} bytes. Remove it."
                )
            pieces += (body[copied:start], b"%0*d" % (LONGEST_NAME + 1, len(strings)))
            strings.append((start, end))
            copied = end
    pieces.append(body[copied:])
    return Outline(b"".join(pieces), strings, marks)


def count_marks(text: memoryview, limits: Limits) -> Generator[None, None, Marks]:
    """Count the syntax characters of valid JSON."""
    marks = Marks()
    for _ in _find_long_strings(text, marks, limits):
        yield
    return marks


def _find_long_strings(
    body: bytes | memoryview, marks: Marks, limits: Limits
) -> Generator[tuple[int, int], None, None]:
    """Yield the start and end offset of each string of more than ``LONGEST_NAME`` bytes.

    After each slice of the body an empty range is yielded. ``marks`` is updated as well.
    """
    maximum = most_marks(limits)
    position = 0
    string_start = -1  # offset of the string that is open at ``position``, or -1
    while position < len(body):
        piece = bytes(body[position : position + SLICE])
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # do not cut an escape sequence in two
            piece = bytes(body[position : position + SLICE + 1])
        # A backslash outside a string is malformed; the decoder finds it in the outline.
        parts = piece.replace(rb"\\", b"\0\0").replace(rb"\"", b"\0\0").split(b'"')
        _count(marks, b"".join(parts[string_start >= 0 :: 2]), len(parts) - 1)
        _refuse_too_many(marks, maximum, limits)
        string_start = yield from _find_in_slice(parts, position, string_start)
        position += len(piece)
        yield position, position
    if string_start >= 0:
        raise InvalidRequest("The body is not valid JSON: it ends inside a string.")


def _find_in_slice(
    parts: list[bytes], position: int, string_start: int
) -> Generator[tuple[int, int], None, int]:
    """Yield the long strings that end in a slice; return the offset of the open string, or -1.

    ``parts`` is the slice, split at quotes. The slice begins at ``position``. ``string_start`` is
    the offset of the string that is open there, or -1.
    """
    if max(map(len, parts)) <= LONGEST_NAME and len(parts) > 1:
        # Only the string that began before the slice can be long.
        end = position + len(parts[0])
        if string_start >= 0 and end - string_start > LONGEST_NAME:
            yield string_start, end
        is_open = (string_start >= 0) ^ (len(parts) % 2 == 0)
        return position + sum(map(len, parts[:-1])) + len(parts) - 1 if is_open else -1
    for part in parts[:-1]:
        position += len(part)
        if string_start < 0:
            string_start = position + 1
        else:
            if position - string_start > LONGEST_NAME:
                yield string_start, position
            string_start = -1
        position += 1
    return string_start


def _count(marks: Marks, outside: bytes, quotes: int) -> None:
    marks.commas += outside.count(b",")
    marks.arrays += outside.count(b"[")
    marks.objects += outside.count(b"{")
    marks.colons += outside.count(b":")
    marks.quotes += quotes
    marks.outside += len(outside)
    digits = outside.translate(_DIGITS_TO_ZERO)
    marks.long_numbers += sum(map(digits.count, _LONG_NUMBERS))
    if brackets := outside.translate(None, _NO_BRACKETS):
        levels = list(accumulate(map(_NESTING.__getitem__, brackets), initial=marks.depth))
        marks.depth = levels[-1]
        if max(levels) > DEEPEST:
            refuse_depth()


def _refuse_too_many(marks: Marks, maximum: Marks, limits: Limits) -> None:
    if not any(map(gt, msgspec.structs.astuple(marks), msgspec.structs.astuple(maximum))):
        return
    if marks.long_numbers > maximum.long_numbers:
        message = f"The body holds too many long numbers. Token ids are from 0 to {2**31 - 1}."
        raise InvalidRequest(message, param="input")
    advice = (
        f"Send at most {limits.max_inputs} inputs and {limits.max_token_ids} token ids in one "
        "request."
    )
    if marks.commas > maximum.commas and marks.quotes < MOST_OTHER:
        raise InvalidRequest(
            f"The body holds too many numbers. {advice}",
            param="input",
            code="max_tokens_per_request",
        )
    raise InvalidRequest(f"The body holds too many values or objects. {advice}")


def decode_text(
    body: bytes, start: int, end: int, limits: Limits, param: str
) -> Generator[None, None, str]:
    """Decode the text with the content ``body[start:end]``, which is the field ``param``.

    Raises:
        InvalidRequest: it is not a valid JSON string, or too long.
    """
    pieces = list[str]()
    characters = 0
    for piece in decode_pieces(body, start, end, param):
        pieces.append(piece)
        characters += len(piece)
        if characters > limits.max_text_characters:
            raise text_too_long(limits, param)
        yield
    return "".join(pieces)


def decode_url(body: bytes, start: int, end: int, param: str) -> Generator[None, None, str]:
    """Decode the URL with the content ``body[start:end]``, which is the field ``param``.

    Raises:
        InvalidRequest: it is not a valid JSON string, or has a character that is not ASCII.
    """
    pieces = list[str]()
    for piece in decode_pieces(body, start, end, param):
        # Joining 32 MiB takes 3 ms if all pieces are ASCII, and 60 ms otherwise.
        if not piece.isascii():
            raise InvalidRequest(
                f"'{param}' must contain only ASCII characters. Percent-encode the others.",
                param=param,
                code="invalid_media_url",
            )
        pieces.append(piece)
        yield
    return "".join(pieces)


def decode_pieces(body: bytes, start: int, end: int, param: str | None = None) -> Iterator[str]:
    """Decode the string with the content ``body[start:end]`` piece by piece.

    Raises:
        InvalidRequest: it is not a valid JSON string.
    """
    while start < end:
        piece = _piece(body, start, end)
        start += len(piece)
        quoted = b'"%b"' % piece
        try:
            yield _DECODER.decode(quoted)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise decode_errors.broken_string(error, quoted, param) from None


def _piece(body: bytes, start: int, end: int) -> bytes:
    """Return the next piece of a string, without cutting a character or escape sequence in two."""
    stop = min(start + PIECE, end)
    if stop == end:
        return body[start:end]
    for _ in range(3):
        if body[stop] & 0xC0 == 0x80:  # a later byte of a UTF-8 sequence
            stop -= 1
    piece = body[start:stop]
    tail = piece.replace(b"\\\\", b"\0\0")[-12:]
    match = _UNFINISHED.search(tail)
    return piece[: len(piece) - (len(tail) - match.start())] if match else piece


def restore_strings(
    request: CreateEmbeddingRequest, body: bytes, outline: Outline, limits: Limits
) -> Generator[None, None, CreateEmbeddingRequest]:
    """Replace the placeholders in ``request`` by the strings of ``body``.

    Long strings of ignored fields are only checked.

    Raises:
        InvalidRequest: a string is malformed or too long; ``param`` names the field.
    """
    strings = _LongStrings(body, outline, limits)
    restored_inputs = yield from strings.restore(request.inputs, "inputs")
    restored_input = yield from strings.restore(request.input, "input")
    yield from strings.check_remaining()
    return msgspec.structs.replace(request, input=restored_input, inputs=restored_inputs)


class _LongStrings:
    """The long strings of one body, by the numbers in their placeholders."""

    def __init__(self, body: bytes, outline: Outline, limits: Limits) -> None:
        self._body = body
        self._limits = limits
        self._remaining = dict(enumerate(outline.strings))

    def restore(
        self, wire_input: WireInput | None, field: str
    ) -> Generator[None, None, WireInput | None]:
        if isinstance(wire_input, str):
            return (yield from self._restore_text(wire_input, field))
        if (
            not wire_input
            or len(wire_input) > self._limits.max_inputs
            or isinstance(wire_input[0], int | float | list)
        ):
            return wire_input  # token ids, or a value that is refused later
        items: WireItems = []
        for position, item in enumerate(wire_input):
            param = f"{field}[{position}]"
            if isinstance(item, str):
                items.append((yield from self._restore_text(item, param)))
            elif isinstance(item, Content):
                items.append(Content((yield from self._restore_parts(item, param))))
                yield
            else:
                items.append(item)
        return items

    def _restore_parts(
        self, item: Content, param: str
    ) -> Generator[None, None, list[TextPart | ImagePart]]:
        parts = list[TextPart | ImagePart]()
        for position, part in enumerate(item.content):
            part_param = f"{param}.content[{position}]"
            if isinstance(part, TextPart) and len(part.text) > LONGEST_NAME:
                text = yield from self._restore_text(part.text, f"{part_param}.text")
                parts.append(TextPart(text))
            elif isinstance(part, ImagePart) and len(part.image_url.url) > LONGEST_NAME:
                start, end = self._remaining.pop(int(part.image_url.url))
                url = yield from decode_url(self._body, start, end, f"{part_param}.image_url.url")
                parts.append(ImagePart(ImageURL(url)))
            else:
                parts.append(part)
        return parts

    def _restore_text(self, text: str, param: str) -> Generator[None, None, str]:
        if len(text) <= LONGEST_NAME:
            return text
        start, end = self._remaining.pop(int(text))
        return (yield from decode_text(self._body, start, end, self._limits, param))

    def check_remaining(self) -> Generator[None, None, None]:
        for start, end in self._remaining.values():
            for _ in decode_pieces(self._body, start, end):
                yield


def refuse_duplicate_members(
    outline: Outline, request: CreateEmbeddingRequest, limits: Limits
) -> Generator[None, None, None]:
    """Refuse a body in which an object has a key twice, in steps.

    ``request`` is the decoded outline.

    Raises:
        InvalidRequest: there is a duplicate key, or there are too many members to search for one.
    """
    inputs = {
        "input": _count_input_members(request.input),
        "inputs": _count_input_members(request.inputs),
    }
    others = outline.marks.colons - sum(inputs.values())
    if others == _count_members(request):
        return
    yield
    # Some member is null, in an ignored field, or a duplicate.
    if others > MOST_OTHER:
        raise InvalidRequest(
            f"The objects of the body, except inputs, have more than {MOST_OTHER} members. "
            "Send fewer."
        )
    members = yield from _check_each_field(outline.json, inputs, limits)
    if members != outline.marks.colons:
        if len(outline.json) <= EXAMINED:
            parse_again(outline.json)
        raise InvalidRequest("Duplicate key in the body. Send it once.")


def split_members(body: bytes, limits: Limits) -> Generator[None, None, Mapping[str, msgspec.Raw]]:
    """Split a body into the members of its object; their values are valid JSON, not yet decoded.

    Raises:
        InvalidRequest: the body is not a JSON object, has more values than any valid request, is
            nested too deeply, or has a key twice outside its inputs.
    """
    marks = yield from count_marks(memoryview(body), limits)
    yield
    try:
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise decode_errors.explain_error(error, body, {}, {}) from None
    yield
    colons = len(members)
    for raw in members.values():
        inner = yield from count_marks(memoryview(raw), limits)
        colons += inner.colons
    if colons != marks.colons:
        if len(body) <= EXAMINED:
            parse_again(body)
        raise InvalidRequest("Duplicate key in the body. Send it once.")
    return members


def _check_each_field(
    body: bytes, inputs: Mapping[str, int], limits: Limits
) -> Generator[None, None, int]:
    """Refuse duplicate keys inside the fields of a body; return the number of members found.

    ``inputs`` maps each field for inputs to the number of members that were decoded from it.
    """
    fields = _split_fields(body)
    members = len(fields)
    for name, raw in fields.items():
        marks = yield from count_marks(memoryview(raw), limits)
        members += marks.colons
        if name not in inputs:
            if marks.commas + marks.arrays + marks.objects > MOST_OTHER:
                raise InvalidRequest(
                    f"{echo(name)} holds more than {MOST_OTHER} values. Send fewer.", param=name
                )
            parse_again(bytes(raw), name)
        elif marks.colons != inputs[name]:
            raise InvalidRequest(
                f"Duplicate key in an object of {echo(name)}. Send it once.", param=name
            )
    return members


def _split_fields(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # The names of ignored fields were skipped before, not decoded.
        raise InvalidRequest(
            "The body is not valid JSON: the name of a field is malformed."
        ) from None


def _count_members(value: object) -> int:
    """Count the members of the objects from which ``value`` was decoded, except those of inputs."""
    if not isinstance(value, msgspec.Struct):
        return 0
    fields = [field for field in msgspec.structs.astuple(value) if field is not None]
    return len(fields) + sum(map(_count_members, fields))


def _count_input_members(wire_input: WireInput | None) -> int:
    if not isinstance(wire_input, list) or Content not in set(map(type, wire_input)):
        return 0
    contents = [item for item in wire_input if isinstance(item, Content)]
    parts = [part for item in contents for part in item.content]
    return len(contents) + 2 * len(parts) + sum(isinstance(part, ImagePart) for part in parts)
