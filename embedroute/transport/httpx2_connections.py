"""Manages the connections of the httpx2 transport: one exchange at a time on each.

An HTTP/1.1 response does not identify its request, and httpx2 offers no way to detect surplus bytes
on a kept connection. So an HTTP/1.1 connection is closed after one exchange. An HTTP/2 response
carries the id of its stream, so it cannot be taken for another response, and HTTP/2 connections are
kept.

HTTP/2 requests do not share a connection. httpx2 does not reset a cancelled stream, does not return
its flow control window, and fails all streams of a connection if one times out. With one exchange
at a time none of that affects another request, and closing the connection also ends a cancelled
request at the upstream.

httpx2 would resolve names in the default threads of the event loop. So requests are sent to the
address of the host, with its name in the header ``host`` and in ``sni_hostname``, the documented
extension that names the host for TLS.

The addresses of a name are tried as RFC 8305 (Happy Eyeballs) describes: the next attempt starts
when one fails or after 250 ms. The first connected one sends the request. The documented extension
``trace`` reports when that is. With ``all_addresses`` they are tried one after another.
"""

import logging
import math
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

import anyio
import httpx2
import msgspec

from embedroute.exhaustion import find_exhaustion, late_loop_error
from embedroute.reasons import describe
from embedroute.runtime import tasks, time_limits
from embedroute.transport.base import (
    ADDRESS_PAUSE,
    ADDRESS_TIMEOUT,
    DEFAULT_HEADERS,
    ExchangeLimits,
    TransportConfig,
    cannot_connect,
    dns_timeout,
)
from embedroute.transport.connection_slots import ConnectionSlots
from embedroute.transport.resolver import Address, Resolver, interleave
from embedroute.transport.tls import create_ssl_context

KEPT_FOR = 30.0
"""Seconds for which an idle HTTP/2 connection is kept."""
MOST_ADDRESSES: Final = 1024
"""Addresses whose load is remembered."""

ATTEMPT_DELAY: Final = 0.25
"""Seconds after which the next address of a name is tried (RFC 8305, section 5)."""

Origin = tuple[str, str, int | None]
Trace = Callable[[str, object], Awaitable[None]]
"""Receives the events of a connection: their names and values."""
CONNECTED: Final = "connection.connect_tcp.complete"
"""The event of httpx2 whose ``return_value`` is the connected stream."""
_IN_EXCHANGE: Final = ContextVar("embedroute_httpx2_exchange", default=False)


class OpenConnection(msgspec.Struct, gc=False, eq=False):
    """A connection in an exchange. ``address`` is None if the proxy resolves the name.

    ``tcp_stream`` is its connection without TLS. httpx2 does not close it if a TLS handshake is
    cancelled.
    """

    transport: httpx2.AsyncHTTPTransport
    address: Address | None
    tcp_stream: Any = None

    async def trace(self, event: str, info: Any) -> None:
        """Keep the stream once it is connected."""
        if event == CONNECTED:
            self.tcp_stream = info["return_value"]

    async def close(self) -> None:
        """Close the connection, also if the task is cancelled."""
        with anyio.CancelScope(shield=True):
            await self.transport.aclose()
            if self.tcp_stream is not None:
                await self.tcp_stream.aclose()


class IdleConnection(msgspec.Struct, frozen=True, gc=False):
    """An HTTP/2 connection between two exchanges; ``since`` is the end of the last one."""

    connection: OpenConnection
    network_stream: Any
    since: float

    def is_usable(self, now: float) -> bool:
        """Return whether it can be reused; readable bytes may be the end of the connection."""
        return not (self.has_expired(now) or self.network_stream.get_extra_info("is_readable"))

    def has_expired(self, now: float) -> bool:
        """Return whether it has been idle for too long."""
        return now - self.since > KEPT_FOR


class Load(msgspec.Struct, gc=False):
    """The exchanges with an address, and when it was last used and could not be reached."""

    in_flight: int = 0
    used_at: float = 0.0
    failed_at: float = -math.inf


_UNUSED: Final = Load()
_NO_AUTHORITIES: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Given to httpx2 for ``http:`` URLs. Without it, httpx2 loads the system's certificates."""


