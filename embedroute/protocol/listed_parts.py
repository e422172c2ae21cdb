"""Accepts an ``input`` that lists the content parts of one input, without a content object.

``[{"type": "text", …}, {"type": "image_url", …}]`` is the ``content`` of chat messages, and means
the same as ``[{"content": […]}]``: one input with these parts.
"""

import re
from collections.abc import Mapping
from typing import Final, cast

import msgspec

from embedroute.errors import InvalidRequest
from embedroute.inputs import ImagePart, TextPart

FIELDS: Final = ("input", "inputs")

_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_PARTS: Final = re.compile(rb'\[[ \t\r\n]*\{[ \t\r\n]*"(?:type|text|image_url)"')
"""The beginning of a list of parts: the first key of a content object is ``content``."""


class WrappedBody(msgspec.Struct, frozen=True):
    """A JSON body with ``added`` content objects around listed parts."""

    json: bytes
    added: int


def wrap_json(body: bytes) -> WrappedBody | None:
    """Put the listed parts of a JSON body into a content object; None if it lists no parts."""
    try:
        members = _MEMBERS.decode(body)
        names = [name for name in FIELDS if name in members and _PARTS.match(members[name])]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not names:
        return None
    for name in names:
        members[name] = msgspec.Raw(b'[{"content":%b}]' % bytes(members[name]))
    return WrappedBody(msgspec.json.encode(members), len(names))


def wrap_values(values: Mapping[str, object]) -> Mapping[str, object] | None:
    """Put the listed parts of an in-process request into a content object, or return None."""
    wrapped = dict[str, object]()
    for name in FIELDS:
        items = values.get(name)
        if isinstance(items, list) and items and _is_part(cast("list[object]", items)[0]):
            wrapped[name] = [{"content": cast("list[object]", items)}]
    return {**values, **wrapped} if wrapped else None


def rename(error: InvalidRequest) -> InvalidRequest:
    """Name the part in an error as the client has listed it."""
    for name in FIELDS:
        error.message = error.message.replace(f"{name}[0].content", name)
        if error.param is not None:
            error.param = error.param.replace(f"{name}[0].content", name)
    return error


def _is_part(item: object) -> bool:
    if isinstance(item, Mapping):
        return "type" in item and "content" not in item
    return isinstance(item, TextPart | ImagePart)
