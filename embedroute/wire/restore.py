"""Puts the long strings of a large body into what its outline decoded to, one step each."""

from collections.abc import Generator

import msgspec

from embedroute.inputs import ImagePart, ImageURL, TextPart
from embedroute.wire.narrow import Limits
from embedroute.wire.outline import Outline, string_in
from embedroute.wire.preferences import LONGEST_NAME
from embedroute.wire.requests import Content, CreateEmbeddingRequest, WireInput, WireItems


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

    def _parts(self, item: Content, place: str) -> Generator[None, None, list[TextPart | ImagePart]]:
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
