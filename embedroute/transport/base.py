"""Defines the protocol of all transports, and the limits and checks that they share."""

import zlib
from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from embedroute.backend import Secret, UpstreamRequest, UpstreamResponse
from embedroute.errors import InvalidUpstreamResponse, UpstreamUnavailable

LARGEST_REPLY = 256 * 1024 * 1024
"""Maximum bytes of a response body; 2048 vectors of 4096 floats are about 180 MB of text."""
LARGEST_ERROR = 1024 * 1024
"""Bytes of a body that are accepted at a status of 300 or more, even if the limit is lower."""
LARGEST_DECOMPRESSED: Final = 64 * 1024
"""Maximum bytes that the compressed body of an error is expanded to."""
LARGEST_HEAD = 64 * 1024
"""Maximum bytes of a response besides its body.

They are its status lines, headers, trailers, chunk extensions and 1xx responses.
"""
CHUNK_FRAMING = 16
"""Bytes of framing per chunk that do not count towards ``LARGEST_HEAD``."""
MOST_HEADERS = 256
"""Maximum number of headers of a response."""
AT_A_TIME = 512 * 1024
"""Bytes after which reading pauses: a fast upstream would keep the loop busy for milliseconds."""
TAIL = 1024 * 1024
"""Bytes at the end of a response over TLS that are read without a pause."""
FRAMING: Final = frozenset({"connection", "content-length", "transfer-encoding", "upgrade"})
"""Headers that the transport sets itself."""
CONNECT_TIMEOUT = 5.0
"""Seconds for connecting, including the TLS handshake."""


class TransportConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of connections.

    ``proxy`` is the URL of a proxy. ``ca_file`` is a PEM file with certificates that are trusted in
    addition to the system's. ``http2`` enables HTTP/2 for upstreams that offer it over TLS.
    """

    proxy: Secret | None = None
    ca_file: str | None = None
    http2: bool = False


DEFAULT_CONFIG: Final = TransportConfig()


class ExchangeLimits(msgspec.Struct, frozen=True, gc=False):
    """The limits of one exchange, and its provider.

    ``largest`` is the maximum size of the body of a successful response, in bytes. ``rest`` is the
    time in seconds for which a connection must have been silent before it is reused; 0 turns that
    off. ``provider`` is the provider's name for log records.
    """

    largest: int = LARGEST_REPLY
    rest: float = 0.05
    provider: str = ""


DEFAULT_LIMITS: Final = ExchangeLimits()


class Transport(Protocol):
    """Sends a request and returns the complete response.

    Every transport requests uncompressed responses and rejects compressed ones, except errors, whose
    bodies it decompresses. It follows no redirects, stores no cookies, and uses only the configured proxy. Cancelling ``send`` closes the
    connection.
    """

    name: str

    async def send(
        self, request: UpstreamRequest, timeout: float, limits: ExchangeLimits = DEFAULT_LIMITS
    ) -> UpstreamResponse:
        """Send ``request`` and return its response, within ``timeout`` seconds and ``limits``.

        Raises:
            ConnectError: no connection could be made.
            UpstreamTimeout: the response was not complete in time.
            UpstreamUnavailable: the connection broke, or the response is not valid HTTP.
            InvalidUpstreamResponse: a successful body is compressed, or a body is larger than ``limits.largest``.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


def lower_names(headers: Mapping[str, str | Secret]) -> dict[str, str | Secret]:
    """Return headers with their names in lower case, so that each name occurs once.

    Secret values stay secret. Reveal them only in the expression that writes the request, so that
    no local variable of a traceback holds them.

    Raises:
        UpstreamUnavailable: one is a header that the transport sets itself.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    if not FRAMING.isdisjoint(lowered):
        names = ", ".join(sorted(FRAMING.intersection(lowered)))
        raise UpstreamUnavailable(
            f"The provider sets the header {names}, which the HTTP client sets itself."
            " Remove it from the provider's headers."
        )
    return lowered


def too_large(largest: int = LARGEST_REPLY) -> InvalidUpstreamResponse:
    """Create the error for a response body of more than ``largest`` bytes."""
    return InvalidUpstreamResponse(f"The upstream response is larger than {largest} bytes.")


def head_too_large() -> UpstreamUnavailable:
    """Create the error for a response whose headers and framing exceed ``LARGEST_HEAD``."""
    return UpstreamUnavailable(
        f"The headers and chunk framing of the upstream response"
        f" are larger than {LARGEST_HEAD} bytes."
    )


def not_http() -> UpstreamUnavailable:
    """Create the error for bytes that are not an HTTP/1.1 response."""
    return UpstreamUnavailable("The upstream response is not valid HTTP.")


def refuse_compressed(encoding: str | None, status: int = 200) -> None:
    """Reject a compressed body: 1 KiB of brotli can expand to 1 GiB.

    The body of an error is accepted: ``decompress_error`` reads a part of it.

    Raises:
        InvalidUpstreamResponse: ``encoding`` is neither empty nor ``identity``.
    """
    if encoding and encoding.strip().lower() != "identity" and status < 300:
        raise InvalidUpstreamResponse(
            "The upstream sent a compressed response, although the request forbids it."
        )


_WINDOW_BITS: Final[Mapping[str, tuple[int, ...]]] = {
    "gzip": (31,),
    "x-gzip": (31,),
    "deflate": (15, -15),  # RFC 9110 requires the zlib format, but some servers send raw deflate
}


def decompress_error(encoding: str | None, content: bytes) -> bytes:
    """Return the first ``LARGEST_DECOMPRESSED`` bytes of the body of an error response.

    Some servers compress errors although the request forbids it. A body in an encoding that is not
    supported, or that is not valid, becomes empty: the status and the headers still count.
    """
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return content
    for bits in _WINDOW_BITS.get(name, ()):
        try:
            return zlib.decompressobj(bits).decompress(content, LARGEST_DECOMPRESSED)
        except zlib.error:
            continue
    return b""
