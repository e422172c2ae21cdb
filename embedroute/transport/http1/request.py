"""Encodes the head of an HTTP/1.1 request from its method, URL and headers. Pure functions."""

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import SplitResult, quote, unquote_to_bytes, urlsplit

import msgspec

from embedroute.backend import Secret, SecretBytes, repr_as_in_rich, to_wire_value
from embedroute.errors import UpstreamUnavailable
from embedroute.transport.base import lower_names

Origin = tuple[str, int, bool]
"""Host, port, and whether TLS is used: the key of a connection pool."""

DEFAULT_HEADERS: Final = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": "embedroute",
}
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


def parse_target(method: str, url: str) -> Target:
    """Parse the URL of a request. Credentials in it are sent as Basic authorization, as by httpx2.

    Raises:
        UpstreamUnavailable: the URL or the method is invalid.
    """
    split_url = _split(url)
    if split_url is None:
        raise UpstreamUnavailable("The backend built an invalid URL.")
    parts, port = split_url
    host = parts.hostname or ""
    tls = parts.scheme == "https"
    if (
        parts.scheme not in {"http", "https"}
        or not _is_plain_host(host)
        or not (method.isascii() and method.isalpha())
    ):
        raise UpstreamUnavailable(
            "The backend built a request with an invalid method or URL. The URL must be http or"
            " https with an ASCII host name; encode international names as xn--…."
        )
    default_port = 443 if tls else 80
    port = default_port if port is None else port
    url_host = f"[{host}]" if ":" in host else host
    headers: dict[str, str | Secret] = {
        "host": url_host if port == default_port else f"{url_host}:{port}",
        **DEFAULT_HEADERS,
    }
    if "@" in parts.netloc:
        headers["authorization"] = basic_credentials(parts.username or "", parts.password or "")
    path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_PLAIN)
    request_line = f"{method} {path} HTTP/1.1\r\n"
    return Target((host, port, tls), request_line, headers, _encode(request_line, headers))


def _split(url: str) -> tuple[SplitResult, int | None] | None:
    # The error of urllib repeats the URL, which may contain a password.
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    return parts, port


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
            "A header of this provider contains a character that is not allowed in HTTP headers."
        )
    if _has_line_break(lines.reveal(), len(own_headers)):
        raise UpstreamUnavailable("A header of this provider contains a line break.")
    return prefix.content + lines.reveal().encode("latin-1")


def _has_line_break(lines: str, count: int) -> bool:
    return lines.count("\n") != count or lines.count("\r") != count or "\0" in lines


def closing(head: SecretBytes) -> SecretBytes:
    """Add ``connection: close`` to a complete head."""
    return SecretBytes(head.content[:-2] + b"connection: close\r\n\r\n")


def _is_plain_host(host: str) -> bool:
    return (
        bool(host) and host.isascii() and host.isprintable() and not set(host) & set(' "<>\\^`{|}')
    )


def basic_credentials(name: str, password: str) -> Secret:
    """Return the Basic ``authorization`` of a percent-encoded name and password."""
    pair = unquote_to_bytes(name) + b":" + unquote_to_bytes(password)
    return Secret(f"Basic {b64encode(pair).decode()}")


def _encode(request_line: str, headers: Mapping[str, str | Secret]) -> SecretBytes:
    return SecretBytes(
        (
            request_line
            + "".join([f"{name}: {to_wire_value(value)}\r\n" for name, value in headers.items()])
        ).encode()
    )
