"""How bytes reach an upstream: one small protocol, and engines that keep it. Alone knows HTTP clients."""

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from embedroute.backend import Secret, UpstreamRequest, UpstreamResponse
from embedroute.errors import InvalidUpstreamResponse, UpstreamUnavailable

LARGEST_REPLY = 256 * 1024 * 1024
"""Bytes of an answer that are read; 2048 float vectors of 4096 numbers are about 180 MB of text."""
LARGEST_ERROR = 1024 * 1024
"""Bytes of a response with a status of 300 or more that are read, whatever its exchange's limit is."""
LARGEST_HEAD = 64 * 1024
"""Bytes that a response may have besides its body: status lines, headers, trailers, chunk extensions, 1xx responses."""
CHUNK_FRAMING = 16
"""Bytes that frame one chunk; they do not count towards ``LARGEST_HEAD``."""
MOST_HEADERS = 256
"""Headers that a response may have."""
AT_A_TIME = 512 * 1024
"""Bytes that are read before others have their turn: a quick upstream would keep the loop reading for milliseconds."""
TAIL = 1024 * 1024
"""Bytes at the end of an answer over TLS that are read as they come."""
FRAMING: Final = frozenset({"connection", "content-length", "transfer-encoding", "upgrade"})
CONNECT_TIMEOUT = 5.0
"""Seconds for a connection and its TLS handshake."""


class TransportConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How connections are made: through ``proxy``, if one is named, trusting ``ca_file`` (PEM) besides the system.

    With ``http2`` they speak HTTP/2 to upstreams that offer it over TLS.
    """

    proxy: Secret | None = None
    ca_file: str | None = None
    http2: bool = False


DEFAULT_CONFIG: Final = TransportConfig()


class ExchangeLimits(msgspec.Struct, frozen=True, gc=False):
    """The bounds of one exchange, and the provider that it is made for.

    ``largest`` bounds the body of a successful answer, in bytes. ``rest`` is how long a connection must have been silent, in
    seconds, before it is used again; 0 turns that off. ``provider`` is the slug that log records name.
    """

    largest: int = LARGEST_REPLY
    rest: float = 0.05
    provider: str = ""


DEFAULT_LIMITS: Final = ExchangeLimits()


class Transport(Protocol):
    """Sends one request and gives back the whole answer.

    Every engine asks for no compression and refuses compressed bodies, follows no redirect, keeps no cookies and
    uses no proxy that it was not told of. Cancelling ``send`` gives the connection up.
    """

    name: str

    async def send(
        self, request: UpstreamRequest, timeout: float, limits: ExchangeLimits = DEFAULT_LIMITS
    ) -> UpstreamResponse:
        """Exchange ``request`` for its answer within ``timeout`` seconds and ``limits``.

        Raises:
            ConnectError: no connection was made.
            UpstreamTimeout: the answer was not whole in time.
            UpstreamUnavailable: the connection broke, or the answer is no HTTP.
            InvalidUpstreamResponse: the answer is compressed, or larger than ``limits.largest``.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


def lower_names(headers: Mapping[str, str | Secret]) -> dict[str, str | Secret]:
    """Return headers with their names in lower case, so that each is found and sent once.

    Secrets stay secrets: an engine reveals them in the expression that writes the request, so that no variable shows them.

    Raises:
        UpstreamUnavailable: one says where a request ends or what follows it, which is the engine's to say.
    """
    given = {name.lower(): value for name, value in headers.items()}
    if not FRAMING.isdisjoint(given):
        raise UpstreamUnavailable(
            "A header of this provider says where a request ends, which is the engine's to say."
        )
    return given


def too_large(largest: int = LARGEST_REPLY) -> InvalidUpstreamResponse:
    """Make the error for an answer of more than ``largest`` bytes."""
    return InvalidUpstreamResponse(f"The upstream's answer is larger than {largest} bytes.")


def head_too_large() -> UpstreamUnavailable:
    """Make the error for a response whose headers and framing exceed ``LARGEST_HEAD``."""
    return UpstreamUnavailable(
        f"The upstream's headers and chunk framing are larger than {LARGEST_HEAD} bytes."
    )


def not_http() -> UpstreamUnavailable:
    """Make the error for what cannot be read as an HTTP/1.1 response."""
    return UpstreamUnavailable("The upstream's answer is not HTTP.")


def refuse_compressed(encoding: str | None) -> None:
    """Refuse a body that was compressed though ``identity`` was asked for: 1 KiB of brotli can be 1 GiB.

    Raises:
        InvalidUpstreamResponse: ``encoding`` is neither empty nor ``identity``.
    """
    if encoding and encoding.strip().lower() != "identity":
        raise InvalidUpstreamResponse(
            "The upstream compressed its answer though it was asked not to."
        )
