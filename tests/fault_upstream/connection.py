"""One connection: reads requests, runs the steps of one response at a time, detects disconnects."""

import asyncio
import socket
import struct
import time
from typing import Any

from tests.fault_upstream.messages import take
from tests.fault_upstream.modes import End
from tests.fault_upstream.truth import Ask, ask_of

LONGEST = 1e6
"""Seconds of an infinite pause."""


class Connection(asyncio.Protocol):
    """A protocol on the upstream's event loop; it uses only callbacks, which need little CPU."""

    def __init__(self, upstream: Any):
        self.upstream = upstream
        self.buffer = bytearray()
        self.ask: Ask | None = None
        self.seen = 0
        self.paused = self.ours = False
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.upstream.open.add(self)
        self.upstream.connections += 1

    def connection_lost(self, _exc: Exception | None) -> None:
        self.upstream.open.discard(self)
        if self.timer:
            self.timer.cancel()
        if self.ask:
            self.ask.gone = not self.ours
            self.upstream.aborted += self.ask.gone
            self.done()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.next_request()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.ask and not self.timer:
            self.play()

    def next_request(self) -> None:
        """Start the next request, if it is complete and no response is under way."""
        if self.ask or self.transport.is_closing():
            return
        try:
            message = take(self.buffer)
        except ValueError:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            self.end(End.FIN)
            return
        if message:
            self.seen += 1
            self.begin(ask_of(message, at=time.monotonic(), nth=self.seen, upstream=self.upstream))

    def begin(self, ask: Ask) -> None:
        """Count a request as in flight, and start its response after the delay."""
        upstream, self.ask = self.upstream, ask
        upstream.in_flight += 1
        upstream.most_in_flight = max(upstream.most_in_flight, upstream.in_flight)
        self.steps = upstream.steps_for(ask)
        if upstream.delay:
            self.pause(upstream.delay)
        else:
            self.play()

    def pause(self, seconds: float) -> None:
        """Continue later."""
        self.timer = asyncio.get_running_loop().call_later(min(seconds, LONGEST), self.play)

    def play(self) -> None:
        """Run steps until a pause, a full buffer or the end."""
        self.timer = None
        try:
            self.play_on()
        except BaseException:
            # A bug in a lie must not look like a stall.
            self.cut()
            raise

    def play_on(self) -> None:
        """Run the steps; after the last one, start the next request."""
        # A write to a peer that has gone neither raises nor pauses: it only starts to close.
        while not self.paused and not self.transport.is_closing():
            step = next(self.steps, None)
            if step is None:
                return self.finish()
            if isinstance(step, End):
                return self.end(step)
            if isinstance(step, float):
                return self.pause(step)
            self.transport.write(step)
        return None

    def finish(self) -> None:
        """Keep the connection for another request, unless the peer does not want to."""
        close = self.ask and self.ask.headers.get("connection", "").lower() == "close"
        self.done()
        if close:
            self.end(End.FIN)
        else:
            self.next_request()

    def done(self) -> None:
        """Count the request as done."""
        if self.ask:
            self.upstream.in_flight -= 1
            self.ask = None

    def end(self, how: End) -> None:
        """End the connection. Written bytes are still sent before a FIN, but not before a RST."""
        self.done()
        if how is End.FIN:
            self.transport.close()
        else:
            self.cut()

    def cut(self) -> None:
        """Send a RST now."""
        self.ours = True
        linger = struct.pack("ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, linger
        )
        self.transport.abort()
