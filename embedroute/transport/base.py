"""Defines the protocol of all transports, and the limits and checks that they share."""

import math
import zlib
from collections.abc import Mapping
from typing import Final, Literal, Protocol

import msgspec

from embedroute.backend import TRANSPORT_HEADERS, Secret, UpstreamRequest, UpstreamResponse
from embedroute.errors import (
    ConnectError,
    InvalidUpstreamResponse,
    PoolTimeout,
    TLSError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.reasons import NOT_HTTP, TLS_REASONS, describe_timeout

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
CONNECT_TIMEOUT = 5.0
"""Seconds for connecting, including the DNS lookup and the TLS handshake."""
DNS_TTL: Final = 30.0
"""Seconds for which the addresses of a name are used without another lookup."""
SHORT_LOOKUP: Final = 0.5
"""Seconds for which a request waits for a DNS lookup if it can use another endpoint."""
ADDRESS_TIMEOUT: Final = 1.0
"""Seconds for connecting to an address if others are left."""
ADDRESS_PAUSE: Final = 5.0
"""Seconds for which an address that could not be reached is used after the others."""


DEFAULT_HEADERS: Final = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": "embedroute",
}
"""Headers of a request that a backend can override."""
MAX_CONNECTIONS = 512
"""Connections to one host, if the config of the provider does not limit them."""

TLSTrust = Literal["system", "environment", "ca_file"]
"""Which certificate authorities are trusted; see ``TransportConfig``."""


class TransportConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of connections.

    ``proxy`` is the URL of a proxy for all requests. ``http2`` enables HTTP/2 for upstreams that
    offer it over TLS.

    ``tls_trust`` selects the trusted certificate authorities: those of the operating system, those
    of the environment, or only those of ``ca_file``. ``environment_file`` and ``environment_dir``
    are the values of SSL_CERT_FILE and SSL_CERT_DIR; if neither is set, the environment means the
    operating system. ``ca_file`` is a PEM file with further authorities.

    ``dns_ttl`` is how many seconds the addresses of a name are cached; 0 turns the cache off.
    """

    proxy: Secret | None = None
    ca_file: str | None = None
    tls_trust: TLSTrust = "system"
    environment_file: str | None = None
    environment_dir: str | None = None
    http2: bool = False
    dns_ttl: float = DNS_TTL


DEFAULT_CONFIG: Final = TransportConfig()


class ExchangeLimits(msgspec.Struct, frozen=True, gc=False):
    """The limits of one exchange, and its provider.

    ``largest`` is the maximum size of the body of a successful response, in bytes. ``rest`` is the
    time in seconds for which a connection must have been silent before it is reused; 0 turns that
    off. ``provider`` is the provider's name for log records and errors. ``max_connections`` is the
    maximum number of connections to the host of the request. ``dns_timeout`` is how many seconds a
    DNS lookup may have been in flight; a caller that can use another endpoint sets it. The time for
    connecting includes the lookup in any case. ``all_addresses`` spreads the requests over all
    addresses of the host; ``max_connections`` then applies to each of them.
    """

    largest: int = LARGEST_REPLY
    rest: float = 0.05
    provider: str = ""
    max_connections: int = MAX_CONNECTIONS
    dns_timeout: float = math.inf
    all_addresses: bool = False


DEFAULT_LIMITS: Final = ExchangeLimits()


class Transport(Protocol):
    """Sends a request and returns the complete response.

    Every transport requests uncompressed responses. It rejects compressed ones, except errors,
    whose bodies it decompresses. It follows no redirects, stores no cookies, and uses only the
    configured proxy. Cancelling ``send`` closes the connection.
    """

    name: str

    async def send(
        self, request: UpstreamRequest, timeout: float, limits: ExchangeLimits = DEFAULT_LIMITS
    ) -> UpstreamResponse:
        """Send ``request`` and return its response, within ``timeout`` seconds and ``limits``.

        Raises:
            ConnectError: no connection could be made.
            PoolTimeout: all connections to the upstream were in use.
            UpstreamTimeout: the response was not complete in time.
            UpstreamUnavailable: the connection broke, or the response is not valid HTTP.
            InvalidUpstreamResponse: the body of a success is compressed, or a body is larger than
                ``limits.largest``.
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
    if not TRANSPORT_HEADERS.isdisjoint(lowered):
        names = ", ".join(sorted(TRANSPORT_HEADERS.intersection(lowered)))
        raise UpstreamUnavailable(
            f"The provider sets the header {names}, which the HTTP client sets itself."
            " Remove it from the provider's headers.",
            reason="header that the HTTP client sets itself",
        )
    return lowered


