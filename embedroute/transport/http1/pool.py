"""Provides the ``fast`` transport: HTTP/1.1 with asyncio, llhttp's parser and a pool per origin.

HTTP/1.1 responses do not identify their requests. A surplus response would be taken for the
response to the next request, and each later response on that connection would go to the wrong
request. Only silence shows that no surplus response is coming, so a connection must have been
silent for ``ExchangeLimits.rest`` seconds before it is reused. If an upstream sends unsolicited
bytes, its pool is marked as *caught* and stops reusing connections.

Other libraries were tried first: aiohttp takes twice the CPU time, and pyreqwest does not end the
exchange of a cancelled request (docs/engines.md has the figures).
"""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Mapping
from contextvars import Context
from time import monotonic
from types import MappingProxyType
from typing import Final

import anyio
import httpx2

from embedroute.backend import Secret, SecretBytes, Source, UpstreamRequest, UpstreamResponse
from embedroute.errors import ConnectError, UpstreamTimeout, UpstreamUnavailable
from embedroute.text import log_fields
from embedroute.transport.base import (
    CONNECT_TIMEOUT,
    DEFAULT_CONFIG,
    DEFAULT_LIMITS,
    ExchangeLimits,
    TransportConfig,
)
from embedroute.transport.http1.connection import Connection, StaleError
from embedroute.transport.http1.request import Origin, Target, closing, parse_target, write_head

log = logging.getLogger("embedroute.http")

MOST_IDLE: Final = 512
"""Maximum idle connections per origin."""
SOURCE_AGE: Final = 60.0
"""Seconds for which responses share one ``Source``."""
LOOK_BACK: Final = 60
"""Number of sources that are remembered: responses older than an hour are never marked."""


class Pool:
    """The connections to one origin. ``idle`` is sorted by the time of silence, longest first."""

    __slots__ = ("_source_ends", "_sources", "caught", "idle", "kept_for", "open", "origin")

    def __init__(self, origin: Origin, kept_for: float) -> None:
        """Close idle connections after ``kept_for`` seconds."""
        self.origin = origin
        self.kept_for = kept_for
        self.caught = False
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
            elif connection.is_idle_clean():
                return connection, self._source(now)
            else:
                # The event loop has not read some bytes yet. They may be a surplus response, the
                # end of the connection, or a TLS message without data.
                connection.idle_since = now
                idle.append(connection)
                return None, None
        return None, None

    def _source(self, now: float) -> Source:
        if now >= self._source_ends:
            self._sources.append(Source())
            self._source_ends = now + SOURCE_AGE
        return self._sources[-1]

    def put_back(self, connection: Connection) -> bool:
        """End an exchange; return whether the connection is kept for reuse."""
        if not connection.finish() or self.caught or len(self.idle) >= MOST_IDLE:
            self.drop(connection)
            return False
        self.idle.append(connection)
        return True

    def drop(self, connection: Connection) -> None:
        """Close a connection."""
        self.open.discard(connection)
        connection.abort()

    def drop_old(self, now: float) -> None:
        """Close the connections that have been idle for too long."""
        idle = self.idle
        while idle and not (idle[0].alive and now - idle[0].idle_since < self.kept_for):
            self.drop(idle.popleft())

    def catch(self, connection: Connection, limits: ExchangeLimits) -> None:
        """Stop reusing connections: ``connection`` has received bytes that no request asked for.

        The first exchange of each connection can be trusted. The others under way are aborted and
        repeated on new connections. All responses of the last hour that came over reused
        connections are marked as caught.
        """
        if not self.caught:
            self.caught = True
            host = f"{self.origin[0]}:{self.origin[1]}"
            log.error(
                "%s (provider %s) sent a response that no request asked for. Its connections are no"
                " longer reused, and the responses that came over reused ones are no longer cached",
                host,
                limits.provider or "unknown",
                extra=log_fields({"host": host, "provider": limits.provider}),
            )
        for source in self._sources:
            source.caught = True
        self._sources.clear()
        self._source_ends = 0.0
        self.open.discard(connection)
        while self.idle:
            self.drop(self.idle.popleft())
        for other in list(self.open):
            other.distrust()

    def close(self) -> None:
        """Close all connections."""
        self.idle.clear()
        for connection in self.open:
            connection.abort()
        self.open.clear()


KEPT_FOR = 25.0
"""Seconds for which an idle connection is kept; most upstreams close theirs after 30 or more."""
AT_ONCE = 512
"""Maximum concurrent exchanges. Others wait, within their own timeout."""
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


def _make_target(request: UpstreamRequest) -> Target:
    try:
        return parse_target(request.method, request.url)
    except UpstreamUnavailable as error:
        # The frames of parse_target contain the URL, perhaps with a password.
        raise error.with_traceback(None) from None


