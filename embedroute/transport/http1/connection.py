"""A look at a socket before its event loop has come to it.

The body of an answer as it comes in.

What the status lines and headers of a response say about its framing; pure.

One HTTP/1.1 connection of the quick engine: an asyncio protocol around llhttp's parser, one exchange at a time.

HTTP/1.1 numbers neither requests nor responses: bytes that no request asked for would pass for the response to the
next one. Such bytes are reported to the connection's pool (``pool.py``), which then trusts no reused connection.
"""

import asyncio
import re
import select
import sys
from collections.abc import Callable
from io import BytesIO
from time import monotonic
from typing import Final, Self, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from embedroute.backend import Headers, SecretBytes, Source, UpstreamResponse
from embedroute.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from embedroute.transport.base import (
    AT_A_TIME,
    CHUNK_FRAMING,
    DEFAULT_LIMITS,
    LARGEST_ERROR,
    LARGEST_HEAD,
    LARGEST_REPLY,
    MOST_HEADERS,
    TAIL,
    ExchangeLimits,
    head_too_large,
    not_http,
    refuse_compressed,
    too_large,
)


def readable(line: int) -> Callable[[], bool]:
    """Make a look at whether a socket has bytes, or its end, to be read."""
    if sys.platform == "win32":
        return lambda: bool(select.select([line], [], [], 0)[0])
    poller = select.poll()
    poller.register(line, select.POLLIN)
    return lambda: bool(poller.poll(0))


class Body:
    """The pieces of one body, copied once each; nearly all bodies are one piece, which is not."""

    __slots__ = ("_first", "_rest")

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._first = b""
        self._rest: BytesIO | None = None

    def add(self, piece: bytes, length: int) -> None:
        """Add the next piece of a body of ``length`` bytes, 0 if nobody said how many."""
        if not self._first:
            self._first = piece
        elif self._rest is None:
            # Memory that is not touched yet, and given away without a copy: joining pieces would hold the loop up.
            self._rest = BytesIO(bytes(length))
            self._rest.write(self._first + piece)
        else:
            self._rest.write(piece)

    def take(self) -> bytes:
        """Give the whole body away."""
        whole = self._rest.getvalue() if self._rest else self._first
        self._first, self._rest = b"", None
        return whole


_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-9])[0-9]{2}(?: [\t -~\x80-\xff]*)?\r\n")

RawHeaders = list[tuple[bytes, bytes]]


def has_sound_status_lines(head: bytes) -> bool:
    """Tell whether the status lines of a response, and of 1xx responses before it, are those of HTTP/1.0 or HTTP/1.1.

    llhttp reads RTSP and ICE responses too, those of HTTP/0.9 and HTTP/2.0, and control characters in a reason.
    ``head`` begins with the first status line and holds the last response's head.
    """
    start = 0
    while line := _STATUS_LINE.match(head, start):
        if line[1] != b"1":
            return True
        start = head.find(b"\r\n\r\n", start) + 4
    return False


def parse_body_length(
    headers: RawHeaders, bytes_received: int = 0, largest: int = LARGEST_REPLY
) -> int | None:
    """Read how long the body is, 0 for one in chunks; None for one that ends with its connection.

    ``bytes_received`` is how many bytes have come so far, the headers among them.

    Raises:
        InvalidUpstreamResponse: the body is compressed, or too large by its own word.
        UpstreamUnavailable: it is transferred in a coding that nobody asked for, or the headers are too many or too large.
    """
    if (
        bytes_received > LARGEST_HEAD
        and sum(len(name) + len(value) for name, value in headers) > LARGEST_HEAD
    ):
        raise head_too_large()
    if len(headers) > MOST_HEADERS:
        raise UpstreamUnavailable(f"The upstream's answer has more than {MOST_HEADERS} headers.")
    found = None
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"content-length":
            found = int(value)
            if found > largest:
                raise too_large(largest)
        elif lowered == b"transfer-encoding":
            found = 0
            if value.strip().lower() != b"chunked":
                raise UpstreamUnavailable(
                    "The upstream transfers its answer in a coding that it was not asked for."
                )
        elif lowered == b"content-encoding":
            refuse_compressed(value.decode("latin-1"))
    return found


