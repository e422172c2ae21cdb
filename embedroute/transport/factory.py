"""Which engine a gateway uses: the quick one under asyncio where it is installed, else httpx2."""

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
    """The mistakes of a config whose engine could not be opened on any event loop."""
    mistakes = list(_unusable(connect))
    mistakes += _http2_mistakes(name, connect, client)
    said = '[gateway] engine = "fast"'
    if name == "fast" and not _installed("httptools"):
        mistakes.append(f"{said}: {MissingExtra('fast', 'httptools').message}")
    if name == "fast" and connect.proxy is not None:
        mistakes.append(f'{said} goes straight to upstreams; with a proxy write engine = "httpx2".')
    if name == "fast" and client is not None:
        mistakes.append(f"{said} has no use for an http_client; leave one of the two out.")
    return mistakes


def _http2_mistakes(
    name: TransportName,
    connect: TransportConfig,
    client: "httpx2.AsyncClient | None",
) -> Iterator[str]:
    if not connect.http2:
        return
    if name == "fast":
        mistake = '[gateway] engine = "fast" speaks HTTP/1.1 only.'
        yield f'{mistake} Set engine = "httpx2", or leave http2 out.'
    elif client is not None:
        yield (
            "[gateway] http2 does not apply to an http_client. "
            "Create it with httpx2.AsyncClient(http2=True), and leave http2 out."
        )
    if not _installed("h2"):
        yield f"[gateway] http2 = true: {MissingExtra('http2', 'h2').message}"


def _unusable(connect: TransportConfig) -> Iterator[str]:
    # A proxy's URL may hold a password, so it is not repeated.
    if connect.proxy is not None and not _names_a_proxy(connect.proxy.reveal()):
        yield "[gateway] proxy must be http://HOST:PORT or https://HOST:PORT"
    if connect.ca_file is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(connect.ca_file)
    except ssl.SSLError:
        yield f"[gateway] ca_file: {connect.ca_file} holds no certificate in PEM form"
    except OSError as error:
        yield f"[gateway] ca_file: {connect.ca_file} cannot be read: {error.strerror}"
    except ValueError as error:
        yield f"[gateway] ca_file: {connect.ca_file} cannot be read: {error}"


def _names_a_proxy(url: str) -> bool:
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
    """Make the engine of one event loop; a ``client`` of the host's decides for httpx2.

    Raises:
        ConfigError: ``fast`` is asked for where it cannot be: under trio, or what ``transport_mistakes`` names.
    """
    if mistakes := transport_mistakes(name, connect, client):
        raise ConfigError(mistakes)
    if name == "fast" and not on_asyncio:
        raise ConfigError(
            ['[gateway] engine = "fast" needs asyncio; under trio write engine = "httpx2".']
        )
    direct = client is None and connect.proxy is None and not connect.http2
    quick = direct and on_asyncio and name != "httpx2" and _installed("httptools")
    engine = _create_http1(connect) if quick else _create_httpx2(client, connect)
    log.info("engine %s", engine.name, extra=log_fields({"engine": engine.name}))
    return engine


def _installed(package: str) -> bool:
    return find_spec(package) is not None


# Neither is imported before it is used: httpx2 alone costs more to import than all of embedroute.
def _create_httpx2(client: "httpx2.AsyncClient | None", connect: TransportConfig) -> Transport:
    return import_module("embedroute.transport.httpx2").Httpx2Transport(client, connect)


def _create_http1(connect: TransportConfig) -> Transport:
    return import_module("embedroute.transport.http1.pool").Http1Transport(connect)
