"""Parses the URLs of upstreams and proxies. Pure functions.

The URLs may contain passwords, so no function raises an error with its frame.
"""

from base64 import b64encode
from typing import Any, Final
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

import msgspec

from embedroute.backend import Secret, repr_as_in_rich

_NOT_IN_HOSTS: Final = frozenset(' "<>\\^`{|}')


class HTTPURL(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed http or https URL.

    ``authorization`` is the Basic authorization of the credentials in it. ``target`` is its path
    and query.
    """

    host: str
    port: int
    tls: bool
    authorization: Secret | None
    target: str

    @property
    def authority(self) -> str:
        """Host and port as in a URL and in the header ``host``: no port if it is the default."""
        host = bracketed(self.host)
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show only the origin, because the path and the query may contain a key."""
        return [("host", self.host), ("port", self.port), ("tls", self.tls)]

    __repr__ = repr_as_in_rich


def parse_http_url(url: str) -> HTTPURL | None:
    """Parse an http or https URL with an ASCII host name; return None if it is invalid."""
    split_url = _split(url)
    if split_url is None:
        return None
    parts, port = split_url
    host = parts.hostname or ""
    tls = parts.scheme == "https"
    if parts.scheme not in {"http", "https"} or not _is_plain_host(host):
        return None
    default_port = 443 if tls else 80
    return HTTPURL(
        host=host,
        port=default_port if port is None else port,
        tls=tls,
        authorization=basic_credentials(parts.username or "", parts.password or "")
        if "@" in parts.netloc
        else None,
        target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
    )


def _split(url: str) -> tuple[SplitResult, int | None] | None:
    # The error of urllib repeats the URL, which may contain a password.
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    return parts, port


def _is_plain_host(host: str) -> bool:
    return bool(host) and host.isascii() and host.isprintable() and not _NOT_IN_HOSTS & set(host)


def bracketed(host: str) -> str:
    """Return a host as in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def basic_credentials(name: str, password: str) -> Secret:
    """Return the Basic ``authorization`` of a percent-encoded name and password."""
    pair = unquote_to_bytes(name) + b":" + unquote_to_bytes(password)
    return Secret(f"Basic {b64encode(pair).decode()}")
