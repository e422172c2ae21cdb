"""Implements one HTTP/1.1 connection: an asyncio protocol around llhttp's parser.

A connection does one exchange at a time. HTTP/1.1 responses do not identify their requests, so
unsolicited bytes would be taken for the response to the next request. The connection reports such
bytes to its pool (``pool.py``), which then stops reusing connections.
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
from embedroute.errors import UpstreamError, UpstreamUnavailable
from embedroute.exhaustion import late_loop_error
from embedroute.reasons import CLOSED, INCOMPLETE, NOT_HTTP, describe
from embedroute.runtime import time_limits
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
    broken,
    decompress_error_body,
    head_too_large,
    not_http,
    refuse_compressed,
    timed_out,
    too_large,
)


def make_readable_check(descriptor: int) -> Callable[[int], object]:
    """Return a function that checks whether a socket has unread bytes or has been closed.

    Its argument is the time to wait for that, in milliseconds; its result is true or false.
    """
    if sys.platform == "win32":
        return lambda wait: select.select([descriptor], [], [], wait / 1000)[0]
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return poller.poll


_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-9])[0-9]{2}(?: [\t -~\x80-\xff]*)?\r\n")

RawHeaders = list[tuple[bytes, bytes]]


def has_sound_status_lines(head: bytes) -> bool:
    """Return whether all status lines in ``head`` are valid for HTTP/1.0 or HTTP/1.1.

    llhttp also accepts RTSP, ICE, HTTP/0.9 and HTTP/2.0, and control characters in the reason.
    ``head`` starts with the first status line, perhaps of a 1xx response, and contains the head of
    the final response.
    """
    start = 0
    while line := _STATUS_LINE.match(head, start):
        if line[1] != b"1":
            return True
        start = head.find(b"\r\n\r\n", start) + 4
    return False


def parse_body_length(
    headers: RawHeaders, bytes_received: int = 0, largest: int = LARGEST_REPLY, status: int = 200
) -> int | None:
    """Return the declared length of the body in bytes.

    It is 0 for a chunked body, and None for a body that ends when the connection closes.
    ``bytes_received`` is the number of bytes received so far, including the headers.

    Raises:
        InvalidUpstreamResponse: the body of a success is compressed, or the declared length is
            too large.
        UpstreamUnavailable: the transfer encoding is not supported, or there are too many headers,
            or they are too large.
    """
    if (
        bytes_received > LARGEST_HEAD
        and sum(len(name) + len(value) for name, value in headers) > LARGEST_HEAD
    ):
        raise head_too_large()
    if len(headers) > MOST_HEADERS:
        raise UpstreamUnavailable(
            f"The upstream's response has more than {MOST_HEADERS} headers.",
            reason="too many response headers",
        )
    length = None
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"content-length":
            length = int(value)
            if length > largest:
                raise too_large(largest)
        elif lowered == b"transfer-encoding":
            length = 0
            if value.strip().lower() != b"chunked":
                raise UpstreamUnavailable(
                    "The upstream's response has an unsupported transfer-encoding.",
                    reason=NOT_HTTP,
                )
        elif lowered == b"content-encoding":
            refuse_compressed(value.decode("latin-1"), status)
    return length


CLOSING_NOTICE: Final = (b"HTTP/1.1 408 ", b"HTTP/1.0 408 ")
"""Start of the response with which HAProxy and others close an idle connection."""

AT_ONCE: Final = 1 << 18
"""Bytes of a body that are written at a time: the asyncio transport copies those it cannot send."""

GAVE_UP: Final = frozenset({408, 504})
"""Statuses of a timeout. The real response may still follow."""


class StaleError(Exception):
    """A reused connection brought no trustworthy response. Send the request on a new connection."""


class Connection(asyncio.Protocol):
    """A connection to an upstream, for one exchange at a time.

    ``alive`` is whether it can be used for another exchange, ``complete`` whether the latest
    response has arrived. ``waiter`` is the future of the exchange under way. ``opened_at`` and
    ``idle_since`` are in seconds of the monotonic clock. ``is_substitute`` is whether it leads to
    another address than the others of its pool. ``has_unread(0)`` is true if the socket
    has bytes that the event loop has not read yet.
    """

    __slots__ = (
        "_body",
        "_bytes_received",
        "_chunks",
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
        "_pieces",
        "_size",
        "_source",
        "_status",
        "_stopped",
        "_tail",
        "_transport",
        "_unsent",
        "alive",
        "complete",
        "has_unread",
        "idle_since",
        "is_substitute",
        "opened_at",
        "waiter",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_unsolicited: Callable[[Self, ExchangeLimits], None],
    ) -> None:
        """Create a connection.

        It calls ``on_unsolicited`` with itself and its latest limits when it receives unsolicited
        bytes.
        """
        self._loop = loop
        self._on_unsolicited = on_unsolicited
        self._limits = DEFAULT_LIMITS
        self._parser = HttpResponseParser(self)
        self._exchanges = 0
        self._unsent: bytes | memoryview = b""
        self._stopped = False
        self._full = False
        self._bytes_received = 0
        self._status = 0
        self.alive: bool = False
        self.complete: bool = False
        self.idle_since: float = 0.0
        self.is_substitute: bool = False
        self.waiter: asyncio.Future[UpstreamResponse] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the asyncio transport."""
        self._transport = cast("asyncio.Transport", transport)
        self.has_unread: Callable[[int], object] = make_readable_check(
            transport.get_extra_info("socket").fileno()
        )
        # If the upstream closes a TLS connection whose reading is paused, uvloop loses up to
        # 512 KiB. So reading is never paused near the end of a response.
        self._tail = TAIL if transport.get_extra_info("ssl_object") else -LARGEST_REPLY
        self.opened_at: float = monotonic()
        self.alive: bool = True

    def exchange(
        self, head: SecretBytes, content: bytes, limits: ExchangeLimits, source: Source | None
    ) -> "asyncio.Future[UpstreamResponse]":
        """Send a request; return a future of its complete response, marked with ``source``.

        Set ``waiter`` to None when the future is done, also after an error.

        Raises:
            StaleError: a reused connection was closed before a response began. Raised here or by
                the future.
            UpstreamError: the exchange failed or took too long, or the response is invalid.
        """
        if not self.alive:
            raise self._closed_before_request()
        self._exchanges += 1
        self._limits = limits
        self._source = source
        self._largest = limits.largest
        self._overrun = False
        self._bytes_received = 0
        self._paused_at = 0
        self._status = 0
        self._size = 0
        self._chunks = 0
        self._early = b""
        self._length: int | None = None
        self._head: RawHeaders = []
        self._body = b""
        self._pieces: BytesIO | None = None
        self.complete: bool = False
        self.waiter = waiter = self._loop.create_future()
        if len(content) <= AT_ONCE:
            self._transport.writelines((head.content, content))
        else:
            self._transport.write(head.content)
            self._unsent = memoryview(content)
            self._send_on()
        return waiter

    def _closed_before_request(self) -> Exception:
        if self._exchanges:
            return StaleError()
        return broken(CLOSED)

    def _send_on(self) -> None:
        """Write the next piece of a large body, unless the transport's buffer is full."""
        if not self.alive:
            self._unsent = b""
        elif self._full:
            self._stopped = True
        elif self._unsent:
            piece = self._unsent[:AT_ONCE]
            self._unsent = self._unsent[AT_ONCE:]
            self._transport.write(piece)
            self._loop.call_soon(self._send_on)

    def pause_writing(self) -> None:
        """Stop writing: the buffer of the transport is full."""
        self._full = True

    def resume_writing(self) -> None:
        """Continue to write a large body."""
        self._full = False
        if self._stopped:
            self._stopped = False
            self._send_on()

    def expire(self, seconds: float, deadline: float) -> None:
        """Fail the exchange with a timeout of ``seconds``, which ended at ``deadline``.

        If the event loop is late, the response may have arrived without having been read.
        """
        lag = time_limits.significant_lag(monotonic() - deadline, seconds)
        if lag:
            self._loop.call_later(time_limits.SECOND_CHANCE, self._expire_late, self.waiter, lag)
        else:
            self._fail(timed_out(seconds))

    def _expire_late(self, waiter: "asyncio.Future[UpstreamResponse] | None", lag: float) -> None:
        """Fail the exchange of ``waiter`` if it has not ended since."""
        if waiter is self.waiter:
            self._fail(late_loop_error(lag))

    def distrust(self) -> None:
        """Abort the exchange if it is not the first: its response may belong to an earlier one."""
        if self._exchanges > 1:
            self._fail(StaleError())

    def abort(self) -> None:
        """Close the connection at once."""
        self.alive = False
        self._unsent = b""
        # This object and the parser form a reference cycle, so free the body now.
        self._body = b""
        self._pieces = None
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse the bytes, and end the exchange if its response is complete or invalid."""
        if self.waiter is None or self.waiter.done():
            self._receive_unsolicited(data)
            return
        self._bytes_received += len(data)
        if self._status < 200:
            self._early += data
        error = None
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as failure:
            # The parser wraps an exception of a callback. Its own errors have no context.
            cause = failure.__context__
            error = cause if isinstance(cause, UpstreamError) else not_http()
        if self._overrun or (self.complete and error is not None):
            self._on_unsolicited(self, self._limits)
            self._end(self.waiter)
        elif error is not None:
            self._fail(error)
        elif self._bytes_received - self._size - CHUNK_FRAMING * self._chunks > LARGEST_HEAD:
            self._fail(head_too_large())
        elif self.complete:
            self._end(self.waiter)
        elif self._bytes_received - self._paused_at >= AT_A_TIME:
            self._pause()

    def _receive_unsolicited(self, data: bytes) -> None:
        self.abort()
        if self.complete and data.strip() and not data.startswith(CLOSING_NOTICE):
            self._on_unsolicited(self, self._limits)

    def _pause(self) -> None:
        """Let the event loop do other work before the next bytes are read."""
        if (self._length or 0) - self._bytes_received >= self._tail:
            self._paused_at = self._bytes_received
            self._transport.pause_reading()
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self.alive:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange. A body without a declared length is complete now."""
        closed_cleanly = exc is None and self.alive
        self.alive = False
        if self.waiter is None or self.waiter.done():
            self.abort()
        elif closed_cleanly and self._status >= 200 and self._length is None:
            self.complete = True
            self._end(self.waiter)
        elif not self._bytes_received and self._exchanges > 1:
            self._fail(StaleError())
        else:
            self._fail(broken(INCOMPLETE if exc is None else describe(exc) or INCOMPLETE))

    def on_message_begin(self) -> None:
        """Start a response. A second one in the same bytes is unsolicited."""
        self._overrun = self.complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header, but not a trailer."""
        if self._status < 200:
            self._head.append((name, value))

    def on_headers_complete(self) -> None:
        """Check the status lines and the headers."""
        if not self.complete:
            self._status = self._parser.get_status_code()
            if self._status >= 200:
                line = _STATUS_LINE.match(self._early)
                if (line is None or line[1] == b"1") and not has_sound_status_lines(self._early):
                    raise not_http()
                self._early = b""
            if self._status >= 300:
                self._largest = max(self._largest, LARGEST_ERROR)
            self._length = parse_body_length(
                self._head, self._bytes_received, self._largest, self._status
            )

    def on_chunk_header(self) -> None:
        """Count the chunks."""
        self._chunks += 1

    def on_body(self, body: bytes) -> None:
        """Store a piece of the body. A 1xx response has none (RFC 9110, section 15.2)."""
        if self._status < 200:
            raise not_http()
        if self.complete:
            return
        self._size += len(body)
        if self._size > self._largest:
            raise too_large(self._largest)
        if not self._body:
            self._body = body
        elif self._pieces is None:
            # BytesIO allocates the whole body once, and `getvalue` does not copy it. Joining a list
            # of pieces would block the event loop.
            self._pieces = BytesIO(bytes(self._length or 0))
            self._pieces.write(self._body + body)
        else:
            self._pieces.write(body)

    def on_message_complete(self) -> None:
        """Mark the response as complete, unless it is a 1xx response."""
        if self._status < 200:
            self._head = []
        elif not self.complete:
            self.complete = True
            # Not reusable if the upstream responded before it read the whole request: it may take
            # the rest for another request. Nor after a timeout of a proxy, which may still pass the
            # real response on.
            is_reusable = self._status not in GAVE_UP and not (
                self._unsent or self._transport.get_write_buffer_size()
            )
            self.alive = is_reusable and self._parser.should_keep_alive()

    def _end(self, waiter: "asyncio.Future[UpstreamResponse]") -> None:
        """Set the response as the result of the exchange."""
        self.idle_since: float = (
            monotonic()
        )  # not loop.time(): uvloop updates it once per iteration
        headers = Headers(self._head)
        body = self._pieces.getvalue() if self._pieces else self._body
        self._body = b""
        self._pieces = None
        if self._status >= 300:
            body = decompress_error_body(headers.get("content-encoding"), body)
        waiter.set_result(UpstreamResponse(self._status, headers, body, self._source))

    def _fail(self, error: Exception) -> None:
        self.abort()
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(error)
