"""Selects and creates the transport: ``http1`` if it can be used, else ``httpx2``."""

import os
import ssl
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from embedroute.config import Mistake
from embedroute.errors import ConfigError, MissingExtra
from embedroute.log_records import TransportSelected, write
from embedroute.transport.base import Transport, TransportConfig
from embedroute.transport.proxy import parse_proxy
from embedroute.transport.resolver import Resolver

if TYPE_CHECKING:
    import httpx2

TransportName = Literal["auto", "http1", "httpx2"]


def transport_mistakes(
    name: TransportName,
    connect: TransportConfig,
    client: "httpx2.AsyncClient | None" = None,
) -> list[str]:
    """Return the errors of a config whose transport could not be created on any event loop."""
    mistakes = [*_connection_mistakes(connect), *_http2_mistakes(name, connect, client)]
    if name == "http1" and client is not None:
        mistakes.append(
            '[gateway] transport = "http1" does not use an http_client. Remove one of them.'
        )
    return mistakes


def _http2_mistakes(
    name: TransportName,
    connect: TransportConfig,
    client: "httpx2.AsyncClient | None",
) -> Iterator[str]:
    if not connect.http2:
        return
    if name == "http1":
        mistake = '[gateway] transport = "http1" supports only HTTP/1.1.'
        yield f'{mistake} Set transport = "httpx2", or remove http2.'
    elif client is not None:
        yield (
            "[gateway] http2 does not apply to an http_client. "
            "Create it with httpx2.AsyncClient(http2=True), and remove http2."
        )
    if not _installed("h2"):
        yield f"[gateway] http2 = true: {MissingExtra('http2', 'h2').message}"


def _connection_mistakes(connect: TransportConfig) -> Iterator[str]:
    # The URL of a proxy may contain a password, so the message does not repeat it.
    if connect.proxy is not None and parse_proxy(connect.proxy) is None:
        yield "[gateway] proxy must be http://HOST:PORT or https://HOST:PORT"
    if connect.ca_file is not None:
        yield from _file_mistakes("[gateway] ca_file:", connect.ca_file)
    elif connect.tls_trust == "ca_file":
        mistake = '[gateway] tls_trust = "ca_file" requires ca_file. Set it to a PEM file.'
        yield Mistake(mistake, ("gateway", "ca_file"))
    if connect.tls_trust == "environment":
        yield from _environment_mistakes(connect)


def _environment_mistakes(connect: TransportConfig) -> Iterator[str]:
    setting = '[gateway] tls_trust = "environment":'
    if connect.environment_file:
        yield from _file_mistakes(f"{setting} SSL_CERT_FILE", connect.environment_file)
    directory = connect.environment_dir
    if directory and not any(Path(part).is_dir() for part in directory.split(os.pathsep)):
        yield f"{setting} SSL_CERT_DIR {directory} is not a directory"


def _file_mistakes(place: str, file: str) -> Iterator[str]:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError:
        yield f"{place} {file} contains no certificate in PEM format"
    except OSError as error:
        yield f"{place} {Path(file).absolute()} cannot be read: {error.strerror}"
    except ValueError as error:
        yield f"{place} {file} cannot be read: {error}"


def create_transport(
    name: TransportName,
    connect: TransportConfig,
    client: "httpx2.AsyncClient | None",
    *,
    on_asyncio: bool,
    resolver: Resolver | None = None,
) -> Transport:
    """Create the transport of an event loop. With a ``client`` of the host's, it is httpx2.

    ``resolver`` replaces the system's resolver and the cache that ``connect`` describes.

    Raises:
        ConfigError: ``name`` is ``http1`` under trio, or ``transport_mistakes`` returns errors.
    """
    if mistakes := transport_mistakes(name, connect, client):
        raise ConfigError(mistakes)
    if name == "http1" and not on_asyncio:
        raise ConfigError(
            ['[gateway] transport = "http1" needs asyncio. Under trio, set transport = "httpx2".']
        )
    needs_httpx2 = name == "httpx2" or client is not None or connect.http2 or not on_asyncio
    resolver = resolver or Resolver(ttl=connect.dns_ttl)
    if needs_httpx2:
        transport = _create_httpx2(client, connect, resolver)
    else:
        transport = _create_http1(connect, resolver)
    write(TransportSelected(transport=transport.name))
    return transport


def _installed(package: str) -> bool:
    return find_spec(package) is not None


# Imported only when used: importing httpx2 takes longer than importing all of embedroute.
def _create_httpx2(
    client: "httpx2.AsyncClient | None", connect: TransportConfig, resolver: Resolver
) -> Transport:
    module = import_module("embedroute.transport.httpx2")
    return module.Httpx2Transport(client, connect, resolver)


def _create_http1(connect: TransportConfig, resolver: Resolver) -> Transport:
    module = import_module("embedroute.transport.http1.pool")
    return module.Http1Transport(connect, resolver=resolver)
