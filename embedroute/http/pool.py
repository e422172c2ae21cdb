"""The connections to one origin: which may be used again, and whether the upstream has mixed up answers.

HTTP/1.1 numbers neither requests nor responses. A surplus response would pass for the response to the next request,
and every later response on that connection would belong to the request before its own. Only silence shows that none
is on its way, so a connection must have been silent for a rest before it is used again.
"""

import logging
from collections import deque
from typing import Final

from embedroute.http import ExchangeLimits
from embedroute.http.connection import Connection
from embedroute.http.target import Origin
from embedroute.upstream import Source
from embedroute.wording import log_fields

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
            elif connection.silent():
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
        if not connection.over() or self.caught or len(self.idle) >= MOST_IDLE:
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
