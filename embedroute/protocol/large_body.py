"""Reads a large body in steps of a millisecond: the outline of its JSON first, then its long strings piece by piece.

One C call over 32 MiB of JSON may hold an event loop up for 100 ms, and one over millions of empty values for seconds.
So the characters outside strings are counted first, slice by slice, and a body with more of them than any legal request
has is refused before it is decoded. Each string over ``LONGEST_NAME`` bytes is replaced in the outline by a stand-in of
more characters than that. No other string of the outline is so long, so stand-ins cannot be confused with content.

Puts the long strings of a large body into what its outline decoded to, one step each.

Refuses a large body in which an object names a key twice: by counting colons, as each member of an object has one.
"""

import re
from collections.abc import Generator
from itertools import accumulate
from operator import gt
from typing import Final

import msgspec

from embedroute.errors import InvalidRequest
from embedroute.inputs import ImagePart, ImageURL, TextPart
from embedroute.protocol import decode_errors
from embedroute.protocol.decode_errors import DEEPEST, EXAMINED, parse_again, refuse_depth
from embedroute.protocol.input_kinds import Limits
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
"""Bytes that are searched for quotes at a time."""
PIECE: Final = 1 << 18
"""Bytes of a string that are decoded at a time."""

_DECODER: Final = msgspec.json.Decoder(str)
_NO_BRACKETS: Final = bytes(set(range(256)).difference(b"[]{}"))
_STEPS: Final = [(byte in b"[{") - (byte in b"]}") for byte in range(256)]
_SHAPE: Final = bytes.maketrans(b"123456789E", b"000000000e")
_ODD: Final = (b"e000", b"e+000", b"e-000", b"0" * 32)
_KEY: Final = re.compile(rb'"[ \t\r\n]{0,64}:')
_UNFINISHED: Final = re.compile(
    rb"(?:\\u[dD][89abAB][0-9a-fA-F]{2})?(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z"
)
"""The end of a piece that must not be cut off from what follows: half of a surrogate pair, or part of an escape."""


MOST_OTHER: Final = 20_000
"""Values and members that a large body may have besides its inputs: ignored fields may hold anything."""
MOST_ODD_NUMBERS: Final = 100
"""Numbers in a large body that cannot be token ids by the look of them."""


class Marks(msgspec.Struct):
    """How often characters occur outside the strings of some JSON, how many bytes that is, and the quotes around strings.

    ``depth`` is how deep what follows is nested. Odd numbers have an exponent of three digits or more, or 32 digits in
    a row: reading one takes microseconds, a hundred times as long as a token id.
    """

    commas: int = 0
    arrays: int = 0
    objects: int = 0
    colons: int = 0
    quotes: int = 0
    outside: int = 0
    depth: int = 0
    odd_numbers: int = 0


def most_marks(limits: Limits) -> Marks:
    """Count the marks of the largest legal requests, each by its own kind of input."""
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
        odd_numbers=MOST_ODD_NUMBERS,
    )


class Outline(msgspec.Struct, frozen=True):
    """A body whose long strings are replaced by stand-ins, with the place of each in the body, and its marks."""

    json: bytes
    strings: list[tuple[int, int]]
    marks: Marks


def outlined(body: bytes, limits: Limits) -> Generator[None, None, Outline]:
    """Take the long strings out of a body, and count what is left.

    Raises:
        InvalidRequest: more values than any legal request has, or a key of more than ``LONGEST_NAME`` bytes.
    """
    kept, long, marks = list[bytes](), list[tuple[int, int]](), Marks()
    copied = 0
    for start, end in _strings(body, marks, limits):
        yield
        if end > start:
            if _KEY.match(body, end):
                raise InvalidRequest(
                    f"The body has a key of more than {LONGEST_NAME} bytes; take it out of the body."
                )
            kept += (body[copied:start], b"%0*d" % (LONGEST_NAME + 1, len(long)))
            long.append((start, end))
            copied = end
    kept.append(body[copied:])
    return Outline(b"".join(kept), long, marks)


def count_marks(text: memoryview, limits: Limits) -> Generator[None, None, Marks]:
    """Count the marks of some JSON that was valid."""
    marks = Marks()
    for _ in _strings(text, marks, limits):
        yield
    return marks