CLOSING_NOTICE: Final = (b"HTTP/1.1 408 ", b"HTTP/1.0 408 ")
"""How the notice begins with which HAProxy and others close an idle connection."""

AT_ONCE: Final = 1 << 18
"""Bytes of a body that are handed to the transport at a time: it copies what the socket does not take at once."""

GAVE_UP: Final = frozenset({408, 504})
"""Statuses of a timeout, after which the real answer may still come."""


class StaleError(Exception):
    """A reused connection brought no response that can be trusted; the request must be sent again on a new one."""


class Connection(asyncio.Protocol):
    """A connection to one upstream; ``idle_since`` is in seconds of the monotonic clock."""

    __slots__ = (
        "_body",
        "_bytes_received",
        "_chunks",
        "_complete",
        "_early",
        "_exchanges",
        "_full",
        "_head",
        "_largest",
        "_length",
        "_limits",
        "_loop",
        "_on_unsolicited",
        "_overrun",
        "_parser",
        "_paused_at",
        "_readable",
        "_size",
        "_source",
        "_status",
        "_stopped",
        "_tail",
        "_transport",
        "_unsent",
        "_waiter",
        "alive",
        "idle_since",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_unsolicited: Callable[[Self, ExchangeLimits], None],
    ) -> None:
        """Call ``on_unsolicited`` with this connection and its latest limits when bytes come that no request asked for."""
        self._loop = loop
        self._on_unsolicited = on_unsolicited
        self._limits = DEFAULT_LIMITS
        self._source: Source | None = None
        self._parser = HttpResponseParser(self)
        self._body = Body()
        self._waiter: asyncio.Future[UpstreamResponse] | None = None
        self._exchanges = 0
        self._unsent: bytes | memoryview = b""
        self._stopped = self._full = False
        self.alive = False
        self.idle_since = 0.0
        self._begin()

    def _begin(self) -> None:
        self._complete = self._overrun = False
        self._bytes_received = self._paused_at = self._status = self._size = self._chunks = 0
        self._early = b""
        self._largest = self._limits.largest
        self._length: int | None = None
        self._head: RawHeaders = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._readable = readable(transport.get_extra_info("socket").fileno())
        # Told to pause, uvloop's TLS loses what it holds, up to 512 KiB, once the upstream closes: so never near the end.
        self._tail = TAIL if transport.get_extra_info("ssl_object") else -LARGEST_REPLY
        self.alive = True

    def is_idle_clean(self) -> bool:
        """Whether it is open, and nothing waits to be read that the loop has not come to yet."""
        return self.alive and not self._readable()

    def exchange(
        self,
        head: SecretBytes,
        content: bytes,
        limits: ExchangeLimits = DEFAULT_LIMITS,
        source: Source | None = None,
    ) -> "asyncio.Future[UpstreamResponse]":
        """Send a request; the future brings its whole answer, marked with ``source``. Call ``finish`` however that ends.

        Raises:
            StaleError: the connection was kept, and closed before a byte came; here or by the future.
            UpstreamError: by the future: the exchange broke off, took too long or is no good HTTP.
        """
        if not self.alive:
            raise (
                StaleError
                if self._exchanges
                else UpstreamUnavailable("The upstream closed the connection before it was asked.")
            )
        self._exchanges += 1
        self._limits = limits
        self._source = source
        self._begin()
        waiter = self._waiter = self._loop.create_future()
        if len(content) <= AT_ONCE:
            self._transport.writelines((head.content, content))
        else:
            self._transport.write(head.content)
            self._unsent = memoryview(content)
            self._send_on()
        return waiter

    def _send_on(self) -> None:
        """Hand the next piece of a large body over, unless the transport still holds much of the last ones."""
        if not self.alive:
            self._unsent = b""
        elif self._full:
            self._stopped = True
        elif self._unsent:
            piece, self._unsent = self._unsent[:AT_ONCE], self._unsent[AT_ONCE:]
            self._transport.write(piece)
            self._loop.call_soon(self._send_on)

    def pause_writing(self) -> None:
        """Hand nothing more to the transport."""
        self._full = True

    def resume_writing(self) -> None:
        """Go on with a large body."""
        self._full = False
        if self._stopped:
            self._stopped = False
            self._send_on()

    def finish(self) -> bool:
        """Nobody waits any more; tell whether the connection is good for another exchange."""
        self._waiter = None
        return self._complete and self.alive

    def expire(self, seconds: float) -> None:
        """The time for the exchange is over."""
        self._fail(UpstreamTimeout(f"The upstream did not answer within {seconds:.1f} s."))

    def distrust(self) -> None:
        """Break off an exchange that is not the connection's first: what comes may be the answer to an earlier one."""
        if self._exchanges > 1:
            self._fail(StaleError())

    def abort(self) -> None:
        """Give the connection up at once."""
        self.alive = False
        self._unsent = b""
        self._body = Body()  # the parser and this hold each other until the collector comes: they alone may wait for it
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; without an exchange under way, no request asked for these bytes."""
        if self._waiter is None or self._waiter.done():
            self.abort()
            if self._complete and data.strip() and not data.startswith(CLOSING_NOTICE):
                self._on_unsolicited(self, self._limits)
            return
        self._bytes_received += len(data)
        if is_head := self._status < 200:
            self._early += data
        error = self._feed(data)
        overrun = self._overrun or (self._complete and error is not None)
        if refusal := self._refusal(None if overrun else error, is_head=is_head, overrun=overrun):
            self._fail(refusal)
        elif self._complete:
            self._end(overrun=overrun)
        elif (
            self._bytes_received - self._paused_at >= AT_A_TIME
            and (self._length or 0) - self._bytes_received >= self._tail
        ):
            self._paused_at = self._bytes_received
            self._transport.pause_reading()
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self.alive:
            self._transport.resume_reading()

    def _refusal(
        self, error: UpstreamError | None, *, is_head: bool, overrun: bool
    ) -> UpstreamError | None:
        """Judge what has come so far; bytes behind an ``overrun`` answer are not a part of it."""
        if error is not None:
            return error
        if is_head and self._status >= 200:
            early, self._early = self._early, b""
            if not has_sound_status_lines(early):
                return not_http()
        if self._size > self._largest:
            return too_large(self._largest)
        if (
            not overrun
            and self._bytes_received - self._size - CHUNK_FRAMING * self._chunks > LARGEST_HEAD
        ):
            return head_too_large()
        return None

    def _feed(self, data: bytes) -> UpstreamError | None:
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            # What a callback raises comes out wrapped; the parser's own errors have no context.
            cause = error.__context__
            return cause if isinstance(cause, UpstreamError) else not_http()
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange; a body without a length ends with its connection."""
        whole, self.alive = exc is None and self.alive, False
        if whole and self._status >= 200 and self._length is None:
            self._complete = True
            self._end(overrun=False)
        elif not self._bytes_received and self._exchanges > 1:
            self._fail(StaleError())
        else:
            self._fail(
                UpstreamUnavailable(
                    "The upstream closed the connection before its answer was whole."
                )
            )

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
            if self._status >= 300:
                self._largest = max(self._largest, LARGEST_ERROR)
            self._length = parse_body_length(self._head, self._bytes_received, self._largest)

    def on_chunk_header(self) -> None:
        """Count the chunks."""
        self._chunks += 1

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body; a 1xx response has none (RFC 9110, section 15.2)."""
        if self._status < 200:
            raise not_http()
        if not self._complete:
            self._size += len(body)
            self._body.add(body, self._length or 0)

    def on_message_complete(self) -> None:
        """Note that the answer is whole; 1xx answers only announce it."""
        if self._status < 200:
            self._head = []
        elif not self._complete:
            self._complete = True
            # An upstream that answers before it has read the request may still take the rest for another one, and a
            # proxy that gave up waiting may still pass the answer on.
            done = self._status not in GAVE_UP and not (
                self._unsent or self._transport.get_write_buffer_size()
            )
            self.alive = done and self._parser.should_keep_alive()

    def _end(self, *, overrun: bool) -> None:
        """Hand the answer over."""
        if overrun:
            self._on_unsolicited(self, self._limits)
        self.idle_since = monotonic()  # uvloop's own clock stands still while it calls back
        reply = UpstreamResponse(self._status, Headers(self._head), self._body.take(), self._source)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(reply)

    def _fail(self, error: Exception) -> None:
        self.abort()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
