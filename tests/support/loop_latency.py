"""Measures how long a large response blocks the event loop, in a separate process.

``python -m tests.support.loop_latency openai base64 float uvloop`` requests base64 from an
upstream, which is another process, and responds with floats as text. It measures the longest time
that a coroutine has to wait for its next turn. It repeats this until the time is within the bound,
at most a fixed number of times, and prints the best time and the bound, in seconds.

Time that other programs use is not counted. The processors are kept busy, because a virtual machine
wakes them late.
"""

import asyncio
import base64
import gc
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import uvloop

from embedroute import (
    CacheSettings,
    Config,
    Embeddings,
    Endpoint,
    Gateway,
    Model,
    Provider,
    Settings,
    embeddings_app,
)
from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.gemini import Gemini
from embedroute.backends.openai import OpenAI
from embedroute.protocol import DIALECTS
from embedroute.trace import RequestTrace
from tests.fault_upstream import vectors_of
from tests.support.asgi_client import call

RUNS = 16
BOUND = 0.010
SHARE = 32
"""On a slow machine the bound is this part of what the same work takes at once."""
STAT, TASKS = Path("/proc/stat"), Path("/proc/self/task")
AWAKE = "import os\nparent = os.getppid()\nos.nice(19)\nwhile os.getppid() == parent: pass"

built = []


def noting(backend):
    """Make a backend record when its first request is ready; later work is for the response."""

    class Noting(backend, frozen=True, kw_only=True):
        def build(self, batch):
            request = super().build(batch)
            built.append(now())
            return request

    return Noting


class Moment(NamedTuple):
    """A time, and what this process had lost by then to others."""

    clock: float
    lost: float

    def __sub__(self, other):
        """Seconds between two, but for those that others took."""
        return self.clock - other.clock - (self.lost - other.lost)


def now():
    return Moment(time.perf_counter(), waited() + stolen())


def waited():
    """Return the seconds for which threads of this process were ready but not running."""
    total = 0
    for thread in TASKS.iterdir() if TASKS.exists() else ():
        with suppress(FileNotFoundError, ProcessLookupError):
            total += int((thread / "schedstat").read_bytes().split()[1])
    return total / 1e9


def stolen():
    """Seconds for which this virtual machine has stood ready while others had the processors."""
    if not STAT.exists():
        return 0
    with STAT.open() as lines:
        return int(next(lines).split()[8]) / os.sysconf("SC_CLK_TCK")


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
                asked = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    line
                    for line in asked.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                )
                await reader.readexactly(int(length.split(b":")[1]))
                writer.writelines([head, body])
                await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.sleep(3600)


class Held:
    """Asks one large request after the other and keeps the best of what it sees, in seconds."""

    def __init__(self, kind, encoding, vectors, body):
        self.kind, self.encoding = kind, encoding
        self.texts = [f"text {at}" for at in range(kind.count)]
        self.reply = UpstreamResponse(200, {}, body)
        self.answer = Embeddings(
            rows=list(vectors), model="m", prompt_tokens=5, trace=RequestTrace("req_1")
        )
        self.turns, self.ends = [], []
        self.held = float("inf")

    def at_once(self):
        began, backend = now(), self.kind.backend(api_key=Secret("sk-1"))
        for _ in range(0, self.kind.count, self.kind.at_once):
            backend.parse(
                Batch(model="m", texts=self.texts[: self.kind.at_once], width=self.kind.width),
                self.reply,
            )
        for _ in DIALECTS["openai"].success(
            self.answer, SimpleNamespace(base64=self.encoding == "base64")
        ):
            pass
        return now() - began

    async def keep(self):
        while True:
            self.turns.append(now())
            await asyncio.sleep(0.0002)

    async def ask(self, app):
        async def noting(scope, receive, send):
            await app(scope, receive, send)
            self.ends.append(now())

        built.clear()
        self.turns.clear()
        body = json.dumps(
            {"model": "m", "input": self.texts, "encoding_format": self.encoding}
        ).encode()
        answer = await call(
            noting, "POST", "/v1/embeddings", [("content-type", "application/json")], [body]
        )
        assert answer.status == 200, answer.body

    def longest(self):
        since, until = built[0], self.ends[-1]
        turns = [since, *(turn for turn in self.turns if since < turn < until), until]
        return max(after - before for before, after in pairwise(turns))

    async def measure(self, gateway):
        app, bound = embeddings_app(gateway), float("inf")
        async with gateway.lifespan():
            await self.ask(app)
            keeping = asyncio.create_task(self.keep())
            for _ in range(RUNS):
                bound = min(bound, max(BOUND, self.at_once() / SHARE))
                gc.collect()
                await self.ask(app)
                self.held = min(self.held, self.longest())
                if self.held < bound:
                    break
            keeping.cancel()
        sys.stdout.write(f"{self.held} {bound}\n")


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


@contextmanager
def awake():
    """Give the processors something that everybody goes before."""
    few = min(
        2, os.cpu_count()
    )  # a container with a share of many processors would have used it up
    spinning = [subprocess.Popen([sys.executable, "-c", AWAKE]) for _ in range(few)]  # noqa: S603 - our own words
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def main(name, asked_of, encoding, loop):
    kind = KINDS[name]
    vectors = vectors_of([f"text {at}" for at in range(kind.count)], kind.width)
    body = kind.body(vectors[: kind.at_once], asked_of)
    held = Held(kind, encoding, vectors, body)
    options = {"encoding_format": asked_of} if name == "openai" else {}
    with awake(), upstream(body) as url:
        (uvloop.run if loop == "uvloop" else asyncio.run)(
            held.measure(gateway_at(url, kind, **options))
        )


if __name__ == "__main__":
    main(*sys.argv[1:]) if sys.argv[1:] else asyncio.run(serve(sys.stdin.buffer.read()))
