"""Opens the connections of the HTTP/1.1 transport: addresses of a name, proxies and TLS.

Each new connection resolves the name of its host (``resolver.py``), so that a change in DNS takes
effect. If a name has several addresses, they are tried as RFC 8305 (Happy Eyeballs) describes:
address families alternate, and the next attempt starts when one fails or after 250 ms.
"""

import asyncio
import math
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from typing import Final, TypeVar

from embedroute.exhaustion import find_exhaustion, late_loop_error
from embedroute.reasons import describe
from embedroute.runtime import time_limits
from embedroute.transport.base import (
    CONNECT_TIMEOUT,
    LARGEST_HEAD,
    TransportConfig,
    cannot_connect,
    connect_timeout,
)
from embedroute.transport.http1.connection import Connection
from embedroute.transport.http1.request import Origin, write_connect
from embedroute.transport.proxy import Proxy, describe_proxy, parse_proxy
from embedroute.transport.resolver import Address, Resolver
from embedroute.transport.tls import create_ssl_context
from embedroute.transport.url import bracketed

T = TypeVar("T")

ATTEMPT_DELAY: Final = 0.25
"""Seconds after which the next address of a name is tried (RFC 8305, section 5)."""

# Imported by its name, because its type annotations are incomplete.
_start_connection: Callable[..., Awaitable[socket.socket]] = import_module(
    "aiohappyeyeballs"
).start_connection

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})[ \r]")