class _Race:
    """Concurrent attempts to connect; ``winner`` is the first connected one.

    ``changed`` is set when it connects, or when an attempt ends. ``failure`` is the winner's error.
    """

    def __init__(self) -> None:
        self.winner: OpenConnection | None = None
        self.outcome: tuple[OpenConnection, httpx2.Response] | None = None
        self.failure: Exception | None = None
        self.errors: list[Exception] = []
        self.scopes: list[anyio.CancelScope] = []
        self.changed = anyio.Event()

    async def wait_for_change(self) -> None:
        """Wait until an attempt connects or ends."""
        self.changed = anyio.Event()
        await self.changed.wait()

    def take_error(self) -> Exception:
        """Return the error of the winner, or that of the last attempt, and forget all errors."""
        error = self.failure or self.errors[-1]
        self.failure = None
        self.errors.clear()
        return error

    async def trace(
        self, connection: OpenConnection, scope: anyio.CancelScope, event: str, info: Any
    ) -> None:
        """Keep the first connected attempt, and end the others before they send anything."""
        if event != CONNECTED:
            return
        await connection.trace(event, info)
        if self.winner is not None:
            await info["return_value"].aclose()
            raise httpx2.ConnectError("Another address was faster.")
        self.winner = connection
        for each in self.scopes:
            if each is not scope:
                each.cancel()
        self.changed.set()


