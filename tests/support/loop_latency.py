"""Measures how long a large response blocks the event loop, in a separate process.

``python -m tests.support.loop_latency openai base64 float uvloop`` requests base64 from an
upstream, which is another process, and responds with floats as text. It measures the longest time
that a coroutine has to wait for its next turn, in CPU time of this process, so that what other
programs use is not counted. It repeats this, and prints the median of the times and the bound, in
seconds.
"""

import asyncio
import base64
import gc
import json
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import numpy as np
import uvloop

from embedroute import (
    CacheSettings,
    Config,
    Endpoint,
    Gateway,
    Model,
    Provider,
    Settings,
    embeddings_app,
)
from embedroute.backend import Secret
from embedroute.backends.gemini import Gemini
from embedroute.backends.openai import OpenAI
from tests.fault_upstream import vectors_of
from tests.support.asgi_client import call
from tests.support.cpu_time import slowness

RUNS = 5
BOUND = 0.015
"""Seconds of CPU of the reference machine, of all threads: a time slice has 0.005."""

built = []


def noting(backend):
    """Make a backend record when its first request is ready; later work is for the response."""

    class Noting(backend, frozen=True, kw_only=True):
        def build(self, batch):
            request = super().build(batch)
            built.append(time.process_time())
            return request

    return Noting


def openai_body(vectors, encoding):
    form = np.ndarray.tolist if encoding == "float" else lambda row: base64.b64encode(row).decode()
    data = [{"index": at, "embedding": form(row)} for at, row in enumerate(vectors)]
    return json.dumps({"data": data, "usage": {"prompt_tokens": 5}}).encode()


def gemini_body(vectors, _encoding):
    """As Google writes it: each number on a line of its own."""
    return json.dumps(
        {"embeddings": [{"values": row} for row in vectors.tolist()]}, indent=2
    ).encode()


class Kind(NamedTuple):
    """A backend and what its upstream answers to each call."""

    backend: type
    count: int
    """Texts in a request."""
    at_once: int
    """Texts in a call."""
    width: int
    body: object


KINDS = {
    "openai": Kind(noting(OpenAI), 2048, 2048, 1536, openai_body),
    "gemini": Kind(noting(Gemini), 1000, 100, 3072, gemini_body),
}


async def serve(body):
    """Answer every request with ``body``."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    async def answer(reader, writer):
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request_head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    line
                    for line in request_head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                )
                await reader.readexactly(int(length.split(b":")[1]))
                writer.writelines([head, body])
                await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.sleep(3600)


class LoopLatency:
    """Asks one large request after the other and keeps the median of what it sees, in seconds."""

    def __init__(self, kind, encoding):
        self.kind, self.encoding = kind, encoding
        self.texts = [f"text {at}" for at in range(kind.count)]
        self.wakeups, self.ends = [], []
        self.latency = float("inf")

    async def keep(self):
        while True:
            self.wakeups.append(time.process_time())
            await asyncio.sleep(0.0002)

    async def ask(self, app):
        async def noting(scope, receive, send):
            await app(scope, receive, send)
            self.ends.append(time.process_time())

        built.clear()
        self.wakeups.clear()
        body = json.dumps(
            {"model": "m", "input": self.texts, "encoding_format": self.encoding}
        ).encode()
        answer = await call(
            noting, "POST", "/v1/embeddings", [("content-type", "application/json")], [body]
        )
        assert answer.status == 200, answer.body

    def longest(self):
        since, until = built[0], self.ends[-1]
        times = [since, *(at for at in self.wakeups if since < at < until), until]
        return max(after - before for before, after in pairwise(times))

    async def measure(self, gateway):
        app, longest = embeddings_app(gateway), []
        async with gateway.lifespan():
            await self.ask(app)
            keeping = asyncio.create_task(self.keep())
            for _ in range(RUNS):
                gc.collect()
                before = slowness()
                await self.ask(app)
                longest.append(self.longest() * 2 / (before + slowness()))
            keeping.cancel()
            self.latency = median(longest)
        sys.stdout.write(f"{self.latency} {BOUND}\n")


def gateway_at(url, kind, **options):
    return Gateway(
        Config(
            gateway=Settings(auth="open"),
            cache=CacheSettings(bytes=0),
            providers={
                "one": Provider(
                    backend=kind.backend(base_url=url, api_key=Secret("sk-1"), **options)
                )
            },
            models={"m": Model(dimensions=kind.width, endpoints=[Endpoint(provider="one")])},
        ),
        environ={},
    )


@contextmanager
def upstream(body):
    """One that answers ``body``: its URL."""
    command = [sys.executable, "-m", "tests.support.loop_latency"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: S603 - our own words
        try:
            process.stdin.write(body)
            process.stdin.close()
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def main(name, asked_of, encoding, loop):
    kind = KINDS[name]
    vectors = vectors_of([f"text {at}" for at in range(kind.count)], kind.width)
    body = kind.body(vectors[: kind.at_once], asked_of)
    measurement = LoopLatency(kind, encoding)
    options = {"encoding_format": asked_of} if name == "openai" else {}
    with upstream(body) as url:
        (uvloop.run if loop == "uvloop" else asyncio.run)(
            measurement.measure(gateway_at(url, kind, **options))
        )


if __name__ == "__main__":
    main(*sys.argv[1:]) if sys.argv[1:] else asyncio.run(serve(sys.stdin.buffer.read()))
