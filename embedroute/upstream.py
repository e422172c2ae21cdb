"""One exchange with an upstream, as plain values: what a backend writes and what it reads.

Plugin authors take these from :mod:`embedroute.backend`.
"""

from collections.abc import Mapping
from typing import Any, Self

import msgspec

from embedroute.errors import BadAnswer
from embedroute.secret import Secret

_ENCODER = msgspec.json.Encoder()


class UpstreamRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request to an upstream; header names in lower case."""

    url: str
    content: bytes
    headers: Mapping[str, str | Secret]
    method: str = "POST"

    @classmethod
    def json(
        cls, url: str, body: Mapping[str, object], *, bearer: Secret | None = None, headers: Mapping[str, str | Secret] = {}
    ) -> Self:
        """POST ``body`` as JSON; keys whose value is None are left out."""
        content = _ENCODER.encode({name: value for name, value in body.items() if value is not None})
        sent: dict[str, str | Secret] = {"content-type": "application/json", **headers}
        if bearer is not None and bearer.reveal():
            sent["authorization"] = Secret(f"Bearer {bearer.reveal()}")
        return cls(url=url, content=content, headers=sent)


class UpstreamReply(msgspec.Struct, frozen=True):
    """One HTTP answer of an upstream; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self, type: Any = Any) -> Any:
        """Decode the body, into ``type`` if one is given.

        Raises:
            BadAnswer: the body is not JSON, or not of that type.
        """
        try:
            return msgspec.json.decode(self.content, type=type)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadAnswer(f"The upstream's body is not the JSON that was due: {error}") from None
