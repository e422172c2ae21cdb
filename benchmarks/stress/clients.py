"""The process with all clients of a run: it reads a job from its input and writes what it saw to a file.

Run as `python -m benchmarks.stress.clients FILE`; the job is a list of `Stream` in JSON.
"""

import asyncio
import random
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Coroutine, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httptools
import msgspec
import uvloop

from benchmarks.stress import vectors
from benchmarks.stress.messages import FAILED, TIMED_OUT, WRONG, Load, Record, Stream

HEAD = (
    b"POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer stress\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
)
IDLE = 4.0  # seconds after which a connection is not reused; uvicorn closes it after 5
BACKOFF = 0.1  # seconds before the first retry


class Row(msgspec.Struct):
    embedding: str


class Success(msgspec.Struct):
    data: list[Row]


class Error(msgspec.Struct):
    code: str | int | None = None


class Failure(msgspec.Struct):
    error: Error


class Response(msgspec.Struct, frozen=True):
    status: int
    body: bytes = b""
    retry_after: str = ""


class Connection(asyncio.Protocol):
    """A connection to a gateway or upstream, for one request at a time."""

    transport: asyncio.Transport
    parser: httptools.HttpResponseParser

    def __init__(self) -> None:
        self.response: asyncio.Future[Response] | None = None
        self.open = True
        self.used = time.monotonic()

    def connection_made(self, transport) -> None:
        self.transport = transport

    def connection_lost(self, _error) -> None:
        self.open = False
        self._resolve(Response(FAILED))

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def send(self, request: bytes, timeout: float) -> asyncio.Future[Response]:
        loop = asyncio.get_running_loop()
        self.parser = httptools.HttpResponseParser(self)
        self.body: list[bytes] = []
        self.retry_after = ""
        self.timer = loop.call_later(timeout, self._time_out)
        self.response = loop.create_future()
        self.transport.write(request)
        return self.response

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self.retry_after = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.used = time.monotonic()
        self.open = self.open and self.parser.should_keep_alive()
        status = self.parser.get_status_code()
        self._resolve(Response(status, b"".join(self.body), self.retry_after))

    def _time_out(self) -> None:
        self._resolve(Response(TIMED_OUT))
        self.transport.abort()

    def _resolve(self, response: Response) -> None:
        if self.response and not self.response.done():
            self.timer.cancel()
            self.response.set_result(response)


class Pool:
    """The connections to one port. The connection used last is reused first."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[Connection] = []

    async def request(self, request: bytes, timeout: float) -> Response:
        connection = self._reusable()
        if connection is None:
            try:
                async with asyncio.timeout(timeout):
                    connection = await self.connect()
            except TimeoutError:
                return Response(TIMED_OUT)
            except OSError:
                return Response(FAILED)
        response = await connection.send(request, timeout)
        if connection.open and response.status >= 200:
            self.idle.append(connection)
        return response

    async def connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
        return connection

    async def connect_all(self, count: int) -> None:
        self.idle += await asyncio.gather(*(self.connect() for _ in range(count)))

    def _reusable(self) -> Connection | None:
        while self.idle:
            connection = self.idle.pop()
            if connection.open and time.monotonic() - connection.used < IDLE:
                return connection
            connection.transport.abort()
        return None


class Clients:
    """Runs a job."""

    def __init__(self) -> None:
        self.pools: dict[int, Pool] = {}
        self.records: list[Record] = []
        self.texts = count()
        self.attempts: dict[str, Iterator[int]] = defaultdict(count)
        self.random = random.Random(0)

    async def run(self, streams: list[Stream]) -> None:
        for stream in streams:
            if stream.connect_first:
                await self.pool(stream.ports[0]).connect_all(stream.clients)
        self.started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for stream in streams:
                if stream.rate:
                    group.create_task(self.send_at_rate(stream))
                for number in range(stream.clients):
                    group.create_task(self.send_in_turn(stream, number / stream.clients))

    async def send_at_rate(self, stream: Stream) -> None:
        async with asyncio.TaskGroup() as group:
            at = stream.begin
            while at < stream.end:
                await self.sleep_until(at)
                group.create_task(self.request(stream))
                at += 1 / stream.rate

    async def send_in_turn(self, stream: Stream, part: float) -> None:
        # The clients start over a tenth of a second, so that they do not form one burst.
        await self.sleep_until(stream.begin + 0.1 * part)
        while time.monotonic() < self.started + stream.end:
            record = await self.request(stream)
            if stream.once:
                return
            if record.status != 200:
                pause = stream.pause * self.random.uniform(0.5, 1.5)
                await asyncio.sleep(max(pause, float(record.retry_after or 0.0)))

    async def sleep_until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, self.started + at - time.monotonic()))

    async def request(self, stream: Stream) -> Record:
        """Send a request with its retries and record the outcome."""
        number = next(self.texts)
        texts = [f"{stream.name} {number} {index}" for index in range(stream.inputs)]
        request = encoded(stream.model, texts)
        sent = time.monotonic()
        response = await self.attempt(stream, request)
        tries = 1
        while response.status != 200 and tries <= stream.retries:
            await asyncio.sleep(self.wait_before(tries, response.retry_after))
            response = await self.attempt(stream, request)
            tries += 1
        ended = time.monotonic()
        status = response.status
        if status == 200 and not holds(response.body, texts):
            status = WRONG
        code = "" if status == 200 else error_code(response.body)
        record = Record(stream.name, sent, ended, status, tries, response.retry_after, code)
        self.records.append(record)
        return record

    def attempt(self, stream: Stream, request: bytes) -> Coroutine[Any, Any, Response]:
        port = stream.ports[next(self.attempts[stream.name]) % len(stream.ports)]
        return self.pool(port).request(request, stream.timeout)

    def pool(self, port: int) -> Pool:
        pool = self.pools.get(port)
        if pool is None:
            pool = self.pools[port] = Pool(port)
        return pool

    def wait_before(self, retry: int, retry_after: str) -> float:
        backoff = BACKOFF * 2 ** (retry - 1) * self.random.uniform(0.5, 1.0)
        return max(backoff, float(retry_after) if retry_after else 0.0)


def encoded(model: str, texts: list[str]) -> bytes:
    wire_input = texts[0] if len(texts) == 1 else texts
    body = msgspec.json.encode({"model": model, "input": wire_input, "encoding_format": "base64"})
    return HEAD % len(body) + body


def holds(body: bytes, texts: list[str]) -> bool:
    rows = msgspec.json.decode(body, type=Success).data
    return [row.embedding.encode() for row in rows] == [vectors.encoded(text) for text in texts]


def error_code(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body, type=Failure).error.code or "")
    except msgspec.DecodeError:
        return ""


async def run(streams: list[Stream]) -> Load:
    clients = Clients()
    await clients.run(streams)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Load(started=clients.started, records=clients.records, cpu=used.ru_utime + used.ru_stime)


def main() -> None:
    streams = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Stream])
    Path(sys.argv[1]).write_bytes(msgspec.json.encode(uvloop.run(run(streams))))


if __name__ == "__main__":
    main()