class Connections:
    """The connections of one transport; each is a separate ``httpx2.AsyncHTTPTransport``."""

    # HTTP/2 has no `connection` header. h2 removes it (documented as `normalize_outbound_headers`).
    headers: Mapping[str, str] = {**DEFAULT_HEADERS, "connection": "close"}
    make_request = httpx2.Request

    def __init__(self, connect: TransportConfig, resolver: Resolver | None = None) -> None:
        """Prepare connections as ``connect`` says. None is made yet."""
        self._connect = connect
        self._resolver = resolver or Resolver(ttl=connect.dns_ttl)
        self._preferred: dict[Origin, Address] = {}
        self._loads: dict[Address | None, Load] = {}
        self._context: ssl.SSLContext | None = None
        self._idle: dict[Origin, list[IdleConnection]] = {}
        self._slots: dict[Origin, ConnectionSlots] = {}
        self._proxy = _make_proxy(connect)
        if connect.http2:
            for name in ("hpack.hpack", "hpack.table"):
                logging.getLogger(name).addFilter(_is_foreign_record)

    def prepare(self, url: httpx2.URL) -> None:
        """Load the trusted certificates for the first ``https:`` URL: 20 ms to 60 ms of CPU.

        Raises:
            ConnectError: a file can no longer be read.
        """
        if self._context is None and url.scheme == "https":
            try:
                self._context = create_ssl_context(self._connect)
            except OSError as error:
                raise find_exhaustion(error) or cannot_connect(describe(error)) from None

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
    async def exchange(
        self, request: httpx2.Request, limits: ExchangeLimits
    ) -> AsyncGenerator[httpx2.Response]:
        """Send ``request``. The response must be read completely inside the ``async with``."""
        origin = _origin_of(request.url)
        keep = False
        addresses: Sequence[Address | None] = ()
        if limits.all_addresses:
            addresses = await self._resolve(request, origin, limits)
        connection = await self._take(origin, addresses)
        token = _IN_EXCHANGE.set(True)
        try:
            if connection is None:
                addresses = addresses or await self._resolve(request, origin, limits)
                if len(addresses) > 1 and not limits.all_addresses:
                    connection, response = await self._race(request, origin, addresses)
                else:
                    connection, response = await self._open(request, origin, addresses)
            else:
                response = await self._send(connection, request)
            try:
                yield response
            finally:
                self._loads[connection.address].in_flight -= 1
                await response.aclose()
            keep = response.http_version == "HTTP/2"
        finally:
            _IN_EXCHANGE.reset(token)
            if connection is not None and not keep:
                await connection.close()
        if connection is not None and keep:
            await self._keep(origin, connection, response.extensions["network_stream"])

    async def _open(
        self, request: httpx2.Request, origin: Origin, addresses: Sequence[Address | None]
    ) -> tuple[OpenConnection, httpx2.Response]:
        """Send ``request`` on a new connection, to the first address that accepts one."""
        deadline = time.monotonic() + request.extensions["timeout"]["connect"]
        for address in addresses:
            connection = OpenConnection(self._create_transport(request.url), address)
            is_last = address is addresses[-1]
            began = time.monotonic()
            seconds = max(deadline - began, 0.0)
            if not is_last:
                seconds = min(seconds, ADDRESS_TIMEOUT)
            try:
                response = await self._send(connection, request, seconds)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                self._loads[address].failed_at = time.monotonic()
                await connection.close()
                if is_last:  # the host may have other addresses by now
                    self._resolver.expire(request.url.host, _port_of(request.url))
                    raise _blame_late_loop(error, began, seconds, request.url) from error.__cause__
            except BaseException:
                await connection.close()
                raise
            else:
                if address is not None:
                    self._preferred[origin] = address
                return connection, response
        raise AssertionError("unreachable")

    async def _race(
        self, request: httpx2.Request, origin: Origin, addresses: Sequence[Address | None]
    ) -> tuple[OpenConnection, httpx2.Response]:
        """Connect to several addresses, staggered, and send ``request`` to the first that accepts.

        Errors are kept until the task group has ended, because it would wrap them in a group.
        """
        began = time.monotonic()
        seconds = request.extensions["timeout"]["connect"]
        deadline = began + seconds
        race = _Race()
        try:
            await tasks.stagger(
                [partial(self._attempt, race, request, address, deadline) for address in addresses],
                ATTEMPT_DELAY,
                race.wait_for_change,
                lambda: race.winner is not None,
            )
        except BaseException:
            if race.outcome is not None:
                self._loads[race.outcome[0].address].in_flight -= 1
                await race.outcome[0].close()
            raise
        if race.outcome is None:
            error = race.take_error()
            if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
                self._resolver.expire(request.url.host, _port_of(request.url))
                raise _blame_late_loop(error, began, seconds, request.url) from error.__cause__
            raise error
        address = race.outcome[0].address
        if address is not None:
            self._preferred[origin] = address
        return race.outcome

    async def _attempt(
        self, race: _Race, request: httpx2.Request, address: Address | None, deadline: float
    ) -> None:
        """Try one address of a race. It must be connected at the time ``deadline``."""
        connect = max(deadline - time.monotonic(), 0.0)
        connection = OpenConnection(self._create_transport(request.url), address)
        try:
            with anyio.CancelScope() as scope:
                race.scopes.append(scope)
                trace = partial(race.trace, connection, scope)
                response = await self._send(connection, request, connect, trace)
                race.outcome = connection, response
        except Exception as error:  # noqa: BLE001 - raised again after the race
            race.errors.append(error)
            if race.winner is connection:
                race.failure = error
        finally:
            if race.outcome is None or race.outcome[0] is not connection:
                await connection.close()
            race.changed.set()

    async def _resolve(
        self, request: httpx2.Request, origin: Origin, limits: ExchangeLimits
    ) -> Sequence[Address | None]:
        """Return the addresses to try: the one that worked last first, or the least loaded one.

        Raises:
            ConnectError: the lookup failed, or takes too long.
        """
        if self._proxy is not None:
            return [None]
        connect = request.extensions["timeout"]["connect"]
        url = request.url
        time_limit = time_limits.fail_after(connect)
        try:
            with time_limit:
                found = await self._resolver.resolve(url.host, _port_of(url), limits.dns_timeout)
        except TimeoutError:
            if time_limit.lag:
                raise late_loop_error(time_limit.lag) from None
            raise dns_timeout(connect) from None
        except (OSError, UnicodeError, RuntimeError) as error:
            raise find_exhaustion(error) or cannot_connect(describe(error)) from None
        if limits.all_addresses:
            return sorted(found, key=self._load_key)
        preferred = self._preferred.get(origin)
        return sorted(interleave(found), key=lambda address: address != preferred)

    def _load_key(self, address: Address) -> tuple[bool, int, float]:
        load = self._loads.get(address, _UNUSED)
        has_failed = time.monotonic() - load.failed_at < ADDRESS_PAUSE
        return has_failed, load.in_flight, load.used_at

    async def _send(
        self,
        connection: OpenConnection,
        request: httpx2.Request,
        connect: float | None = None,
        trace: Trace | None = None,
    ) -> httpx2.Response:
        """Send ``request``, and count it as in flight unless that fails."""
        if connection.address not in self._loads:
            self._forget_unused()
        load = self._loads.setdefault(connection.address, Load())
        load.used_at = time.monotonic()
        load.in_flight += 1
        try:
            addressed = _address(request, connection.address, connect)
            addressed.extensions["trace"] = trace or connection.trace
            return await connection.transport.handle_async_request(addressed)
        except BaseException:
            load.in_flight -= 1
            raise

    def _forget_unused(self) -> None:
        if len(self._loads) >= MOST_ADDRESSES:
            self._loads = {key: load for key, load in self._loads.items() if load.in_flight}

    async def _take(
        self, origin: Origin, addresses: Sequence[Address | None]
    ) -> OpenConnection | None:
        """Return an idle connection, to the first of ``addresses`` if there are any."""
        idle = self._idle.get(origin)
        if idle and addresses:
            # Sorted so that the connections to that address are taken first.
            idle.sort(key=lambda each: each.connection.address == addresses[0])
        while idle and (not addresses or idle[-1].connection.address == addresses[0]):
            connection = idle.pop()
            if connection.is_usable(time.monotonic()):
                return connection.connection
            await connection.connection.close()
        return None

    async def _keep(
        self,
        origin: Origin,
        connection: OpenConnection,
        network_stream: object,
    ) -> None:
        now = time.monotonic()
        idle_connection = IdleConnection(connection, network_stream, now)
        self._idle.setdefault(origin, []).append(idle_connection)
        expired: list[IdleConnection] = []
        for idle in self._idle.values():
            expired += [each for each in idle if each.has_expired(now)]
            idle[:] = [each for each in idle if not each.has_expired(now)]
        for each in expired:
            await each.connection.close()

    def _create_transport(self, url: httpx2.URL) -> httpx2.AsyncHTTPTransport:
        return httpx2.AsyncHTTPTransport(
            verify=(self._context if url.scheme == "https" else None) or _NO_AUTHORITIES,
            proxy=self._proxy,
            trust_env=False,
            http2=self._connect.http2,
            limits=httpx2.Limits(max_connections=1, keepalive_expiry=None),
        )

    async def aclose(self) -> None:
        """Close the idle connections. Exchanges under way close their own."""
        connections = [connection for idle in self._idle.values() for connection in idle]
        self._idle.clear()
        for each in connections:
            await each.connection.close()


