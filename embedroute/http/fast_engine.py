"""The quick engine, behind the extra ``fast``: asyncio and llhttp's parser, straight to the upstream.

It exists because the libraries that were tried each fail a promise: aiohttp costs twice the CPU, and pyreqwest does
not end an exchange whose request was cancelled (docs/engines.md has the figures).
"""

import asyncio
import ssl
from collections.abc import Mapping
from contextvars import Context
from time import monotonic
from types import MappingProxyType

import anyio
import httpx2

from embedroute.backend import Secret, UpstreamReply, UpstreamRequest
from embedroute.errors import TimedOut, Unavailable, Unreachable
from embedroute.http import CONNECT_TIMEOUT, DEFAULT_LIMITS, DIRECT, Connect, ExchangeLimits
from embedroute.http.connection import Connection, StaleError
from embedroute.http.pool import Pool
from embedroute.http.target import Origin, Target, closing, parse_target, write_head
from embedroute.secret import SecretBytes

KEPT_FOR = 25.0
"""Seconds that an idle connection is kept; most upstreams close theirs after 30 or more."""
AT_ONCE = 512
"""Exchanges under way at a time; more wait for their turn."""
MOST_TARGETS = 1024


class _Begun:
    """How requests for one URL begin: ``head`` is that of the latest ``headers``. It may hold a key, so it has no repr."""

    __slots__ = ("head", "headers", "pool", "target")

    def __init__(self, target: Target, pool: Pool) -> None:
        self.target = target
        self.pool = pool
        self.head = b""
        self.headers: Mapping[str, str | Secret] | None = None


def _target_of(request: UpstreamRequest) -> Target:
    try:
        return parse_target(request.method, request.url)
    except Unavailable as error:
        raise error.with_traceback(None) from None  # the URL stands in the frames below, perhaps with a password


class FastEngine:
    """Speaks to upstreams directly, never through a proxy; ``Pool`` says which connections are used again."""

    name = "fast"

    def __init__(self, connect: Connect = DIRECT, kept_for: float = KEPT_FOR) -> None:
        """Make the TLS context when it is first wanted; an idle connection is kept for ``kept_for`` seconds."""
        self._kept_for = kept_for
        self._connect_as = connect
        self._context: ssl.SSLContext | None = None
        self._begun: dict[tuple[str, str], _Begun] = {}
        self._pools: dict[Origin, Pool] = {}
        self._room = anyio.Semaphore(AT_ONCE, fast_acquire=True)
        self._sweeper: asyncio.TimerHandle | None = None

    async def send(self, request: UpstreamRequest, timeout: float, limits: ExchangeLimits = DEFAULT_LIMITS) -> UpstreamReply:
        """Exchange ``request`` for its answer within ``timeout`` seconds and ``limits``.

        A request is sent again, once and on a new connection, if a reused one brought no answer that can be trusted.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        pool, head = self._begin(request)
        try:
            self._room.acquire_nowait()
        except anyio.WouldBlock:
            await self._wait_for_room(timeout)
        try:
            connection, source = pool.take(monotonic(), limits.rest)
            while True:
                connection = connection or await self._connect(loop, pool, deadline - loop.time())
                timer = loop.call_at(deadline, connection.expire, timeout)
                try:
                    reply = await connection.exchange(closing(head) if pool.caught else head, request.content, limits, source)
                except StaleError:
                    reply = None
                finally:
                    timer.cancel()
                    connection = self._over(loop, pool, connection)
                if reply is not None and (source is None or not source.caught):
                    return reply
                source = None
        finally:
            self._room.release()

    async def _wait_for_room(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._room.acquire()
        except TimeoutError:
            raise TimedOut(f"More than {AT_ONCE} calls to upstreams were under way for {timeout:.1f} s.") from None

    def _over(self, loop: asyncio.AbstractEventLoop, pool: Pool, connection: Connection) -> None:
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

    async def _connect(self, loop: asyncio.AbstractEventLoop, pool: Pool, left: float) -> Connection:
        host, port, tls = pool.origin
        limit = min(left, CONNECT_TIMEOUT)
        try:
            async with asyncio.timeout(limit):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop, pool.catch), host, port, ssl=self._trusted() if tls else None
                )
        except TimeoutError:
            raise Unreachable(f"No connection to the upstream within {limit:.1f} s.") from None
        except (OSError, UnicodeError, ValueError) as error:
            raise Unreachable(f"The upstream cannot be reached ({type(error).__name__}).") from None
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
        known = self._begun.get((request.method, request.url))
        if known is None:
            if len(self._begun) >= MOST_TARGETS:
                self._begun.clear()
            target = _target_of(request)
            pool = self._pools.setdefault(target.origin, Pool(target.origin, self._kept_for))
            known = self._begun[request.method, request.url] = _Begun(target, pool)
        if known.headers is not request.headers or not isinstance(request.headers, MappingProxyType):
            known.head, known.headers = write_head(known.target, request.headers), request.headers
        return known.pool, SecretBytes(b"%bcontent-length: %d\r\n\r\n" % (known.head, len(request.content)))

    async def aclose(self) -> None:
        """Close the connections, and see them closed."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for pool in self._pools.values():
            pool.close()
        # A transport lets go of its socket one turn of the loop after it was aborted.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