def _strings(
    body: bytes | memoryview, marks: Marks, limits: Limits
) -> Generator[tuple[int, int], None, None]:
    """Find the strings of over ``LONGEST_NAME`` bytes: each begins at the first position told, and ends before the second.

    An empty one is told after each slice. ``marks`` counts on the way.
    """
    most, at, begun = most_marks(limits), 0, -1
    while at < len(body):
        piece = bytes(body[at : at + SLICE])
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # an escape belongs together
            piece = bytes(body[at : at + SLICE + 1])
        # Where a backslash stands outside a string the body is malformed, and so is its outline.
        parts = piece.replace(rb"\\", b"\0\0").replace(rb"\"", b"\0\0").split(b'"')
        _count(marks, b"".join(parts[begun >= 0 :: 2]), len(parts) - 1)
        _refuse_too_many(marks, most, limits)
        begun = yield from _long_ones(parts, at, begun)
        at += len(piece)
        yield at, at
    if begun >= 0:
        raise InvalidRequest("The body is not valid JSON: it ends inside a string.")


def _long_ones(parts: list[bytes], at: int, begun: int) -> Generator[tuple[int, int], None, int]:
    """Tell the long strings that end in a slice, and return where the one begins that does not, or -1.

    ``parts`` of the slice lie between quotes; it begins ``at`` a place within the string that has ``begun``, if any.
    """
    if max(map(len, parts)) <= LONGEST_NAME and len(parts) > 1:
        # Only the string that began before the slice may be long.
        end = at + len(parts[0])
        if begun >= 0 and end - begun > LONGEST_NAME:
            yield begun, end
        inside = (begun >= 0) ^ (len(parts) % 2 == 0)
        return at + sum(map(len, parts[:-1])) + len(parts) - 1 if inside else -1
    for part in parts[:-1]:
        at += len(part)
        if begun < 0:
            begun = at + 1
        else:
            if at - begun > LONGEST_NAME:
                yield begun, at
            begun = -1
        at += 1
    return begun


def _count(marks: Marks, outside: bytes, quotes: int) -> None:
    marks.commas += outside.count(b",")
    marks.arrays += outside.count(b"[")
    marks.objects += outside.count(b"{")
    marks.colons += outside.count(b":")
    marks.quotes += quotes
    marks.outside += len(outside)
    shape = outside.translate(_SHAPE)
    marks.odd_numbers += sum(map(shape.count, _ODD))
    if brackets := outside.translate(None, _NO_BRACKETS):
        levels = list(accumulate(map(_STEPS.__getitem__, brackets), initial=marks.depth))
        marks.depth = levels[-1]
        if max(levels) > DEEPEST:
            refuse_depth()


def _refuse_too_many(marks: Marks, most: Marks, limits: Limits) -> None:
    if not any(map(gt, msgspec.structs.astuple(marks), msgspec.structs.astuple(most))):
        return
    if marks.odd_numbers > most.odd_numbers:
        message = f"The body holds too many long numbers; token ids are from 0 to {2**31 - 1}."
        raise InvalidRequest(message, param="input")
    advice = (
        f"send at most {limits.max_inputs} inputs and {limits.max_token_ids} token ids at a time."
    )
    if marks.commas > most.commas and marks.quotes < MOST_OTHER:
        raise InvalidRequest(
            f"The body holds too many numbers; {advice}",
            param="input",
            code="max_tokens_per_request",
        )
    raise InvalidRequest(f"The body holds too much besides texts; {advice}")


def string_in(
    body: bytes, start: int, end: int, param: str | None = None
) -> Generator[None, None, str]:
    """Decode the string whose content is ``body[start:end]``, and which stands at ``param``.

    Raises:
        InvalidRequest: it is no JSON string.
    """
    pieces = list[str]()
    while start < end:
        piece = _piece(body, start, end)
        start += len(piece)
        quoted = b'"%b"' % piece
        try:
            pieces.append(_DECODER.decode(quoted))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise decode_errors.broken_string(error, quoted, param) from None
        yield
    return pieces[0] if len(pieces) == 1 else "".join(pieces)


def _piece(body: bytes, start: int, end: int) -> bytes:
    """Take the next characters of a string, none of which is cut in two."""
    stop = min(start + PIECE, end)
    if stop == end:
        return body[start:end]
    for _ in range(3):
        if body[stop] & 0xC0 == 0x80:  # a later byte of a UTF-8 sequence
            stop -= 1
    piece = body[start:stop]
    last = piece.replace(b"\\\\", b"\0\0")[-12:]
    found = _UNFINISHED.search(last)
    return piece[: len(piece) - (len(last) - found.start())] if found else piece


def restored(
    request: CreateEmbeddingRequest, body: bytes, outline: Outline, limits: Limits
) -> Generator[None, None, CreateEmbeddingRequest]:
    """Replace each stand-in of ``request`` by its string in ``body``; long strings of ignored fields are only checked.

    Raises:
        InvalidRequest: a string is malformed; ``param`` names its place.
    """
    strings = _Strings(body, outline, limits.max_inputs)
    inputs = yield from strings.put_in(request.inputs, "inputs")
    given = yield from strings.put_in(request.input, "input")
    yield from strings.check_the_rest()
    return msgspec.structs.replace(request, input=given, inputs=inputs)


