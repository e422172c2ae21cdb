"""The connections to one origin: which may be used again, and whether the upstream has mixed up answers.

HTTP/1.1 numbers neither requests nor responses. A surplus response would pass for the response to the next request,
and every later response on that connection would belong to the request before its own. Only silence shows that none
is on its way, so a connection must have been silent for a rest before it is used again.

The quick engine, behind the extra ``fast``: asyncio and llhttp's parser, straight to the upstream.

It exists because the libraries that were tried each fail a promise: aiohttp costs twice the CPU, and pyreqwest does
not end an exchange whose request was cancelled (docs/engines.md has the figures).
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
"""Idle connections that are kept for one origin."""
SOURCE_AGE: Final = 60.0
"""Seconds for which responses share one ``Source``."""
LOOK_BACK: Final = 60
"""Sources that are remembered: what came more than an hour ago counts as clean if nothing surplus was seen since."""


class Pool:
    """All connections to one origin; the idle ones are ordered by how long they have been silent, the longest first."""

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
        """Return the connection that has been silent for longest, if it has been for ``rest`` seconds.

        The second value is the mark for the response that comes over it.
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
                # The event loop reads those bytes next: a surplus response, the end, or only TLS housekeeping.
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
        """End an exchange; return whether the connection is kept for another one."""
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
        """Stop trusting kept connections: ``connection`` has received bytes that no request asked for.

        The first exchange of a connection is not in doubt. All others under way are broken off and repeated on new
        connections, and every response of the last hour that came over a reused connection is marked as caught.
        """
        if not self.caught:
            self.caught = True
            host = f"{self.origin[0]}:{self.origin[1]}"
            log.error(
                "%s (provider %s) sent a response that no request asked for. Connections to it are no longer reused,"
                " and what came over reused ones has left the cache",
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
"""Seconds that an idle connection is kept; most upstreams close theirs after 30 or more."""
AT_ONCE = 512
"""Exchanges under way at a time; more wait for their turn."""
MOST_TARGETS = 1024


class _CachedHead:
    """How requests for one URL begin: ``head`` is that of the latest ``headers``. It may hold a key, so it has no repr."""

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
        raise error.with_traceback(
            None
        ) from None  # the URL stands in the frames below, perhaps with a password


class Http1Transport:
    """Speaks to upstreams directly, never through a proxy; ``Pool`` says which connections are used again."""

    name = "fast"

    def __init__(
        self, connect: TransportConfig = DEFAULT_CONFIG, kept_for: float = KEPT_FOR
    ) -> None:
        """Make the TLS context when it is first wanted; an idle connection is kept for ``kept_for`` seconds."""
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
        """Exchange ``request`` for its answer within ``timeout`` seconds and ``limits``.

        A request is sent again, once and on a new connection, if a reused one brought no answer that can be trusted.
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
                    reply = await connection.exchange(
                        closing(head) if pool.caught else head, request.content, limits, source
                    )
                except StaleError:
                    reply = None
                finally:
                    timer.cancel()
                    connection = self._release(loop, pool, connection)
                if reply is not None and (source is None or not source.caught):
                    return reply
                source = None
        finally:
            self._slots.release()

    async def _wait_for_slot(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise UpstreamTimeout(
                f"More than {AT_ONCE} calls to upstreams were under way for {timeout:.1f} s."
            ) from None

    def _release(self, loop: asyncio.AbstractEventLoop, pool: Pool, connection: Connection) -> None:
        if pool.put_back(connection) and self._sweeper is None:
            self._sweep_in(loop, self._kept_for)

    def _sweep_in(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        own = Context()  # that of the request that happens to come by would live on
        self._sweeper = loop.call_later(seconds, self._sweep, loop, context=own)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what has been idle for too long, the oldest first, and come again for what is left."""
        self._sweeper, now = None, monotonic()
        for pool in self._pools.values():
            pool.drop_old(now)
        if oldest := [pool.idle[0].idle_since for pool in self._pools.values() if pool.idle]:
            self._sweep_in(loop, min(oldest) + self._kept_for - now)

    async def _connect(
        self, loop: asyncio.AbstractEventLoop, pool: Pool, left: float
    ) -> Connection:
        host, port, tls = pool.origin
        limit = min(left, CONNECT_TIMEOUT)
        try:
            async with asyncio.timeout(limit):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop, pool.catch),
                    host,
                    port,
                    ssl=self._trusted() if tls else None,
                )
        except TimeoutError:
            raise ConnectError(f"No connection to the upstream within {limit:.1f} s.") from None
        except (OSError, UnicodeError, ValueError) as error:
            raise ConnectError(
                f"The upstream cannot be reached ({type(error).__name__})."
            ) from None
        pool.open.add(connection)
        return connection

    def _trusted(self) -> ssl.SSLContext:
        if self._context is None:
            context = httpx2.create_ssl_context(trust_env=False)
            context.set_alpn_protocols(["http/1.1"])
            if self._connect_as.ca_file:
                context.load_verify_locations(self._connect_as.ca_file)
            self._context = context
        return self._context

    def _begin(self, request: UpstreamRequest) -> tuple[Pool, SecretBytes]:
        """Write what stands before the body; only the body's length differs where a backend always gives the same headers."""
        known = self._heads.get((request.method, request.url))
        if known is None:
            if len(self._heads) >= MOST_TARGETS:
                self._heads.clear()
            target = _make_target(request)
            pool = self._pools.setdefault(target.origin, Pool(target.origin, self._kept_for))
            known = self._heads[request.method, request.url] = _CachedHead(target, pool)
        if known.headers is not request.headers or not isinstance(
            request.headers, MappingProxyType
        ):
            known.head, known.headers = write_head(known.target, request.headers), request.headers
        return known.pool, SecretBytes(
            b"%bcontent-length: %d\r\n\r\n" % (known.head, len(request.content))
        )

    async def aclose(self) -> None:
        """Close the connections, and see them closed."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for pool in self._pools.values():
            pool.close()
        # A transport lets go of its socket one turn of the loop after it was aborted.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
