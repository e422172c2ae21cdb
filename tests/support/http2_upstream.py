"""An HTTP/2 upstream over TLS that sends surplus frames, which hypercorn never does."""

import asyncio
import threading

import h2.config
import h2.connection
import h2.events
import msgspec
from hyperframe.frame import DataFrame, HeadersFrame

from tests.fault_upstream.truth import vectors_of

LATE = 0.005
"""Seconds between a response and a surplus one."""


class Http2Upstream:
    """Responds to ``{"input": [text]}`` with its vector, ``delay`` seconds later; runs in a thread.

    ``surplus`` adds a second response: ``"late"`` on the same stream a little later, ``"at_once"``
    on the same stream in the same write, and ``"ahead"`` in the same write on a stream that the
    client has not opened.
    """

    def __init__(self, context, surplus="", delay=0.0):
        context.set_alpn_protocols(["h2"])
        self.context, self.surplus, self.delay = context, surplus, delay
        self.connections = self.requests = 0
        self.open = set()
        self.headers = []

    def __enter__(self):
        ready = threading.Event()
        self.thread = threading.Thread(target=asyncio.run, args=(self.serve(ready),), daemon=True)
        self.thread.start()
        ready.wait()
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join()

    @property
    def url(self):
        return f"https://localhost:{self.port}/v1"

    async def serve(self, ready):
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        server = await self.loop.create_server(lambda: Peer(self), "127.0.0.1", 0, ssl=self.context)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self.stop.wait()
        server.close()
        for transport in self.open:
            transport.abort()
        await asyncio.sleep(0)


class Peer(asyncio.Protocol):
    """One connection."""

    def __init__(self, upstream):
        self.upstream = upstream
        self.http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.bodies = {}

    def connection_made(self, transport):
        self.transport = transport
        self.upstream.connections += 1
        self.upstream.open.add(transport)
        self.http2.initiate_connection()
        transport.write(self.http2.data_to_send())

    def connection_lost(self, _error):
        self.upstream.open.discard(self.transport)

    def data_received(self, data):
        for event in self.http2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.bodies[event.stream_id] = b""
                self.upstream.headers.append(dict(event.headers))
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] += event.data
            elif isinstance(event, h2.events.StreamEnded):
                self.upstream.requests += 1
                self.upstream.loop.call_later(self.upstream.delay, self.answer, event.stream_id)
        self.transport.write(self.http2.data_to_send())

    def answer(self, stream):
        [text] = msgspec.json.decode(self.bodies.pop(stream))["input"]
        content = msgspec.json.encode({"data": [{"embedding": vectors_of([text])[0].tolist()}]})
        self.http2.send_headers(
            stream, [(":status", "200"), ("set-cookie", "session=other; Path=/")]
        )
        self.http2.send_data(stream, content, end_stream=True)
        answer = self.http2.data_to_send()
        if self.upstream.surplus in {"at_once", "ahead"}:
            answer += self.frames(stream + 2 * (self.upstream.surplus == "ahead"), content)
        self.transport.write(answer)
        if self.upstream.surplus == "late":
            self.upstream.loop.call_later(
                LATE, lambda: self.transport.write(self.frames(stream, content))
            )

    def frames(self, stream, content):
        """Write an answer that h2 itself would refuse to send."""
        headers = HeadersFrame(
            stream, self.http2.encoder.encode([(":status", "200")]), flags=["END_HEADERS"]
        )
        return headers.serialize() + DataFrame(stream, content, flags=["END_STREAM"]).serialize()
