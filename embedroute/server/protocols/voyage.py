"""Translates the fields of Voyage's ``POST /v1/embeddings``.

Source: the reference of Voyage's text embeddings, November 2026. Voyage's client sends
``truncation: true`` with every request. So this allows an endpoint to cut a text, but does not
demand it.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from embedroute.errors import EmbedrouteError
from embedroute.protocol import ENCODER, Dtype, OpenAIDialect
from embedroute.server.protocols.translation import Neutral, Width
from embedroute.trace import RequestTrace


class VoyageFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields that OpenAI's API does not have."""

    output_dimension: Width = None
    output_dtype: Annotated[Dtype | None, Meta(description="The type of the numbers.")] = None
    truncation: Annotated[
        bool | None, Meta(description="`false`: a text that is too long is refused.")
    ] = None


class VoyageFormat(OpenAIDialect):
    """OpenAI's format, with Voyage's errors."""

    def error(self, error: EmbedrouteError, trace: RequestTrace) -> bytes:
        """Write the message."""
        del trace
        return ENCODER.encode({"detail": error.message})


def translate(fields: VoyageFields) -> Neutral:
    """Return the neutral fields that have the same effect."""
    names: dict[str, str] = {}
    values: dict[str, Any] = {}
    if fields.output_dimension is not None:
        values["dimensions"] = fields.output_dimension
        names["dimensions"] = "output_dimension"
    if fields.output_dtype is not None:
        values["output_dtype"] = fields.output_dtype
    if fields.truncation is False:
        values["truncate"] = "none"
        names["truncate"] = "truncation"
    return Neutral(values=values, names=names)
