"""Selects and creates the transport: the faster HTTP/1.1 one if it can be used, else httpx2."""

import logging
import re
import ssl
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from embedroute.errors import ConfigError, MissingExtra
from embedroute.text import log_fields
from embedroute.transport.base import Transport, TransportConfig

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger("embedroute.http")

_PROXY: Final = re.compile(r"https?://[^\s/]\S*", re.IGNORECASE)

TransportName = Literal["auto", "httpx2", "fast"]


def transport_mistakes(
    name: TransportName, connect: TransportConfig, client: "httpx2.AsyncClient | None" = None
) -> list[str]:
    """Return the errors of a config whose transport could not be created on any event loop."""
    mistakes = list(_connection_mistakes(connect))
    mistakes += _http2_mistakes(name, connect, client)
    setting = '[gateway] engine = "fast"'
    if name == "fast" and not _installed("httptools"):
        mistakes.append(f"{setting}: {MissingExtra('fast', 'httptools').message}")
    if name == "fast" and connect.proxy is not None:
        mistakes.append(f'{setting} does not support a proxy. Set engine = "httpx2".')
    if name == "fast" and client is not None:
        mistakes.append(f"{setting} does not use an http_client. Remove one of them.")
    return mistakes


def _http2_mistakes(
    name: TransportName,
    connect: TransportConfig,
    client: "httpx2.AsyncClient | None",
) -> Iterator[str]:
    if not connect.http2:
        return
    if name == "fast":
        mistake = '[gateway] engine = "fast" supports only HTTP/1.1.'
        yield f'{mistake} Set engine = "httpx2", or remove http2.'
    elif client is not None:
        yield (
            "[gateway] http2 does not apply to an http_client. "
            "Create it with httpx2.AsyncClient(http2=True), and remove http2."
        )
    if not _installed("h2"):
        yield f"[gateway] http2 = true: {MissingExtra('http2', 'h2').message}"


def _connection_mistakes(connect: TransportConfig) -> Iterator[str]:
    # The URL of a proxy may contain a password, so the message does not repeat it.
    if connect.proxy is not None and not _is_proxy_url(connect.proxy.reveal()):
        yield "[gateway] proxy must be http://HOST:PORT or https://HOST:PORT"
    if connect.ca_file is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(connect.ca_file)
    except ssl.SSLError:
        yield f"[gateway] ca_file: {connect.ca_file} contains no certificate in PEM format"
    except OSError as error:
        yield f"[gateway] ca_file: {connect.ca_file} cannot be read: {error.strerror}"
    except ValueError as error:
        yield f"[gateway] ca_file: {connect.ca_file} cannot be read: {error}"


def _is_proxy_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(_PROXY.fullmatch(url) and parts.hostname) and parts.port != 0
    except ValueError:
        return False


def create_transport(
    name: TransportName,
    connect: TransportConfig,
    client: "httpx2.AsyncClient | None",
    *,
    on_asyncio: bool,
) -> Transport:
    """Create the transport of an event loop. With a ``client`` of the host's, it is httpx2.

    Raises:
        ConfigError: ``name`` is ``fast`` under trio, or ``transport_mistakes`` returns errors.
    """
    if mistakes := transport_mistakes(name, connect, client):
        raise ConfigError(mistakes)
    if name == "fast" and not on_asyncio:
        raise ConfigError(
            ['[gateway] engine = "fast" requires asyncio. Under trio, set engine = "httpx2".']
        )
    needs_httpx2 = client is not None or connect.proxy is not None or connect.http2
    use_http1 = not needs_httpx2 and on_asyncio and name != "httpx2" and _installed("httptools")
    transport = _create_http1(connect) if use_http1 else _create_httpx2(client, connect)
    log.info("engine %s", transport.name, extra=log_fields({"engine": transport.name}))
    return transport


def _installed(package: str) -> bool:
    return find_spec(package) is not None


# Imported only when used: importing httpx2 takes longer than importing all of embedroute.
def _create_httpx2(client: "httpx2.AsyncClient | None", connect: TransportConfig) -> Transport:
    return import_module("embedroute.transport.httpx2").Httpx2Transport(client, connect)


def _create_http1(connect: TransportConfig) -> Transport:
    return import_module("embedroute.transport.http1.pool").Http1Transport(connect)
