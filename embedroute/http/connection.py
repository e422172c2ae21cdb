"""One HTTP/1.1 connection of the quick engine: an asyncio protocol around llhttp's parser, one exchange at a time.

HTTP/1.1 has no ids: bytes that nobody asked for would pass for the answer to whatever is sent next. So a connection
on which such bytes are seen is given up, and an answer that more bytes follow is trusted only on a fresh one.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import cast

from httptools import HttpParserError, HttpResponseParser

from embedroute.backend import UpstreamReply
from embedroute.errors import BadAnswer, TimedOut, Unavailable, UpstreamError
from embedroute.http import LARGEST_REPLY, refuse_compressed, too_large

LARGEST_HEAD = 64 * 1024
"""Bytes of header names and values that an answer may have."""

RawHeaders = list[tuple[bytes, bytes]]


class StaleError(Exception):
    """A kept connection was closed before a byte of the answer came: nothing was served, so send it on another."""


class Headers(Mapping[str, str]):
    """An answer's headers, decoded when one is asked for, which on a good day is never."""

    __slots__ = ("_decoded", "_raw")

    def __init__(self, raw: RawHeaders) -> None:
        """Hold the pairs as they came."""
        self._raw = raw
        self._decoded: dict[str, str] | None = None

    def _all(self) -> dict[str, str]:
        if self._decoded is None:
            self._decoded = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self._raw}
        return self._decoded

    def __getitem__(self, name: str) -> str:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


class Connection(asyncio.Protocol):
    """A connection to one upstream; ``idle_since`` is in seconds of the loop's clock."""

    __slots__ = (
        "_body",
        "_complete",
        "_exchanges",
        "_head",
        "_heard",
        "_loop",
        "_noise",
        "_parser",
        "_sized",
        "_status",
        "_transport",
        "_waiter",
        "alive",
        "idle_since",
        "size",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, noise: Callable[[], None]) -> None:
        """Wait to be connected; ``noise`` is told of bytes that nobody asked for."""
        self._loop = loop
        self._noise = noise
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[UpstreamReply] | None = None
        self._exchanges = self._status = 0
        self._heard = self._complete = self._sized = False
        self.alive = False
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self.alive = True

    async def exchange(self, head: bytes, content: bytes) -> UpstreamReply:
        """Send a request and give back its whole answer.

        Raises:
            StaleError: the connection was kept, and closed before a byte came.
            UpstreamError: the exchange broke off, took too long or is no good HTTP.
        """
        self._exchanges += 1
        self._heard = self._complete = self._sized = False
        self._status = self.size = 0
        self._head: RawHeaders = []
        self._body: list[bytes] = []
        self._waiter = self._loop.create_future()
        if self._transport is None or not self.alive:
            raise StaleError
        self._transport.writelines((head, content))
        try:
            return await self._waiter
        finally:
            self._waiter = None
            if not self._complete:
                self.abort()

    def expire(self, seconds: float) -> None:
        """The time for the exchange is over."""
        self._fail(TimedOut(f"The upstream did not answer within {seconds:.1f} s."))

    def abort(self) -> None:
        """Give the connection up at once."""
        self.alive = False
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; without an exchange under way, nobody asked for these bytes."""
        if self._waiter is None or self._waiter.done():
            self._noise()
            self.abort()
            return
        self._heard = True
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            # What a callback raises comes out wrapped; the parser's own errors have no context.
            cause = error.__context__
            self._fail(cause if isinstance(cause, UpstreamError) else Unavailable("The upstream's answer is not HTTP."))
        if self._complete:
            self._deliver()

    def eof_received(self) -> bool:
        """Close: an upstream that will send no more has nothing to be asked for."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange; a body without a length ends with its connection."""
        self.alive = False
        if exc is None and self._status >= 200 and not self._sized:
            self._finish()
            self._deliver()
        elif not self._heard and self._exchanges > 1:
            self._fail(StaleError())
        else:
            self._fail(Unavailable("The upstream closed the connection before its answer was whole."))

    def on_message_begin(self) -> None:
        """Begin an answer; a second one in the same bytes answers nobody."""
        if self._complete:
            self._noise()
            self.alive = False
            if self._exchanges > 1:
                raise BadAnswer("The upstream sent more than one answer to a request, so none can be trusted.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, within bounds."""
        self.size += len(name) + len(value)
        if self.size > LARGEST_HEAD:
            raise Unavailable(f"The upstream's headers are larger than {LARGEST_HEAD} bytes.")
        self._head.append((name, value))

    def on_headers_complete(self) -> None:
        """Judge the answer by its head."""
        if self._complete:
            return
        self._status, self.size = self._parser.get_status_code(), 0
        for name, value in self._head:
            lowered = name.lower()
            if lowered == b"content-length":
                self._sized = True
                if int(value) > LARGEST_REPLY:
                    raise too_large()
            elif lowered == b"transfer-encoding":
                self._sized = True
            elif lowered == b"content-encoding":
                refuse_compressed(value.decode("latin-1"))

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body, within bounds."""
        self.size += len(body)
        if self.size > LARGEST_REPLY:
            raise too_large()
        if not self._complete:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """End the answer; 1xx answers only announce it."""
        if self._complete:
            return
        if self._status < 200:
            self._head, self._sized = [], False
            return
        self.alive = self.alive and self._parser.should_keep_alive()
        self._finish()

    def _finish(self) -> None:
        self._complete = True
        self.idle_since = self._loop.time()

    def _deliver(self) -> None:
        # Only once all bytes that came with it are read: what follows an answer may discredit it.
        if self._waiter is not None and not self._waiter.done():
            content = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._waiter.set_result(UpstreamReply(self._status, Headers(self._head), content))

    def _fail(self, error: Exception) -> None:
        self.abort()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