def _origin_of(url: httpx2.URL) -> Origin:
    return (url.scheme, url.host, url.port)


def _blame_late_loop(
    error: httpx2.ConnectError | httpx2.ConnectTimeout,
    began: float,
    seconds: float,
    url: httpx2.URL,
) -> Exception:
    """Return ``error``, or the error of a late event loop if that is why connecting took too long.

    httpx2 allows ``seconds`` for connecting, and as many for the TLS handshake.
    """
    if not isinstance(error, httpx2.ConnectTimeout):
        return error
    longest = 2 * seconds if url.scheme == "https" else seconds
    lag = time_limits.significant_lag(time.monotonic() - began - longest, seconds)
    return late_loop_error(lag) if lag else error


def _port_of(url: httpx2.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _make_proxy(connect: TransportConfig) -> httpx2.Proxy | None:
    if connect.proxy is None:
        return None
    url = httpx2.URL(connect.proxy.reveal())
    # A separate context: httpx2 sets the protocols that a context offers. By default it would
    # trust other authorities for the proxy than for upstreams.
    context = create_ssl_context(connect) if url.scheme == "https" else None
    return httpx2.Proxy(url, ssl_context=context)


def _address(
    request: httpx2.Request, address: Address | None, connect: float | None
) -> httpx2.Request:
    """Return ``request`` with ``address`` as its host. ``connect`` replaces its own timeout."""
    extensions = dict(request.extensions)
    url = request.url
    if connect is not None:
        extensions["timeout"] = {**extensions["timeout"], "connect": connect}
    if address is not None:
        host, port = address[4][:2]
        extensions["sni_hostname"] = url.host
        url = url.copy_with(host=str(host), port=int(port))
    return httpx2.Request(
        request.method, url, headers=request.headers, stream=request.stream, extensions=extensions
    )


def _is_foreign_record(_record: logging.LogRecord) -> bool:
    """Filter out the records of our exchanges: at DEBUG, hpack logs all headers with their keys."""
    return not _IN_EXCHANGE.get()
