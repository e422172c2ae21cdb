"""One HTTP/1.1 connection of the quick engine: an asyncio protocol around llhttp's parser, one exchange at a time.

HTTP/1.1 has no ids: bytes that nobody asked for would pass for the answer to whatever is sent next. So a connection
on which such bytes are seen is given up, and an answer that more bytes follow is trusted only on a fresh one.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from embedroute.errors import BadAnswer, TimedOut, Unavailable, UpstreamError
from embedroute.http import AT_A_TIME, LARGEST_HEAD, LARGEST_REPLY, TAIL, head_too_large, too_large
from embedroute.http.body import Body
from embedroute.http.headers import RawHeaders, length_of
from embedroute.http.readable import readable
from embedroute.secret import SecretBytes
from embedroute.upstream import Headers, UpstreamReply


class StaleError(Exception):
    """A kept connection was closed before a byte of the answer came: nothing was served, so send it on another."""


class Connection(asyncio.Protocol):
    """A connection to one upstream; ``idle_since`` is in seconds of the loop's clock."""

    __slots__ = (
        "_body",
        "_complete",
        "_exchanges",
        "_head",
        "_heard",
        "_length",
        "_loop",
        "_noise",
        "_overrun",
        "_parser",
        "_readable",
        "_rested",
        "_status",
        "_tail",
        "_transport",
        "_waiter",
        "alive",
        "idle_since",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, noise: Callable[[], None]) -> None:
        """Wait to be connected; ``noise`` is told of bytes that nobody asked for."""
        self._loop = loop
        self._noise = noise
        self._parser = HttpResponseParser(self)
        self._body = Body()
        self._waiter: asyncio.Future[UpstreamReply] | None = None
        self._exchanges = 0
        self.alive = False
        self.idle_since = 0.0
        self._begin()

    def _begin(self) -> None:
        self._complete = self._overrun = False
        self._heard = self._rested = self._status = 0
        self._length: int | None = None
        self._head: RawHeaders = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._readable = readable(transport.get_extra_info("socket").fileno())
        # Told to pause, uvloop's TLS loses what it holds, up to 512 KiB, once the upstream closes: so never near the end.
        self._tail = TAIL if transport.get_extra_info("ssl_object") else -LARGEST_REPLY
        self.alive = True

    def silent(self) -> bool:
        """Whether it is open, and nothing waits to be read that the loop has not come to yet."""
        return self.alive and not self._readable()

    def exchange(self, head: SecretBytes, content: bytes) -> "asyncio.Future[UpstreamReply]":
        """Send a request; the future brings its whole answer. Call ``over`` however that ends.

        Raises:
            StaleError: the connection was kept, and closed before a byte came; here or by the future.
            UpstreamError: by the future: the exchange broke off, took too long or is no good HTTP.
        """
        if not self.alive:
            raise StaleError if self._exchanges else Unavailable("The upstream closed the connection before it was asked.")
        self._exchanges += 1
        self._begin()
        waiter = self._waiter = self._loop.create_future()
        self._transport.writelines((head.reveal(), content))
        return waiter

    def over(self) -> bool:
        """Nobody waits any more; tell whether the connection is good for another exchange."""
        self._waiter = None
        return self._complete and self.alive

    def expire(self, seconds: float) -> None:
        """The time for the exchange is over."""
        self._fail(TimedOut(f"The upstream did not answer within {seconds:.1f} s."))

    def abort(self) -> None:
        """Give the connection up at once."""
        self.alive = False
        self._body = Body()  # the parser and this hold each other until the collector comes: they alone may wait for it
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; without an exchange under way, nobody asked for these bytes."""
        if self._waiter is None or self._waiter.done():
            if self._waiter is None or self._complete:
                self._noise()
            self.abort()
            return
        self._heard += len(data)
        error = self._feed(data)
        if self._complete:
            self._end(overrun=self._overrun or error is not None)
        elif error is not None:
            self._fail(error)
        elif self._heard > LARGEST_REPLY:
            self._fail(too_large())
        elif self._status < 200 and self._heard > LARGEST_HEAD:
            self._fail(head_too_large())
        elif self._heard - self._rested >= AT_A_TIME and (self._length or 0) - self._heard >= self._tail:
            self._rested = self._heard
            self._transport.pause_reading()
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self.alive:
            self._transport.resume_reading()

    def _feed(self, data: bytes) -> UpstreamError | None:
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            # What a callback raises comes out wrapped; the parser's own errors have no context.
            cause = error.__context__
            return cause if isinstance(cause, UpstreamError) else Unavailable("The upstream's answer is not HTTP.")
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange; a body without a length ends with its connection."""
        whole, self.alive = exc is None and self.alive, False
        if whole and self._status >= 200 and self._length is None:
            self._complete = True
            self._end(overrun=False)
        elif not self._heard and self._exchanges > 1:
            self._fail(StaleError())
        else:
            self._fail(Unavailable("The upstream closed the connection before its answer was whole."))

    def on_message_begin(self) -> None:
        """Begin an answer; a second one in the same bytes answers nobody."""
        self._overrun = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers are not headers."""
        if self._status < 200:
            self._head.append((name, value))

    def on_headers_complete(self) -> None:
        """Judge the answer by its head."""
        if not self._complete:
            self._status = self._parser.get_status_code()
            self._length = length_of(self._head, self._heard)

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        if not self._complete:
            self._body.add(body, self._length or 0)

    def on_message_complete(self) -> None:
        """Note that the answer is whole; 1xx answers only announce it."""
        if self._status < 200:
            self._head = []
        elif not self._complete:
            self._complete = True
            # An upstream that answers before it has read the request may still take the rest for another one.
            self.alive = self._parser.should_keep_alive() and not self._transport.get_write_buffer_size()

    def _end(self, *, overrun: bool) -> None:
        """Hand the answer over."""
        if overrun:
            self._noise()
            self.alive = False
            if self._exchanges > 1:
                self._fail(BadAnswer("The upstream sent more than one answer to a request, so none can be trusted."))
                return
        self.idle_since = self._loop.time()
        reply = UpstreamReply(self._status, Headers(self._head), self._body.take())
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(reply)

    def _fail(self, error: Exception) -> None:
        self.abort()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
