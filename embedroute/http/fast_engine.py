"""The quick engine, behind the extra ``fast``: asyncio and llhttp's parser, straight to the upstream.

It exists because the libraries that were tried each fail a promise: aiohttp costs twice the CPU, and pyreqwest does
not end an exchange whose request was cancelled (docs/engines.md has the figures).
"""

import asyncio
import ssl
from functools import partial
from urllib.parse import urlsplit

import msgspec

from embedroute.backend import UpstreamReply, UpstreamRequest
from embedroute.errors import Unavailable, Unreachable
from embedroute.http import CONNECT_TIMEOUT, DIRECT, Connect, revealed
from embedroute.http.connection import Connection, StaleError

WATCHED_FOR = 0.05
"""Seconds for which the first answer of a host is watched for more than it should hold, before its connection is kept."""
KEPT_FOR = 25.0
"""Seconds that an idle connection is kept; most upstreams close theirs after 30 or more."""
MOST_TARGETS = 1024


class Target(msgspec.Struct, frozen=True):
    """A parsed URL: where to connect, and how a request for it begins."""

    host: str
    port: int
    tls: bool
    begin: bytes

    @property
    def origin(self) -> "Origin":
        """What connections are kept by."""
        return self.host, self.port, self.tls


Origin = tuple[str, int, bool]


class FastEngine:
    """Keeps connections per host and port, newest first; speaks to upstreams directly, never through a proxy.

    Nobody waits for the watch over a host's first answer: until it ends, other requests open connections of their
    own. Connections to a host that was caught sending more than it was asked for are never kept.
    """

    name = "fast"

    def __init__(self, connect: Connect = DIRECT) -> None:
        """Make the TLS context when it is first wanted."""
        self._connect_as = connect
        self._context: ssl.SSLContext | None = None
        self._targets: dict[tuple[str, str], Target] = {}
        self._idle: dict[Origin, list[Connection]] = {}
        self._quiet: dict[Origin, bool] = {}
        self._open: set[Connection] = set()

    async def send(self, request: UpstreamRequest, timeout: float) -> UpstreamReply:
        """Exchange ``request`` for its answer within ``timeout`` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        target = self._target(request)
        head = _head(target, request)
        while True:
            connection = self._kept(target, loop.time()) or await self._connect(loop, target, deadline - loop.time())
            timer = loop.call_at(deadline, connection.expire, timeout)
            try:
                reply = await connection.exchange(head, request.content)
            except StaleError:
                continue
            finally:
                timer.cancel()
                if not connection.alive:
                    self._open.discard(connection)
                    connection.abort()
            if connection.alive:
                self._keep(loop, target.origin, connection)
            return reply

    def _keep(self, loop: asyncio.AbstractEventLoop, origin: Origin, connection: Connection) -> None:
        quiet = self._quiet.get(origin)
        if quiet:
            self._idle.setdefault(origin, []).append(connection)
        elif quiet is None:
            loop.call_later(WATCHED_FOR, self._watched, loop, origin, connection)
        else:
            self._open.discard(connection)
            connection.abort()

    def _watched(self, loop: asyncio.AbstractEventLoop, origin: Origin, connection: Connection) -> None:
        if connection.alive:
            self._quiet.setdefault(origin, True)
            self._keep(loop, origin, connection)

    def _kept(self, target: Target, now: float) -> Connection | None:
        kept = self._idle.get(target.origin, [])
        while kept:
            connection = kept.pop()
            if connection.alive and now - connection.idle_since < KEPT_FOR:
                return connection
            self._open.discard(connection)
            connection.abort()
        return None

    async def _connect(self, loop: asyncio.AbstractEventLoop, target: Target, left: float) -> Connection:
        if target.tls and self._context is None:
            self._context = ssl.create_default_context()
            if self._connect_as.ca_file:
                self._context.load_verify_locations(self._connect_as.ca_file)
        context = self._context if target.tls else None
        limit = min(left, CONNECT_TIMEOUT)
        try:
            async with asyncio.timeout(limit):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop, partial(self._quiet.__setitem__, target.origin, False)),  # noqa: FBT003
                    target.host,
                    target.port,
                    ssl=context,
                )
        except TimeoutError:
            raise Unreachable(f"No connection to the upstream within {limit:.1f} s.") from None
        except (OSError, UnicodeError, ValueError) as error:
            raise Unreachable(f"The upstream cannot be reached ({type(error).__name__}).") from None
        self._open.add(connection)
        return connection

    def _target(self, request: UpstreamRequest) -> Target:
        known = self._targets.get((request.method, request.url))
        if known is None:
            if len(self._targets) >= MOST_TARGETS:
                self._targets.clear()
            known = self._targets[request.method, request.url] = parse_target(request.method, request.url)
        return known

    async def aclose(self) -> None:
        """Close the connections, and see them closed."""
        self._idle.clear()
        for connection in self._open:
            connection.abort()
        self._open.clear()
        # A transport lets go of its socket one turn of the loop after it was aborted.
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def parse_target(method: str, url: str) -> Target:
    """Read a URL that a backend made.

    Raises:
        Unavailable: it is not an http or https URL that can be written into a request.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise Unavailable("The backend made a URL that cannot be read.") from None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if (
        parts.scheme not in {"http", "https"}
        or not parts.hostname
        or not f"{parts.netloc}{path}".isascii()
        or not path.isprintable()
    ):
        raise Unavailable("The backend made a URL that is not plain http or https.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    named = host if port in {80, 443} else f"{host}:{port}"
    line = f"{method} {path.replace(' ', '%20')} HTTP/1.1"
    begin = f"{line}\r\nhost: {named}\r\naccept: application/json\r\naccept-encoding: identity\r\n"
    return Target(parts.hostname, port, parts.scheme == "https", begin.encode())


def _head(target: Target, request: UpstreamRequest) -> bytes:
    lines = [f"{name}: {value}\r\n" for name, value in revealed(request.headers).items()]
    lines.append(f"content-length: {len(request.content)}\r\n\r\n")
    try:
        head = "".join(lines).encode("latin-1")
    except UnicodeEncodeError:
        raise Unavailable("A header of this provider holds a character that HTTP has no room for.") from None
    if head.count(b"\n") != len(lines) + 1:
        raise Unavailable("A header of this provider holds a line break.")
    return target.begin + head
