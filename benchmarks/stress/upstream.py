"""The process with all upstreams of a run, controlled by `POST /__control` on its first port.

Run as `python -m benchmarks.stress.upstream PORT`. Each upstream has a port of its own and serves
`POST /v1/embeddings` of OpenAI.
"""

import asyncio
import contextlib
import heapq
import random
import socket
import sys
from collections import deque
from collections.abc import Callable

import httptools
import msgspec
import uvloop

from benchmarks.stress import vectors
from benchmarks.stress.messages import Behaviour, Counts, Order

HEAD = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n"
ERROR = b'{"error":{"message":"%b","type":"%b","param":null,"code":null}}'
ERRORS = {
    429: (b"Too Many Requests", b"Rate limit reached", b"requests"),
    500: (b"Internal Server Error", b"The server had an error", b"server_error"),
    503: (b"Service Unavailable", b"The server is overloaded", b"server_error"),
}
BURST = 0.25  # seconds


class Request(msgspec.Struct):
    input: str | list[str]
    model: str


class Call(msgspec.Struct, eq=False):
    """A request that has no response yet. `outcome` is the status that it will get; 0 is a reset."""

    connection: "Connection"
    request: Request
    outcome: int
    seconds: float


def success(request: Request) -> bytes:
    texts = [request.input] if isinstance(request.input, str) else request.input
    rows = b",".join(
        [
            b'{"object":"embedding","index":%d,"embedding":"%b"}' % (index, vectors.encoded(text))
            for index, text in enumerate(texts)
        ]
    )
    body = (
        b'{"object":"list","data":[%b],"model":"%b","usage":{"prompt_tokens":%d,"total_tokens":%d}}'
    )
    answer = body % (rows, request.model.encode(), len(texts), len(texts))
    return HEAD % (200, b"OK", len(answer), b"") + answer


def failure(status: int, retry_after: str = "") -> bytes:
    reason, message, kind = ERRORS[status]
    body = ERROR % (message, kind)
    header = b"retry-after: %b\r\n" % retry_after.encode() if retry_after else b""
    return HEAD % (status, reason, len(body), header) + body


class Queue:
    """Serves some calls at a time, and the others after them."""

    def __init__(self, workers: int, finish: Callable[[Call], None]) -> None:
        self.free, self.finish = workers, finish
        self.waiting: deque[Call] = deque()

    def add(self, call: Call) -> None:
        if not self.free:
            self.waiting.append(call)
            return
        self.free -= 1
        self._serve(call)

    def _serve(self, call: Call) -> None:
        asyncio.get_running_loop().call_later(call.seconds, self._served, call)

    def _served(self, call: Call) -> None:
        self.finish(call)
        if self.waiting:
            self._serve(self.waiting.popleft())
        else:
            self.free += 1


class Refusing:
    """Serves some calls at a time, and refuses the others."""

    def __init__(
        self, workers: int, finish: Callable[[Call], None], refuse: Callable[[Call], None]
    ) -> None:
        self.free, self.finish, self.refuse = workers, finish, refuse

    def add(self, call: Call) -> None:
        if self.free:
            self.free -= 1
            asyncio.get_running_loop().call_later(call.seconds, self._served, call)
        else:
            self.refuse(call)

    def _served(self, call: Call) -> None:
        self.free += 1
        self.finish(call)


class Sharing:
    """Serves all calls at once; beyond `workers` calls, each is slower in proportion.

    `work` is the work in seconds that each call under way has got since the start. A call ends when
    `work` has grown by the call's own seconds.
    """

    def __init__(self, workers: int, finish: Callable[[Call], None]) -> None:
        self.workers, self.finish = workers, finish
        self.ends: list[tuple[float, int, Call]] = []
        self.work = self.updated = 0.0
        self.number = 0
        self.timer: asyncio.TimerHandle | None = None

    def add(self, call: Call) -> None:
        self._update()
        self.number += 1
        heapq.heappush(self.ends, (self.work + call.seconds, self.number, call))
        self._set_timer()

    def _speed(self) -> float:
        return min(1.0, self.workers / len(self.ends)) if self.ends else 1.0

    def _update(self) -> None:
        now = asyncio.get_running_loop().time()
        self.work += (now - self.updated) * self._speed()
        self.updated = now

    def _set_timer(self) -> None:
        if self.timer:
            self.timer.cancel()
        self.timer = None
        if self.ends:
            wait = max(0.0, self.ends[0][0] - self.work) / self._speed()
            self.timer = asyncio.get_running_loop().call_later(wait, self._end)

    def _end(self) -> None:
        self._update()
        while self.ends and self.ends[0][0] <= self.work + 1e-4:
            self.finish(heapq.heappop(self.ends)[2])
        self._set_timer()