class Tunnel(asyncio.Protocol):
    """Reads the response of a proxy to CONNECT."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Create a tunnel whose response has not arrived."""
        self.status: asyncio.Future[int] = loop.create_future()
        """The status of the response, or 0 if it is not valid HTTP."""
        self.has_surplus: bool = False
        """Whether unsolicited bytes arrived."""
        self._head = b""

    def data_received(self, data: bytes) -> None:
        """Parse the response, except for its body. Skip 1xx responses."""
        if self.status.done():
            self.has_surplus: bool = True
            return
        self._head += data
        while (end := self._head.find(b"\r\n\r\n")) >= 0:
            line = _STATUS_LINE.match(self._head)
            self._head = self._head[end + 4 :]
            status = int(line[1]) if line else 0
            if not 100 <= status < 200:
                self.has_surplus = bool(self._head)
                self.status.set_result(status)
                return
        if len(self._head) > LARGEST_HEAD:
            self.status.set_result(0)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait for a response."""
        del exc
        self.has_surplus = True
        if not self.status.done():
            self.status.set_result(0)


class Connector:
    """Opens connections to origins, directly or through the proxy of the config."""

    def __init__(self, config: TransportConfig, resolver: Resolver | None = None) -> None:
        """Store the settings. The first TLS connection loads the trusted certificates."""
        self.proxy: Proxy | None = parse_proxy(config.proxy)
        self._config = config
        self._resolver = resolver or Resolver(ttl=config.dns_ttl)
        self._context: ssl.SSLContext | None = None

    async def open(
        self,
        origin: Origin,
        connection: Connection,
        seconds: float,
        dns_timeout: float = math.inf,
        address: Address | None = None,
    ) -> None:
        """Connect ``connection`` to ``origin`` within ``seconds``, at most ``CONNECT_TIMEOUT``.

        ``dns_timeout`` is a field of ``ExchangeLimits``. ``address`` is the only address to try, or
        None to try all addresses of the host.

        Raises:
            ConnectError: the host or the proxy cannot be reached, or its certificate is invalid.
            ResourcesExhausted: this process has run out of a resource, or its event loop is late.
        """
        if address is None:
            work = self._open(origin, connection, dns_timeout)
        else:
            work = self._dial_address(origin, connection, address)
        await self._limit(work, seconds)

    async def resolve(
        self, origin: Origin, seconds: float, dns_timeout: float
    ) -> Sequence[Address]:
        """Return the addresses of a host within ``seconds``, at most ``CONNECT_TIMEOUT``.

        Raises:
            ConnectError: the lookup failed, or took too long.
            ResourcesExhausted: this process has run out of a resource, or its event loop is late.
        """
        host, port, _ = origin
        return await self._limit(self._resolver.resolve(host, port, dns_timeout), seconds)

    def expire(self, origin: Origin) -> None:
        """Look the name of a host up again at its next use."""
        self._resolver.expire(origin[0], origin[1])

    async def _limit(self, work: Awaitable[T], seconds: float) -> T:
        limit = min(seconds, CONNECT_TIMEOUT)
        route = describe_proxy(self.proxy)
        time_limit = time_limits.fail_after(limit)
        try:
            with time_limit:
                return await work
        except TimeoutError:
            if time_limit.lag:
                raise late_loop_error(time_limit.lag) from None
            raise connect_timeout(limit, route) from None
        except (OSError, UnicodeError, ValueError, RuntimeError) as error:
            raise find_exhaustion(error) or cannot_connect(describe(error), route) from None

    async def _open(self, origin: Origin, connection: Connection, dns_timeout: float) -> None:
        host, port, tls = origin
        if self.proxy is None:
            await self._dial(host, port, connection, dns_timeout, tls=tls)
        elif tls:
            await self._open_tunnel(self.proxy, host, port, connection, dns_timeout)
        else:
            await self._dial_proxy(self.proxy, connection, dns_timeout)

    async def _dial(
        self, host: str, port: int, protocol: asyncio.Protocol, dns_timeout: float, *, tls: bool
    ) -> asyncio.Transport:
        addresses = await self._resolver.resolve(host, port, dns_timeout)
        try:
            return await self._dial_first(addresses, host, protocol, tls=tls)
        except BaseException:
            self._resolver.expire(host, port)  # the host may have other addresses by now
            raise

    async def _dial_address(
        self, origin: Origin, connection: Connection, address: Address
    ) -> asyncio.Transport:
        host, _, tls = origin
        return await self._dial_first([address], host, connection, tls=tls)

    async def _dial_first(
        self, addresses: Sequence[Address], host: str, protocol: asyncio.Protocol, *, tls: bool
    ) -> asyncio.Transport:
        """Connect to the first of ``addresses`` that accepts a connection."""
        context = self._get_ssl_context() if tls else None
        connected = await _start_connection(addresses, happy_eyeballs_delay=ATTEMPT_DELAY)
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: protocol,
            sock=connected,
            ssl=context,
            server_hostname=host if tls else None,
        )
        return transport

    async def _dial_proxy(
        self, proxy: Proxy, protocol: asyncio.Protocol, dns_timeout: float
    ) -> asyncio.Transport:
        try:
            return await self._dial(proxy.host, proxy.port, protocol, dns_timeout, tls=proxy.tls)
        except (OSError, UnicodeError, ValueError, RuntimeError) as error:
            raise find_exhaustion(error) or proxy.unreachable(describe(error)) from None

    async def _open_tunnel(
        self, proxy: Proxy, host: str, port: int, connection: Connection, dns_timeout: float
    ) -> None:
        tunnel = Tunnel(asyncio.get_running_loop())
        transport = await self._dial_proxy(proxy, tunnel, dns_timeout)
        try:
            transport.write(write_connect(f"{bracketed(host)}:{port}", proxy).content)
            encrypted = await self._encrypt(proxy, host, port, tunnel, transport)
        except BaseException:
            transport.abort()
            raise
        encrypted.set_protocol(connection)
        connection.connection_made(encrypted)
        if tunnel.has_surplus:
            connection.abort()

    async def _encrypt(
        self, proxy: Proxy, host: str, port: int, tunnel: Tunnel, transport: asyncio.Transport
    ) -> asyncio.Transport:
        """Start TLS to the upstream, with its own name, when the proxy has opened the tunnel."""
        status = await tunnel.status
        if not 200 <= status < 300:
            raise proxy.refused(status, f"{bracketed(host)}:{port}")
        if tunnel.has_surplus:  # a TLS server does not send first
            raise proxy.refused(0, f"{bracketed(host)}:{port}")
        encrypted = await asyncio.get_running_loop().start_tls(
            transport, tunnel, self._get_ssl_context(), server_hostname=host
        )
        if encrypted is None:
            raise ConnectionAbortedError
        return encrypted

    def _get_ssl_context(self) -> ssl.SSLContext:
        if self._context is None:
            context = create_ssl_context(self._config)
            context.set_alpn_protocols(["http/1.1"])
            self._context = context
        return self._context
