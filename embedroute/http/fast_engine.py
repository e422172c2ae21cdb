"""The quick engine, behind the extra ``fast``: asyncio and llhttp's parser, straight to the upstream.

It exists because the libraries that were tried each fail a promise: aiohttp costs twice the CPU, and pyreqwest does
not end an exchange whose request was cancelled (docs/engines.md has the figures).
"""

import asyncio
import ssl
from collections.abc import Mapping
from contextvars import Context
from functools import partial
from types import MappingProxyType

import anyio
import httpx2

from embedroute.backend import Secret, UpstreamReply, UpstreamRequest
from embedroute.due import TICK
from embedroute.errors import TimedOut, Unavailable, Unreachable
from embedroute.http import CONNECT_TIMEOUT, DIRECT, Connect
from embedroute.http.connection import Connection, StaleError
from embedroute.http.target import Origin, Target, parse_target, write_head
from embedroute.secret import SecretBytes

WATCHED_FOR = 0.05
"""Seconds for which the first answer of a host is watched for more than it should hold, before its connection is kept."""
KEPT_FOR = 25.0
"""Seconds that an idle connection is kept; most upstreams close theirs after 30 or more."""
AT_ONCE = 512
"""Exchanges under way at a time; more wait for their turn."""
MOST_TARGETS = 1024


class _Begun:
    """How requests for one URL begin: ``head`` is that of the latest ``headers``. It may hold a key, so it has no repr."""

    __slots__ = ("head", "headers", "target")

    def __init__(self, target: Target) -> None:
        self.target = target
        self.head = b""
        self.headers: Mapping[str, str | Secret] | None = None


def _target_of(request: UpstreamRequest) -> Target:
    try:
        return parse_target(request.method, request.url)
    except Unavailable as error:
        raise error.with_traceback(None) from None  # the URL stands in the frames below, perhaps with a password


