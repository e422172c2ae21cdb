"""Leaves out the fields of an upstream request that an upstream rejects and no client asked for.

The gateway asks for base64, sends one text as a list, and passes ``user`` on. None of these changes
a vector, so a server that rejects one of them can do without it.
"""

import re
from collections.abc import Collection
from typing import Final

import msgspec

from embedroute.backend import Batch, UpstreamRequest
from embedroute.errors import UpstreamError

_ABOUT_VALUE: Final = re.compile(
    r"\b(too (long|short|large)|at (most|least)|max(imum)?|length|characters?|pattern|expected"
    r"|invalid (value|type|format)|must (be|match|have|contain))\b",
    re.IGNORECASE,
)
"""Words about a value that is not valid. The upstream knows such a field."""

_Fields = dict[str, msgspec.Raw]


def find_own_field(error: UpstreamError, batch: Batch) -> str | None:
    """Return the rejected field if the gateway can leave it out, or None.

    An upstream that rejects one client's value of ``user`` must still get those of the others.
    """
    field = error.field
    if field == "user":
        return None if _ABOUT_VALUE.search(error.message) else field
    if field == "encoding_format" or (field == "input" and len(batch.texts) == 1):
        return field
    return None


def omit_fields(request: UpstreamRequest, fields: Collection[str]) -> UpstreamRequest:
    """Return the request without top-level ``fields`` of its JSON body.

    A list of one ``input`` becomes that input. A body that is not a JSON object is not changed.
    """
    try:
        body = msgspec.json.decode(request.content, type=_Fields)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return request
    kept = {name: value for name, value in body.items() if name not in fields}
    if "input" in fields and "input" in body:
        kept["input"] = _unpack(body["input"])
    return msgspec.structs.replace(request, content=msgspec.json.encode(kept))


def _unpack(value: msgspec.Raw) -> msgspec.Raw:
    try:
        (text,) = msgspec.json.decode(value, type=tuple[str])
    except msgspec.ValidationError:
        return value
    return msgspec.Raw(msgspec.json.encode(text))
