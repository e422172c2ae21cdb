"""A URL, method and headers as the bytes that begin an HTTP/1.1 request; pure."""

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
"""Host, port, TLS: what connections are kept by."""

DEFAULT_HEADERS: Final = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": "embedroute",
}
_OVERRIDABLE: Final = frozenset({"host", "authorization", *DEFAULT_HEADERS})
_WIDE: Final = re.compile(r"[^\x00-\xff]")
_PLAIN: Final = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


class Target(msgspec.Struct, frozen=True):
    """A parsed URL: where to connect, and how a request for it begins."""

    origin: Origin
    request_line: str
    headers: Mapping[str, str | Secret]
    prefix: SecretBytes

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show the origin alone: a path or query may hold a key."""
        return [("origin", self.origin)]

    __repr__ = repr_as_in_rich


def parse_target(method: str, url: str) -> Target:
    """Read a URL that a backend made; credentials in it are sent as Basic ones, as httpx2 sends them.

    Raises:
        UpstreamUnavailable: it is not an http or https URL that can be written into a request.
    """
    read = _split(url)
    if read is None:
        raise UpstreamUnavailable("The backend made a URL that cannot be read.")
    parts, port = read
    host, tls = parts.hostname or "", parts.scheme == "https"
    if (
        parts.scheme not in {"http", "https"}
        or not _plain(host)
        or not (method.isascii() and method.isalpha())
    ):
        raise UpstreamUnavailable(
            "The backend made a URL that is not plain http or https; write other alphabets' names as xn--…."
        )
    usual = 443 if tls else 80
    port = usual if port is None else port
    named = f"[{host}]" if ":" in host else host
    headers: dict[str, str | Secret] = {
        "host": named if port == usual else f"{named}:{port}",
        **DEFAULT_HEADERS,
    }
    if "@" in parts.netloc:
        headers["authorization"] = basic_credentials(parts.username or "", parts.password or "")
    path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_PLAIN)
    line = f"{method} {path} HTTP/1.1\r\n"
    return Target((host, port, tls), line, headers, _written(line, headers))


def _split(url: str) -> tuple[SplitResult, int | None] | None:
    # urllib's own error would repeat the URL, which may hold a password.
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    return parts, port


def write_head(target: Target, headers: Mapping[str, str | Secret]) -> bytes:
    """Write all of a request's head but the length of its body.

    Raises:
        UpstreamUnavailable: a header cannot be sent, or is not a backend's to send.
    """
    given = lower_names(headers)
    begin = target.prefix
    if not _OVERRIDABLE.isdisjoint(given):
        begin = _written(
            target.request_line,
            {name: value for name, value in target.headers.items() if name not in given},
        )
    lines = Secret(
        "".join([f"{name}: {to_wire_value(value)}\r\n" for name, value in given.items()])
    )
    # Checked rather than tried: an encoding error would hold the text, and this frame a key.
    if _WIDE.search(lines.reveal()):
        raise UpstreamUnavailable(
            "A header of this provider holds a character that HTTP has no room for."
        )
    if _has_line_break(lines.reveal(), len(given)):
        raise UpstreamUnavailable("A header of this provider holds a line break.")
    return begin.content + lines.reveal().encode("latin-1")


def _has_line_break(lines: str, count: int) -> bool:
    return lines.count("\n") != count or lines.count("\r") != count or "\0" in lines


def closing(head: SecretBytes) -> SecretBytes:
    """Ask, in a whole head, that the connection is closed after the response."""
    return SecretBytes(head.content[:-2] + b"connection: close\r\n\r\n")


def _plain(host: str) -> bool:
    return (
        bool(host) and host.isascii() and host.isprintable() and not set(host) & set(' "<>\\^`{|}')
    )


def basic_credentials(name: str, password: str) -> Secret:
    """Make the Basic ``authorization`` header of a name and a password that are percent-encoded."""
    pair = unquote_to_bytes(name) + b":" + unquote_to_bytes(password)
    return Secret(f"Basic {b64encode(pair).decode()}")


def _written(line: str, headers: Mapping[str, str | Secret]) -> SecretBytes:
    return SecretBytes(
        (
            line
            + "".join([f"{name}: {to_wire_value(value)}\r\n" for name, value in headers.items()])
        ).encode()
    )
