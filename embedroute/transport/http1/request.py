"""Encodes the head of an HTTP/1.1 request from its method, URL and headers. Pure functions."""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

from embedroute.backend import Secret, SecretBytes, repr_as_in_rich, to_wire_value
from embedroute.errors import UpstreamUnavailable
from embedroute.transport.base import DEFAULT_HEADERS, header_with_line_break, lower_names
from embedroute.transport.proxy import Proxy
from embedroute.transport.url import parse_http_url

Origin = tuple[str, int, bool]
"""Host, port, and whether TLS is used: the key of a connection pool."""

_OVERRIDABLE: Final = frozenset({"host", "authorization", *DEFAULT_HEADERS})
_WIDE: Final = re.compile(r"[^\x00-\xff]")
_PLAIN: Final = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


class Target(msgspec.Struct, frozen=True):
    """A parsed URL: the origin to connect to and the start of a request for it."""

    origin: Origin
    request_line: str
    headers: Mapping[str, str | Secret]
    prefix: SecretBytes

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show only the origin, because the path and the query may contain a key."""
        return [("origin", self.origin)]

    __repr__ = repr_as_in_rich


def parse_target(method: str, url: str, proxy: Proxy | None = None) -> Target:
    """Parse the URL of a request. Credentials in it are sent as Basic authorization, as by httpx2.

    A request without TLS through a ``proxy`` has the whole URL in its first line and the
    credentials of the proxy. With TLS, the proxy sees neither the request nor its head.

    Raises:
        UpstreamUnavailable: the URL or the method is invalid.
    """
    parsed = parse_http_url(url)
    if parsed is None or not (method.isascii() and method.isalpha()):
        raise UpstreamUnavailable(
            "The backend built a request with an invalid method or URL. The URL must be http or"
            " https with an ASCII host name; encode international names as xn--…."
        )
    headers: dict[str, str | Secret] = {"host": parsed.authority, **DEFAULT_HEADERS}
    if parsed.authorization is not None:
        headers["authorization"] = parsed.authorization
    request_target = quote(parsed.target, safe=_PLAIN)
    if proxy is not None and not parsed.tls:
        request_target = f"http://{parsed.authority}{request_target}"
        if proxy.authorization is not None:
            headers["proxy-authorization"] = proxy.authorization
    request_line = f"{method} {request_target} HTTP/1.1\r\n"
    return Target(
        (parsed.host, parsed.port, parsed.tls),
        request_line,
        headers,
        _encode(request_line, headers),
    )


def write_head(target: Target, headers: Mapping[str, str | Secret]) -> bytes:
    """Encode the head of a request, except for the length of its body.

    Raises:
        UpstreamUnavailable: a header is invalid, or one that the transport sets itself.
    """
    own_headers = lower_names(headers)
    prefix = target.prefix
    if not _OVERRIDABLE.isdisjoint(own_headers):
        prefix = _encode(
            target.request_line,
            {name: value for name, value in target.headers.items() if name not in own_headers},
        )
    lines = Secret(
        "".join([f"{name}: {to_wire_value(value)}\r\n" for name, value in own_headers.items()])
    )
    # Checked before encoding: an encoding error would contain the text, which may include a key.
    if _WIDE.search(lines.reveal()):
        raise UpstreamUnavailable(
            "The provider has a header with a character that is not allowed in HTTP headers.",
            reason="header with a character that is not allowed",
        )
    if _has_line_break(lines.reveal(), len(own_headers)):
        raise header_with_line_break()
    return prefix.content + lines.reveal().encode("latin-1")


def _has_line_break(lines: str, count: int) -> bool:
    return lines.count("\n") != count or lines.count("\r") != count or "\0" in lines


def closing(head: SecretBytes) -> SecretBytes:
    """Add ``connection: close`` to a complete head."""
    return SecretBytes(head.content[:-2] + b"connection: close\r\n\r\n")


def write_connect(authority: str, proxy: Proxy) -> SecretBytes:
    """Encode a CONNECT request, which asks ``proxy`` for a tunnel to ``authority``."""
    headers: dict[str, str | Secret] = {
        "host": authority,
        "user-agent": DEFAULT_HEADERS["user-agent"],
    }
    if proxy.authorization is not None:
        headers["proxy-authorization"] = proxy.authorization
    head = _encode(f"CONNECT {authority} HTTP/1.1\r\n", headers)
    return SecretBytes(head.content + b"\r\n")


def _encode(request_line: str, headers: Mapping[str, str | Secret]) -> SecretBytes:
    return SecretBytes(
        (
            request_line
            + "".join([f"{name}: {to_wire_value(value)}\r\n" for name, value in headers.items()])
        ).encode()
    )