class Upstream:
    """One upstream: its port, its behaviour and its counts."""

    def __init__(self, name: str) -> None:
        self.behaviour = Behaviour()
        self.random = random.Random(name)
        self.connections: set[Connection] = set()
        self.fail_next = 0
        self.arrivals: deque[float] = deque()
        self.holder = bound(0)  # keeps the port while connections are refused
        self.counts = Counts(port=self.holder.getsockname()[1])
        self.server: asyncio.Server | None = None
        self.serve: Callable[[Call], None] = self._serve_any

    async def set(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.fail_next = behaviour.fail_next
        if not behaviour.workers:
            self.serve = self._serve_any
        elif behaviour.beyond == "refuse":
            self.serve = Refusing(behaviour.workers, self.finish, self.refuse).add
        else:
            discipline = Queue if behaviour.beyond == "queue" else Sharing
            self.serve = discipline(behaviour.workers, self.finish).add
        if behaviour.outage == "refuse":
            self._close()
        elif self.server is None:
            await self._listen()

    def reset(self) -> None:
        at_once = self.counts.at_once
        self.counts = Counts(port=self.counts.port, at_once=at_once, most_at_once=at_once)
        self.arrivals.clear()

    def receive(self, connection: "Connection", body: bytes) -> None:
        self._count_arrival()
        outage = self.behaviour.outage
        if outage == "stall":
            return
        request = msgspec.json.decode(body, type=Request)
        call = Call(connection, request, self._outcome(), self._seconds(request))
        if outage == "503":
            call.outcome = 503
            self.finish(call)
        else:
            self.serve(call)

    def finish(self, call: Call) -> None:
        """Send the response of a call, unless its client has gone."""
        if call.outcome == 200:
            self.counts.answered += 1
        else:
            self.counts.failed += 1
        if not call.connection.waiting:
            return
        if call.outcome == 0:
            call.connection.transport.abort()
        elif call.outcome == 200:
            call.connection.respond(success(call.request))
        else:
            call.connection.respond(failure(call.outcome, self.behaviour.retry_after))

    def refuse(self, call: Call) -> None:
        self.counts.refused += 1
        call.outcome = self.behaviour.refuse_with
        call.seconds = self.behaviour.refuse_after
        self._serve_any(call)

    def _count_arrival(self) -> None:
        counts, now = self.counts, asyncio.get_running_loop().time()
        counts.calls += 1
        counts.at_once += 1
        counts.most_at_once = max(counts.most_at_once, counts.at_once)
        self.arrivals.append(now)
        while self.arrivals[0] < now - BURST:
            self.arrivals.popleft()
        counts.burst = max(counts.burst, len(self.arrivals))

    def _outcome(self) -> int:
        behaviour = self.behaviour
        if self.fail_next:
            self.fail_next -= 1
        elif self.random.random() >= behaviour.fail:
            return 200
        return self.random.choice(behaviour.statuses)

    def _seconds(self, request: Request) -> float:
        behaviour = self.behaviour
        inputs = 1 if isinstance(request.input, str) else len(request.input)
        seconds = behaviour.service + behaviour.per_input * inputs
        if behaviour.slow and self.random.random() < behaviour.slow:
            seconds += behaviour.slow_seconds
        return seconds

    def _serve_any(self, call: Call) -> None:
        if call.seconds:
            asyncio.get_running_loop().call_later(call.seconds, self.finish, call)
        else:
            self.finish(call)

    async def _listen(self) -> None:
        listener = bound(self.counts.port)
        listener.listen(1024)
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: Connection(self), sock=listener)

    def _close(self) -> None:
        if self.server:
            self.server.close()
            self.server = None
        for connection in list(self.connections):
            connection.transport.abort()


class Connection(asyncio.Protocol):
    """A connection to an upstream, one call at a time."""

    transport: asyncio.Transport

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.parser = httptools.HttpRequestParser(self)
        self.body: list[bytes] = []
        self.waiting = False  # whether a call has no response yet

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.upstream.connections.add(self)

    def connection_lost(self, _error) -> None:
        self.upstream.connections.discard(self)
        self._end_call()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self.body)
        self.body.clear()
        self.waiting = True
        self.upstream.receive(self, body)

    def respond(self, response: bytes) -> None:
        self._end_call()
        self.transport.write(response)

    def _end_call(self) -> None:
        if self.waiting:
            self.waiting = False
            self.upstream.counts.at_once -= 1


class Control(asyncio.Protocol):
    """Carries out orders, and responds with the counts of the upstream before any reset."""

    upstreams: dict[str, Upstream] = {}  # noqa: RUF012 - of the process, not of one connection
    tasks: set[asyncio.Task] = set()  # noqa: RUF012

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        task = asyncio.ensure_future(self.carry_out(msgspec.json.decode(self.body, type=Order)))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        self.body = b""

    async def carry_out(self, order: Order) -> None:
        upstream = self.upstreams.get(order.upstream)
        if upstream is None:
            upstream = self.upstreams[order.upstream] = Upstream(order.upstream)
        counts = upstream.counts
        if order.behaviour:
            await upstream.set(order.behaviour)
        if order.reset:
            upstream.reset()
        body = msgspec.json.encode(counts)
        self.transport.write(HEAD % (200, b"OK", len(body), b"") + body)


def bound(port: int) -> socket.socket:
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", port))
    return holder


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Control, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(int(sys.argv[1])))