class Http1Transport:
    """Sends requests to upstreams directly, without a proxy, over a ``Pool`` per origin."""

    name = "fast"

    def __init__(
        self, connect: TransportConfig = DEFAULT_CONFIG, kept_for: float = KEPT_FOR
    ) -> None:
        """Keep idle connections for ``kept_for`` seconds."""
        self._kept_for = kept_for
        self._connect_as = connect
        self._context: ssl.SSLContext | None = None
        self._heads: dict[tuple[str, str], _CachedHead] = {}
        self._pools: dict[Origin, Pool] = {}
        self._slots = anyio.Semaphore(AT_ONCE, fast_acquire=True)
        self._sweeper: asyncio.TimerHandle | None = None

    async def send(
        self, request: UpstreamRequest, timeout: float, limits: ExchangeLimits = DEFAULT_LIMITS
    ) -> UpstreamResponse:
        """Send ``request`` and return its response, within ``timeout`` seconds and ``limits``.

        If a reused connection brings no response that can be trusted, the request is sent once more
        on a new connection.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        pool, head = self._begin(request)
        try:
            self._slots.acquire_nowait()
        except anyio.WouldBlock:
            await self._wait_for_slot(timeout)
        try:
            connection, source = pool.take(monotonic(), limits.rest)
            while True:
                connection = connection or await self._connect(loop, pool, deadline - loop.time())
                timer = loop.call_at(deadline, connection.expire, timeout)
                try:
                    response = await connection.exchange(
                        closing(head) if pool.caught else head, request.content, limits, source
                    )
                except StaleError:
                    response = None
                finally:
                    timer.cancel()
                    connection = self._release(loop, pool, connection)
                if response is not None and (source is None or not source.caught):
                    return response
                source = None
        finally:
            self._slots.release()

    async def _wait_for_slot(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise UpstreamTimeout(
                f"All {AT_ONCE} connections to upstreams were in use for {timeout:.1f} s."
            ) from None

    def _release(self, loop: asyncio.AbstractEventLoop, pool: Pool, connection: Connection) -> None:
        if pool.put_back(connection) and self._sweeper is None:
            self._sweep_in(loop, self._kept_for)

    def _sweep_in(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        # An empty context: the timer would keep the context variables of the current request alive.
        empty = Context()
        self._sweeper = loop.call_later(seconds, self._sweep, loop, context=empty)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections that have been idle for too long, and schedule the next sweep."""
        self._sweeper = None
        now = monotonic()
        for pool in self._pools.values():
            pool.drop_old(now)
        if oldest := [pool.idle[0].idle_since for pool in self._pools.values() if pool.idle]:
            self._sweep_in(loop, min(oldest) + self._kept_for - now)

    async def _connect(
        self, loop: asyncio.AbstractEventLoop, pool: Pool, remaining: float
    ) -> Connection:
        host, port, tls = pool.origin
        limit = min(remaining, CONNECT_TIMEOUT)
        try:
            async with asyncio.timeout(limit):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop, pool.catch),
                    host,
                    port,
                    ssl=self._get_ssl_context() if tls else None,
                )
        except TimeoutError:
            raise ConnectError(f"Cannot connect to the upstream within {limit:.1f} s.") from None
        except (OSError, UnicodeError, ValueError) as error:
            raise ConnectError(
                f"Cannot connect to the upstream ({type(error).__name__})."
            ) from None
        pool.open.add(connection)
        return connection

    def _get_ssl_context(self) -> ssl.SSLContext:
        if self._context is None:
            context = httpx2.create_ssl_context(trust_env=False)
            context.set_alpn_protocols(["http/1.1"])
            if self._connect_as.ca_file:
                context.load_verify_locations(self._connect_as.ca_file)
            self._context = context
        return self._context

    def _begin(self, request: UpstreamRequest) -> tuple[Pool, SecretBytes]:
        """Return the pool and the encoded head of a request.

        If a backend passes the same ``MappingProxyType`` of headers with every request, the head is
        encoded only once and the length of the body is appended to it.
        """
        cached = self._heads.get((request.method, request.url))
        if cached is None:
            if len(self._heads) >= MOST_TARGETS:
                self._heads.clear()
            target = _make_target(request)
            pool = self._pools.setdefault(target.origin, Pool(target.origin, self._kept_for))
            cached = _CachedHead(target, pool)
            self._heads[request.method, request.url] = cached
        if cached.headers is not request.headers or not isinstance(
            request.headers, MappingProxyType
        ):
            cached.head = write_head(cached.target, request.headers)
            cached.headers = request.headers
        return cached.pool, SecretBytes(
            b"%bcontent-length: %d\r\n\r\n" % (cached.head, len(request.content))
        )

    async def aclose(self) -> None:
        """Close all connections, and wait until they are closed."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for pool in self._pools.values():
            pool.close()
        # An asyncio transport closes its socket one iteration of the loop after abort().
        await asyncio.sleep(0)
        await asyncio.sleep(0)
