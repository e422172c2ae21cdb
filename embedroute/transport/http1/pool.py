"""Provides the ``http1`` transport: HTTP/1.1 with asyncio, llhttp's parser and a pool per origin.

HTTP/1.1 responses do not identify their requests. A surplus response would be taken for the
response to the next request, and each later response on that connection would go to the wrong
request. Only silence shows that no surplus response is coming, so a connection must have been
silent for ``ExchangeLimits.rest`` seconds before it is reused. If an upstream sends unsolicited
bytes, its pool is marked as unreliable and stops reusing connections.

Other libraries were tried first: aiohttp takes twice the CPU time, and pyreqwest does not end the
exchange of a cancelled request (docs/transports.md has the figures).
"""

import asyncio
import math
from collections import deque
from collections.abc import Mapping
from contextvars import Context
from time import monotonic
from types import MappingProxyType
from typing import Final

from embedroute.backend import Secret, SecretBytes, Source, UpstreamRequest, UpstreamResponse
from embedroute.errors import ConnectError, ResourcesExhausted, UpstreamUnavailable
from embedroute.log_records import UnsolicitedResponse, write
from embedroute.transport.base import (
    ADDRESS_PAUSE,
    ADDRESS_TIMEOUT,
    DEFAULT_CONFIG,
    DEFAULT_LIMITS,
    ExchangeLimits,
    TransportConfig,
)
from embedroute.transport.connection_slots import ConnectionSlots
from embedroute.transport.http1.connect import Connector
from embedroute.transport.http1.connection import Connection, StaleError
from embedroute.transport.http1.request import Origin, Target, closing, parse_target, write_head
from embedroute.transport.proxy import PROXY_AUTHENTICATION_REQUIRED, Proxy
from embedroute.transport.resolver import Address, Resolver

MAX_AGE: Final = 300.0
"""Seconds after which a connection is not kept, so that a busy host follows a change in DNS."""
SOURCE_AGE: Final = 60.0
"""Seconds for which responses share one ``Source``."""
LOOK_BACK: Final = 60
"""Sources that are remembered: with ``SOURCE_AGE``, those of the last hour of use.

Older responses are never marked as unreliable.
"""


class Pool:
    """The connections to one origin. ``idle`` is sorted by the time of silence, longest first.

    ``slots`` counts the exchanges, including those that are connecting. ``address`` is the
    only address of a pool for ``all_addresses``. ``chosen_at`` and ``failed_at`` are when it was
    last chosen among the addresses, and when it could not be reached.
    """

    __slots__ = (
        "_source_ends",
        "_sources",
        "address",
        "chosen_at",
        "failed_at",
        "idle",
        "kept_for",
        "max_age",
        "open",
        "origin",
        "slots",
        "unreliable",
    )

    def __init__(
        self, origin: Origin, kept_for: float, max_age: float, address: Address | None = None
    ) -> None:
        """Close connections that were idle for ``kept_for`` or open for ``max_age`` seconds."""
        self.origin: Origin = origin
        self.address: Address | None = address
        self.chosen_at: float = 0.0
        self.failed_at: float = -math.inf
        self.kept_for: float = kept_for
        self.max_age: float = max_age
        self.unreliable: bool = False
        self.slots: ConnectionSlots = ConnectionSlots()
        self.idle: deque[Connection] = deque()
        self.open: set[Connection] = set()
        self._sources: deque[Source] = deque(maxlen=LOOK_BACK)
        self._source_ends = 0.0

    def take(self, now: float, rest: float) -> tuple[Connection, Source] | tuple[None, None]:
        """Return the longest silent connection, if it has been silent for ``rest`` seconds.

        The second value is the ``Source`` for its response.
        """
        idle = self.idle
        while idle:
            connection = idle[0]
            silence = now - connection.idle_since
            if connection.alive and silence < rest:
                return None, None
            idle.popleft()
            if not connection.alive or silence >= self.kept_for:
                self.drop(connection)
            elif connection.has_unread(0):
                # The event loop has not read some bytes yet. They may be a surplus response, the
                # end of the connection, or a TLS message without data.
                connection.idle_since = now
                idle.append(connection)
                return None, None
            else:
                if now >= self._source_ends:
                    self._sources.append(Source())
                    self._source_ends = now + SOURCE_AGE
                return connection, self._sources[-1]
        return None, None

    def put_back(self, connection: Connection) -> None:
        """End an exchange, and keep the connection if it can be used for another one."""
        connection.waiter = None
        if (
            connection.complete
            and connection.alive
            and not (self.unreliable or connection.is_substitute)
            and connection.idle_since - connection.opened_at < self.max_age
        ):
            self.idle.append(connection)
        else:
            self.drop(connection)

    def drop(self, connection: Connection) -> None:
        """Close a connection."""
        self.open.discard(connection)
        connection.abort()

    def make_room(self, most: int) -> None:
        """Close idle connections so that at most ``most`` are open after one more connects.

        The one that was silent for longest is kept for longest, because it can be reused first.
        """
        while self.idle and self.slots.in_use + len(self.idle) > most:
            self.drop(self.idle.pop())

    def drop_old(self, now: float) -> None:
        """Close the connections that have been idle for too long."""
        idle = self.idle
        while idle and not (idle[0].alive and now - idle[0].idle_since < self.kept_for):
            self.drop(idle.popleft())

    def mark_unreliable(self, connection: Connection, limits: ExchangeLimits) -> None:
        """Stop reusing connections: ``connection`` has received unsolicited bytes.

        The first exchange of each connection can be trusted. The others under way are aborted and
        repeated on new connections. All responses of the last hour that came over reused
        connections are marked as unreliable.
        """
        if not self.unreliable:
            self.unreliable: bool = True
            host = f"{self.origin[0]}:{self.origin[1]}"
            write(UnsolicitedResponse(provider=limits.provider or "unknown", host=host))
        for source in self._sources:
            source.unreliable = True
        self._sources.clear()
        self._source_ends = 0.0
        self.open.discard(connection)
        while self.idle:
            self.drop(self.idle.popleft())
        for other in list(self.open):
            other.distrust()

    def retire(self) -> None:
        """Reuse no connection any more: the host does not have this address any more."""
        self.max_age: float = -math.inf
        while self.idle:
            self.drop(self.idle.popleft())

    def close(self) -> None:
        """Close all connections."""
        self.idle.clear()
        for connection in self.open:
            connection.abort()
        self.open.clear()


