"""Parses the setting ``proxy``, and creates a proxy's errors, which leave its password out."""

import re
from typing import Final

import msgspec

from embedroute.backend import Secret
from embedroute.errors import ConnectError
from embedroute.transport.url import bracketed, parse_http_url

PROXY_AUTHENTICATION_REQUIRED: Final = 407
_STATUS: Final = re.compile(r"[1-5][0-9]{2}\b")


class Proxy(msgspec.Struct, frozen=True, kw_only=True):
    """A forward proxy. ``authorization`` is the value of ``proxy-authorization``."""

    host: str
    port: int
    tls: bool
    authorization: Secret | None

    @property
    def name(self) -> str:
        """The URL of the proxy without its credentials."""
        return f"http{'s' if self.tls else ''}://{bracketed(self.host)}:{self.port}"

    def refused(self, status: int, upstream: str) -> ConnectError:
        """Create the error for a request to ``upstream`` that the proxy rejected with ``status``.

        ``status`` is 0 if its response was not valid HTTP.
        """
        if status == PROXY_AUTHENTICATION_REQUIRED:
            return ConnectError(
                f"The proxy {self.name} rejected the gateway's credentials (407)."
                " Check the user name and password in [gateway] proxy.",
                reason="proxy rejected the gateway's credentials",
            )
        reason = f"with status {status}" if status else "without a valid HTTP response"
        return ConnectError(
            f"The proxy {self.name} refused to connect to {upstream} {reason}.",
            reason="proxy refused to connect",
        )

    def unreachable(self, reason: str) -> ConnectError:
        """Create the error for a failed connection to the proxy itself."""
        reason = reason or "connection failed"
        return ConnectError(
            f"Cannot connect to the proxy {self.name}: {reason}.", reason=f"proxy: {reason}"
        )


def parse_proxy(url: Secret | None) -> Proxy | None:
    """Parse the URL of a proxy. Return None if there is none, or if it is invalid."""
    parsed = parse_http_url(url.reveal()) if url is not None else None
    if parsed is None or parsed.target != "/" or parsed.port == 0:
        return None
    return Proxy(
        host=parsed.host, port=parsed.port, tls=parsed.tls, authorization=parsed.authorization
    )


def describe_proxy(proxy: Proxy | None) -> str:
    """Return the part of an error message that names the proxy, if there is one."""
    return f" through the proxy {proxy.name}" if proxy else ""


def parse_status(text: str) -> int:
    """Return the HTTP status at the start of ``text``, or 0."""
    status = _STATUS.match(text)
    return int(status[0]) if status else 0