class FastEngine:
    """Keeps connections per host and port, newest first; speaks to upstreams directly, never through a proxy.

    Nobody waits for the watch over a host's first answer: until it ends, other requests open connections of their
    own. Connections to a host that was caught sending more than it was asked for are never kept.
    """

    name = "fast"

    def __init__(self, connect: Connect = DIRECT, kept_for: float = KEPT_FOR) -> None:
        """Make the TLS context when it is first wanted; an idle connection is kept for ``kept_for`` seconds."""
        self._kept_for = kept_for
        self._connect_as = connect
        self._context: ssl.SSLContext | None = None
        self._begun: dict[tuple[str, str], _Begun] = {}
        self._idle: dict[Origin, list[Connection]] = {}
        self._quiet: dict[Origin, bool] = {}
        self._open: set[Connection] = set()
        self._room = anyio.Semaphore(AT_ONCE, fast_acquire=True)
        self._sweeper: asyncio.TimerHandle | None = None

    async def send(self, request: UpstreamRequest, timeout: float) -> UpstreamReply:
        """Exchange ``request`` for its answer within ``timeout`` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        origin, head = self._begin(request)
        try:
            self._room.acquire_nowait()
        except anyio.WouldBlock:
            await self._wait_for_room(timeout)
        try:
            connection = self._kept(origin, loop.time())
            while True:
                if connection is None:
                    connection = await self._connect(loop, origin, deadline - loop.time())
                timer = loop.call_at(deadline, connection.expire, timeout)
                try:
                    return await connection.exchange(head, request.content)
                except StaleError:
                    # Closed while it was idle, which a fresh one never was: so this happens once.
                    continue
                finally:
                    timer.cancel()
                    connection = self._over(loop, origin, connection)
        finally:
            self._room.release()

    async def _wait_for_room(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._room.acquire()
        except TimeoutError:
            raise TimedOut(f"More than {AT_ONCE} calls to upstreams were under way for {timeout:.1f} s.") from None

    def _over(self, loop: asyncio.AbstractEventLoop, origin: Origin, connection: Connection) -> None:
        if connection.over():
            self._keep(loop, origin, connection)
        else:
            self._drop(connection)

    def _keep(self, loop: asyncio.AbstractEventLoop, origin: Origin, connection: Connection) -> None:
        quiet = self._quiet.get(origin)
        if quiet:
            kept = self._idle.setdefault(origin, [])
            if kept and not kept[0].alive:
                self._drop(kept.pop(0))
            kept.append(connection)
            if self._sweeper is None:
                self._sweep_at(loop, connection.idle_since)
        elif quiet is None:
            loop.call_later(WATCHED_FOR, self._watched, loop, origin, connection)
        else:
            self._drop(connection)

    def _watched(self, loop: asyncio.AbstractEventLoop, origin: Origin, connection: Connection) -> None:
        if connection.alive:
            self._quiet.setdefault(origin, True)
            self._keep(loop, origin, connection)
        else:
            self._drop(connection)

    def _sweep_at(self, loop: asyncio.AbstractEventLoop, since: float) -> None:
        own = Context()  # that of the request that happens to come by would live on
        self._sweeper = loop.call_at(since + self._kept_for, self._sweep, loop, context=own)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what has been idle for too long, the oldest first, and come again for what is left."""
        self._sweeper, oldest = None, list[float]()
        for kept in self._idle.values():
            while kept and not (kept[0].alive and loop.time() + TICK - kept[0].idle_since < self._kept_for):
                self._drop(kept.pop(0))
            oldest += [it.idle_since for it in kept[:1]]
        if oldest:
            self._sweep_at(loop, min(oldest))

    def _drop(self, connection: Connection) -> None:
        self._open.discard(connection)
        connection.abort()

    def _kept(self, origin: Origin, now: float) -> Connection | None:
        kept = self._idle.get(origin)
        while kept:
            connection = kept.pop()
            if now - connection.idle_since < self._kept_for and connection.silent():
                return connection
            self._drop(connection)
        return None

    async def _connect(self, loop: asyncio.AbstractEventLoop, origin: Origin, left: float) -> Connection:
        host, port, tls = origin
        limit = min(left, CONNECT_TIMEOUT)
        try:
            async with asyncio.timeout(limit):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop, partial(self._quiet.__setitem__, origin, False)),  # noqa: FBT003
                    host,
                    port,
                    ssl=self._trusted() if tls else None,
                )
        except TimeoutError:
            raise Unreachable(f"No connection to the upstream within {limit:.1f} s.") from None
        except (OSError, UnicodeError, ValueError) as error:
            raise Unreachable(f"The upstream cannot be reached ({type(error).__name__}).") from None
        self._open.add(connection)
        return connection

    def _trusted(self) -> ssl.SSLContext:
        if self._context is None:
            context = httpx2.create_ssl_context(trust_env=False)
            context.set_alpn_protocols(["http/1.1"])
            if self._connect_as.ca_file:
                context.load_verify_locations(self._connect_as.ca_file)
            self._context = context
        return self._context

    def _begin(self, request: UpstreamRequest) -> tuple[Origin, SecretBytes]:
        """Write what stands before the body; only the body's length differs where a backend always gives the same headers."""
        known = self._begun.get((request.method, request.url))
        if known is None:
            if len(self._begun) >= MOST_TARGETS:
                self._begun.clear()
            known = self._begun[request.method, request.url] = _Begun(_target_of(request))
        if known.headers is not request.headers or not isinstance(request.headers, MappingProxyType):
            known.head, known.headers = write_head(known.target, request.headers), request.headers
        return known.target.origin, SecretBytes(b"%bcontent-length: %d\r\n\r\n" % (known.head, len(request.content)))

    async def aclose(self) -> None:
        """Close the connections, and see them closed."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._idle.clear()
        for connection in self._open:
            connection.abort()
        self._open.clear()
        # A transport lets go of its socket one turn of the loop after it was aborted.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
