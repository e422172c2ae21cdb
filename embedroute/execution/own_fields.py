"""Leaves out the fields of an upstream request that an upstream rejects and no client asked for.

The gateway asks for base64, sends one text as a list, passes ``user`` on and states the model's own
width. None of these changes a vector, so a server that rejects one of them can do without it.
"""

from collections.abc import Collection
from typing import Final

import msgspec

from embedroute.backend import Batch, UpstreamRequest
from embedroute.errors import UpstreamError

SIZES: Final = frozenset(
    {"dimensions", "dimension", "output_dimension", "output_dimensionality", "outputDimensionality"}
)
"""Names of the field for the width of a vector."""

_Fields = dict[str, msgspec.Raw]


def find_own_field(error: UpstreamError, batch: Batch, width: int | None) -> str | None:
    """Return the rejected field if the gateway can leave it out, or None.

    ``width`` is the model's own: a request for it is the same as none.
    """
    field = error.field
    if field in {"encoding_format", "user"}:
        return field
    if field in SIZES and width is not None and batch.dimensions == width:
        return field
    if field == "input" and len(batch.texts) == 1:
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