KEPT_FOR = 25.0
"""Seconds for which an idle connection is kept; most upstreams close theirs after 30 or more."""
MOST_TARGETS = 1024
"""Number of methods and URLs whose heads are cached."""


class _CachedHead:
    """The encoded head of requests for one URL, for the latest ``headers``.

    It may contain a key, so it must not have a ``repr`` that shows its fields.
    """

    __slots__ = ("head", "headers", "pool", "target")

    def __init__(self, target: Target, pool: Pool) -> None:
        self.target = target
        self.pool = pool
        self.head = b""
        self.headers: Mapping[str, str | Secret] | None = None

    def encode(self, headers: Mapping[str, str | Secret]) -> None:
        """Encode the head for other headers."""
        self.head = write_head(self.target, headers)
        self.headers = headers


def _make_target(request: UpstreamRequest, proxy: Proxy | None) -> Target:
    try:
        return parse_target(request.method, request.url, proxy)
    except UpstreamUnavailable as error:
        # The frames of parse_target contain the URL, perhaps with a password.
        raise error.with_traceback(None) from None


class Http1Transport:
    """Sends requests to upstreams, directly or through a proxy, over a ``Pool`` per origin."""

    name = "http1"

    def __init__(
        self,
        connect: TransportConfig = DEFAULT_CONFIG,
        kept_for: float = KEPT_FOR,
        max_age: float = MAX_AGE,
        resolver: Resolver | None = None,
    ) -> None:
        """Keep idle connections for ``kept_for`` seconds, and no connection for ``max_age``.

        ``resolver`` replaces the one that ``connect`` describes.
        """
        self._kept_for = kept_for
        self._max_age = max_age
        self._connector = Connector(connect, resolver)
        self._heads: dict[tuple[str, str], _CachedHead] = {}
        self._pools: dict[Origin, Pool] = {}
        self._address_pools: dict[Origin, dict[Address, Pool]] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    async def send(
        self, request: UpstreamRequest, timeout: float, limits: ExchangeLimits = DEFAULT_LIMITS
    ) -> UpstreamResponse:
        """Send ``request``, and repeat it if a reused connection brings no trusted response."""
        loop = asyncio.get_running_loop()
        deadline = monotonic() + timeout
        cached = self._heads.get((request.method, request.url)) or self._add_head(request)
        if cached.headers is not request.headers or type(cached.headers) is not MappingProxyType:
            cached.encode(request.headers)
        pool = await self._choose(cached, limits, timeout) if limits.all_addresses else cached.pool
        head = SecretBytes(b"%bcontent-length: %d\r\n\r\n" % (cached.head, len(request.content)))
        if pool.slots.in_use < limits.max_connections:
            pool.slots.in_use += 1
        else:
            await pool.slots.wait(limits, timeout)
        try:
            connection, source = pool.take(monotonic(), limits.rest)
            while True:
                if connection is None:
                    connection = await self._connect(loop, pool, limits, deadline - monotonic())
                remaining = deadline - monotonic()
                timer = loop.call_later(remaining, connection.expire, timeout, deadline)
                try:
                    response = await connection.exchange(
                        closing(head) if pool.unreliable else head, request.content, limits, source
                    )
                except StaleError:
                    response = None
                finally:
                    timer.cancel()
                    pool.put_back(connection)
                    connection = None
                if response is not None and (source is None or not source.unreliable):
                    break
                source = None
        finally:
            pool.slots.in_use -= 1
            if pool.slots.waiting:
                pool.slots.admit()
            if self._sweeper is None and pool.idle:
                self._sweep_in(loop, self._kept_for)
        if response.status == PROXY_AUTHENTICATION_REQUIRED:
            self._refuse_proxy_response(pool.origin)
        return response

    def _sweep_in(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        # An empty context: the timer would keep the context variables of the current request alive.
        empty = Context()
        self._sweeper = loop.call_later(seconds, self._sweep, loop, context=empty)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections that have been idle for too long, and schedule the next sweep."""
        self._sweeper = None
        now = monotonic()
        for pool in self._all_pools():
            pool.drop_old(now)
        if oldest := [pool.idle[0].idle_since for pool in self._all_pools() if pool.idle]:
            self._sweep_in(loop, min(oldest) + self._kept_for - now)

    async def _connect(
        self,
        loop: asyncio.AbstractEventLoop,
        pool: Pool,
        limits: ExchangeLimits,
        seconds: float,
    ) -> Connection:
        pool.make_room(limits.max_connections)
        deadline = monotonic() + seconds
        connection = Connection(loop, pool.mark_unreliable)
        try:
            await self._open(pool, connection, limits, deadline)
        except ResourcesExhausted:
            if not await self._close_idle():
                raise
            connection = Connection(loop, pool.mark_unreliable)
            await self._open(pool, connection, limits, deadline)
        pool.open.add(connection)
        return connection

    async def _open(
        self, pool: Pool, connection: Connection, limits: ExchangeLimits, deadline: float
    ) -> None:
        """Connect ``connection``. If the address of ``pool`` cannot be reached, try the others."""
        same_origin = self._address_pools.get(pool.origin, {}) if pool.address else {}
        pools = sorted(same_origin.values(), key=lambda each: (each is not pool, *_load(each)))
        for other in pools[:-1]:
            seconds = min(deadline - monotonic(), ADDRESS_TIMEOUT)
            try:
                await self._connector.open(pool.origin, connection, seconds, address=other.address)
            except ConnectError:
                other.failed_at = monotonic()
                self._connector.expire(pool.origin)
            else:
                # A connection to another address is used once, so that the load stays balanced.
                connection.is_substitute = other is not pool
                return
        last = pools[-1].address if pools else None
        seconds = deadline - monotonic()
        await self._connector.open(pool.origin, connection, seconds, limits.dns_timeout, last)
        connection.is_substitute = last is not pool.address

    async def _choose(self, cached: _CachedHead, limits: ExchangeLimits, timeout: float) -> Pool:
        """Return the pool of the address with the fewest exchanges, of all addresses of a host.

        Raises:
            ConnectError: the lookup failed, or took too long.
        """
        if self._connector.proxy is not None:
            return cached.pool
        origin = cached.pool.origin
        addresses = await self._connector.resolve(origin, timeout, limits.dns_timeout)
        known = self._address_pools.get(origin, {})
        pools = {
            address: known.get(address) or Pool(origin, self._kept_for, self._max_age, address)
            for address in addresses
        }
        if pools.keys() != known.keys():
            for address in known.keys() - pools.keys():
                known[address].retire()
            self._address_pools[origin] = pools
        chosen = min(pools.values(), key=_load)
        chosen.chosen_at = monotonic()
        return chosen

    async def _close_idle(self) -> bool:
        """Free the resources of all idle connections. Return whether there was one."""
        closed = 0
        for pool in self._all_pools():
            while pool.idle:
                pool.drop(pool.idle.pop())
                closed += 1
        await let_sockets_close()
        return closed > 0

    def _refuse_proxy_response(self, origin: Origin) -> None:
        """Raise the error of a 407, unless it is the upstream's own response in a tunnel."""
        proxy = self._connector.proxy
        if proxy is not None and not origin[2]:
            raise proxy.refused(PROXY_AUTHENTICATION_REQUIRED, origin[0])

    def _add_head(self, request: UpstreamRequest) -> _CachedHead:
        """Parse the URL of a request, and cache the start of its head.

        If a backend passes the same ``MappingProxyType`` of headers with every request, the head is
        encoded only once and the length of the body is appended to it.
        """
        if len(self._heads) >= MOST_TARGETS:
            self._heads.clear()
        target = _make_target(request, self._connector.proxy)
        pool = self._pools.get(target.origin)
        if pool is None:
            pool = Pool(target.origin, self._kept_for, self._max_age)
            self._pools[target.origin] = pool
        cached = _CachedHead(target, pool)
        self._heads[request.method, request.url] = cached
        return cached

    def _all_pools(self) -> list[Pool]:
        pools = [pool for pools in self._address_pools.values() for pool in pools.values()]
        return [*self._pools.values(), *pools]

    async def aclose(self) -> None:
        """Close all connections, and wait until they are closed."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for pool in self._all_pools():
            pool.close()
        await let_sockets_close()


def _load(pool: Pool) -> tuple[bool, int, float]:
    """Return the sort key of an address: the least loaded, the least recently chosen first."""
    has_failed = monotonic() - pool.failed_at < ADDRESS_PAUSE
    return has_failed, pool.slots.in_use, pool.chosen_at


async def let_sockets_close() -> None:
    """Wait until aborted connections are closed: one iteration of the loop after ``abort()``."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
