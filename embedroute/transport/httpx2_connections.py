"""Manages the connections of the httpx2 transport: one exchange at a time on each.

An HTTP/1.1 response does not identify its request, and httpx2 offers no way to detect surplus bytes
on a kept connection. So an HTTP/1.1 connection is closed after one exchange. An HTTP/2 response
carries the id of its stream, so it cannot be taken for another response, and HTTP/2 connections are
kept.

HTTP/2 requests do not share a connection. httpx2 does not reset a cancelled stream, does not return
its flow control window, and fails all streams of a connection if one times out. With one exchange
at a time none of that affects another request, and closing the connection also ends a cancelled
request at the upstream.
"""

import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final

import anyio
import httpx2
import msgspec

from embedroute.transport.base import (
    DEFAULT_HEADERS,
    ExchangeLimits,
    TransportConfig,
)
from embedroute.transport.connection_slots import ConnectionSlots
from embedroute.transport.tls import create_ssl_context

KEPT_FOR = 30.0
"""Seconds for which an idle HTTP/2 connection is kept."""

Origin = tuple[str, str, int | None]
_IN_EXCHANGE: Final = ContextVar("embedroute_httpx2_exchange", default=False)


class IdleConnection(msgspec.Struct, frozen=True, gc=False):
    """An HTTP/2 connection between two exchanges; ``since`` is the end of the last one."""

    transport: httpx2.AsyncHTTPTransport
    network_stream: Any
    since: float

    def is_usable(self, now: float) -> bool:
        """Return whether it can be reused; readable bytes may be the end of the connection."""
        return not (self.has_expired(now) or self.network_stream.get_extra_info("is_readable"))

    def has_expired(self, now: float) -> bool:
        """Return whether it has been idle for too long."""
        return now - self.since > KEPT_FOR


class Connections:
    """The connections of one transport; each is a separate ``httpx2.AsyncHTTPTransport``."""

    # HTTP/2 has no `connection` header. h2 removes it (documented as `normalize_outbound_headers`).
    headers: Mapping[str, str] = {**DEFAULT_HEADERS, "connection": "close"}
    make_request = httpx2.Request

    def __init__(self, connect: TransportConfig) -> None:
        """Load the trusted certificates. No connection is made yet."""
        self._connect = connect
        self._context = create_ssl_context(connect)
        self._idle: dict[Origin, list[IdleConnection]] = {}
        self._slots: dict[Origin, ConnectionSlots] = {}
        self._proxy = _make_proxy(connect)
        if connect.http2:
            for name in ("hpack.hpack", "hpack.table"):
                logging.getLogger(name).addFilter(_is_foreign_record)

    @asynccontextmanager
    async def slot(
        self, url: httpx2.URL, limits: ExchangeLimits, timeout: float
    ) -> AsyncGenerator[None]:
        """Hold one of the ``limits.max_connections`` connections to the host of ``url``.

        Raises:
            PoolTimeout: this takes longer than ``WAIT_SHARE`` of ``timeout`` seconds.
        """
        origin = _origin_of(url)
        slots = self._slots.get(origin)
        if slots is None:
            slots = self._slots[origin] = ConnectionSlots()
        if slots.in_use < limits.max_connections:
            slots.in_use += 1
        else:
            await slots.wait(limits, timeout)
        try:
            yield
        finally:
            slots.in_use -= 1
            if slots.waiting:
                slots.admit()

    @asynccontextmanager
    async def exchange(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Response]:
        """Send ``request``. The response must be read completely inside the ``async with``."""
        origin = _origin_of(request.url)
        keep = False
        transport = await self._take(origin) or self._create_transport()
        token = _IN_EXCHANGE.set(True)
        try:
            response = await transport.handle_async_request(request)
            try:
                yield response
            finally:
                await response.aclose()
            keep = response.http_version == "HTTP/2"
        finally:
            _IN_EXCHANGE.reset(token)
            if not keep:
                await _close(transport)
        if keep:
            await self._keep(origin, transport, response.extensions["network_stream"])

    async def _take(self, origin: Origin) -> httpx2.AsyncHTTPTransport | None:
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.is_usable(time.monotonic()):
                return connection.transport
            await _close(connection.transport)
        return None

    async def _keep(
        self,
        origin: Origin,
        transport: httpx2.AsyncHTTPTransport,
        network_stream: object,
    ) -> None:
        now = time.monotonic()
        connection = IdleConnection(transport, network_stream, now)
        self._idle.setdefault(origin, []).append(connection)
        expired: list[IdleConnection] = []
        for idle in self._idle.values():
            while idle and idle[0].has_expired(now):
                expired.append(idle.pop(0))
        for connection in expired:
            await _close(connection.transport)

    def _create_transport(self) -> httpx2.AsyncHTTPTransport:
        return httpx2.AsyncHTTPTransport(
            verify=self._context,
            proxy=self._proxy,
            trust_env=False,
            http2=self._connect.http2,
            limits=httpx2.Limits(max_connections=1, keepalive_expiry=None),
        )

    async def aclose(self) -> None:
        """Close the idle connections. Exchanges under way close their own."""
        connections = [connection for idle in self._idle.values() for connection in idle]
        self._idle.clear()
        for connection in connections:
            await _close(connection.transport)


def _origin_of(url: httpx2.URL) -> Origin:
    return (url.scheme, url.host, url.port)


def _make_proxy(connect: TransportConfig) -> httpx2.Proxy | None:
    if connect.proxy is None:
        return None
    url = httpx2.URL(connect.proxy.reveal())
    # A separate context: httpx2 sets the protocols that a context offers. By default it would
    # trust other authorities for the proxy than for upstreams.
    context = create_ssl_context(connect) if url.scheme == "https" else None
    return httpx2.Proxy(url, ssl_context=context)


async def _close(transport: httpx2.AsyncHTTPTransport) -> None:
    with anyio.CancelScope(shield=True):
        await transport.aclose()


def _is_foreign_record(_record: logging.LogRecord) -> bool:
    """Filter out the records of our exchanges: at DEBUG, hpack logs all headers with their keys."""
    return not _IN_EXCHANGE.get()