def cannot_connect(reason: str, route: str = "") -> ConnectError:
    """Create the error for a failed connection; ``route`` names the proxy, if there is one."""
    reason = reason or "connection failed"
    kind = TLSError if reason in TLS_REASONS else ConnectError
    return kind(f"Cannot connect to the upstream{route}: {reason}.", reason=reason)


def connect_timeout(seconds: float, route: str = "") -> ConnectError:
    """Create the error for a connection that was not made within ``seconds``."""
    return cannot_connect(describe_timeout(seconds, "connecting"), route)


def dns_timeout(seconds: float) -> ConnectError:
    """Create the error for a DNS lookup that took ``seconds``."""
    return cannot_connect(describe_timeout(seconds, "DNS lookup"))


def timed_out(seconds: float) -> UpstreamTimeout:
    """Create the error for a response that was not complete within ``seconds``."""
    reason = describe_timeout(seconds)
    return UpstreamTimeout(f"The upstream {reason}.", reason=reason)


def broken(reason: str) -> UpstreamUnavailable:
    """Create the error for a connection that broke during the exchange."""
    return UpstreamUnavailable(f"The upstream failed: {reason}.", reason=reason)


def header_with_line_break() -> UpstreamUnavailable:
    """Create the error for a header of the provider that would end too early."""
    return UpstreamUnavailable(
        "The provider has a header that contains a line break. Remove it.",
        reason="header with a line break",
    )


def pool_timeout(limits: ExchangeLimits, seconds: float) -> PoolTimeout:
    """Create the error for a request that waited ``seconds`` for a connection."""
    table = f" in [providers.{limits.provider}]" if limits.provider else ""
    return PoolTimeout(
        f"The upstream was not called: all {limits.max_connections} connections to it were in use"
        f" for {seconds:.1f} s. Raise max_connections{table}, or send fewer requests at once.",
        reason=describe_timeout(seconds, "waiting for one of the connections"),
    )


def too_large(largest: int = LARGEST_REPLY) -> InvalidUpstreamResponse:
    """Create the error for a response body of more than ``largest`` bytes."""
    return InvalidUpstreamResponse(
        f"The upstream's response is larger than {largest} bytes.", reason="response too large"
    )


def head_too_large() -> UpstreamUnavailable:
    """Create the error for a response whose headers and framing exceed ``LARGEST_HEAD``."""
    return UpstreamUnavailable(
        f"The upstream's response headers and chunk framing are larger than {LARGEST_HEAD} bytes.",
        reason="response headers too large",
    )


def not_http() -> UpstreamUnavailable:
    """Create the error for bytes that are not an HTTP/1.1 response."""
    return UpstreamUnavailable("The upstream's response is not valid HTTP.", reason=NOT_HTTP)


def refuse_compressed(encoding: str | None, status: int = 200) -> None:
    """Reject a compressed body: 1 KiB of brotli can expand to 1 GiB.

    The body of an error is accepted: ``decompress_error_body`` reads a part of it.

    Raises:
        InvalidUpstreamResponse: ``encoding`` is neither empty nor ``identity``.
    """
    if encoding and encoding.strip().lower() != "identity" and status < 300:
        raise InvalidUpstreamResponse(
            "The upstream sent a compressed response, although the request forbids it.",
            reason="compressed response",
        )


_WINDOW_BITS: Final[Mapping[str, tuple[int, ...]]] = {
    "gzip": (31,),
    "x-gzip": (31,),
    "deflate": (15, -15),  # RFC 9110 requires the zlib format, but some servers send raw deflate
}


def decompress_error_body(encoding: str | None, content: bytes) -> bytes:
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