class _Strings:
    """The long strings of one body, by the numbers in their stand-ins."""

    def __init__(self, body: bytes, outline: Outline, max_inputs: int) -> None:
        self._body = body
        self._max_inputs = max_inputs
        self._left = dict(enumerate(outline.strings))

    def put_in(self, given: WireInput | None, name: str) -> Generator[None, None, WireInput | None]:
        if isinstance(given, str):
            return (yield from self._whole(given, name))
        if not given or len(given) > self._max_inputs or isinstance(given[0], int | float | list):
            return given  # ids, or what is refused anyway
        items: WireItems = []
        for position, item in enumerate(given):
            place = f"{name}[{position}]"
            if isinstance(item, str):
                items.append((yield from self._whole(item, place)))
            elif isinstance(item, Content):
                items.append(Content((yield from self._parts(item, place))))
                yield
            else:
                items.append(item)
        return items

    def _parts(
        self, item: Content, place: str
    ) -> Generator[None, None, list[TextPart | ImagePart]]:
        parts = list[TextPart | ImagePart]()
        for position, part in enumerate(item.content):
            here = f"{place}.content[{position}]"
            if isinstance(part, TextPart) and len(part.text) > LONGEST_NAME:
                parts.append(TextPart((yield from self._whole(part.text, f"{here}.text"))))
            elif isinstance(part, ImagePart) and len(part.image_url.url) > LONGEST_NAME:
                url = yield from self._whole(part.image_url.url, f"{here}.image_url.url")
                parts.append(ImagePart(ImageURL(url)))
            else:
                parts.append(part)
        return parts

    def _whole(self, text: str, place: str) -> Generator[None, None, str]:
        if len(text) <= LONGEST_NAME:
            return text
        start, end = self._left.pop(int(text))
        return (yield from string_in(self._body, start, end, place))

    def check_the_rest(self) -> Generator[None, None, None]:
        for start, end in self._left.values():
            yield from string_in(self._body, start, end)


def refuse_duplicate_members(
    outline: Outline, request: CreateEmbeddingRequest, limits: Limits
) -> Generator[None, None, None]:
    """Refuse a body in which any object names a key twice, in steps; ``request`` is what its outline decoded to.

    Raises:
        InvalidRequest: it does, or there are too many members to look.
    """
    inputs = {
        "input": _members_of_input(request.input),
        "inputs": _members_of_input(request.inputs),
    }
    others = outline.marks.colons - sum(inputs.values())
    if others == _members(request):
        return
    yield
    # A member is null, ignored, or named twice.
    if others > MOST_OTHER:
        raise InvalidRequest(
            f"The body has more than {MOST_OTHER} members besides those of inputs; send fewer."
        )
    fields = _fields(outline.json)
    members = len(fields)
    for name, raw in fields.items():
        marks = yield from count_marks(memoryview(raw), limits)
        members += marks.colons
        if name not in inputs:
            if marks.commas + marks.arrays + marks.objects > MOST_OTHER:
                raise InvalidRequest(
                    f"{echo(name)} holds more than {MOST_OTHER} values; send fewer.", param=name
                )
            parse_again(bytes(raw), name)
        elif marks.colons != inputs[name]:
            raise InvalidRequest(
                f"An object in {echo(name)} has a key twice; send it once.", param=name
            )
    if members != outline.marks.colons:
        if len(outline.json) <= EXAMINED:
            parse_again(outline.json)
        raise InvalidRequest("The body has a key twice; send it once.")


def _fields(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (
        msgspec.MsgspecError,
        UnicodeDecodeError,
    ):  # the name of an ignored field has only been skipped so far
        raise InvalidRequest(
            "The body is not valid JSON: the name of a field is malformed."
        ) from None


def _members(value: object) -> int:
    """Count the members of the objects that ``value`` was decoded from, without those of inputs."""
    if not isinstance(value, msgspec.Struct):
        return 0
    given = [held for held in msgspec.structs.astuple(value) if held is not None]
    return len(given) + sum(map(_members, given))


def _members_of_input(given: WireInput | None) -> int:
    if not isinstance(given, list) or Content not in set(map(type, given)):
        return 0
    contents = [item for item in given if isinstance(item, Content)]
    parts = [part for item in contents for part in item.content]
    return len(contents) + 2 * len(parts) + sum(isinstance(part, ImagePart) for part in parts)
