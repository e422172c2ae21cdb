"""The path of the simple warm request: how many Python frames, files and nested coroutines it passes.

Path length is what a request costs: each frame is one to two thousand instructions.
"""

import asyncio
import base64
import inspect
import sys
from pathlib import Path

import msgspec
import numpy as np

import embedroute
from embedroute import ApiKey, Config, Gateway, Model, Provider, embeddings_app
from embedroute.backend import Secret

PACKAGE = str(Path(embedroute.__file__).parent)
MOST_FRAMES = 120
MOST_FILES = 32
DEEPEST = 8
"""Coroutines of the package that wait for each other, from the application to the transport."""

KEY = "a-key-of-sixteen-characters"
VECTOR = base64.b64encode(np.full(8, 8**-0.5, "<f4").tobytes()).decode()
ANSWER = msgspec.json.encode(
    {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": VECTOR}],
        "model": "m",
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(
    ANSWER
)


async def answer_each(reader, writer):
    """Answer every request of a connection."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            writer.write(HEAD + ANSWER)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def make_app(port):
    options = {"api_key": "sk-upstream", "base_url": f"http://127.0.0.1:{port}/v1"}
    return embeddings_app(
        Gateway(
            Config(
                gateway={"auth": "keys"},
                keys={"team": ApiKey(key=Secret(KEY))},
                cache={"bytes": 0},
                providers={
                    "openai": Provider(backend="openai", connection_rest_ms=0, options=options)
                },
                models={"m": Model(dimensions=8, endpoints=[{"provider": "openai"}])},
            ),
            environ={},
        )
    )


async def ask(app):
    """Send one request as a server does: its body in one message, and no disconnect."""
    body = b'{"model":"m","input":"hello world","encoding_format":"base64"}'
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/embeddings",
        "raw_path": b"/v1/embeddings",
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"gateway"),
            (b"authorization", f"Bearer {KEY}".encode()),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ],
    }
    received = []
    sent = []

    async def receive():
        if received:
            await asyncio.sleep(60)
        received.append(body)
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent


class CallPath:
    """Records the frames of the package that run in this thread. A coroutine counts once."""

    def __init__(self):
        self._frames = {}
        self.deepest = 0

    @property
    def frames(self):
        codes = [frame.f_code for frame in self._frames.values()]
        return [f"{code.co_filename[len(PACKAGE) + 1 :]}:{code.co_qualname}" for code in codes]

    def __call__(self, frame, event, _argument):
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        self._frames[id(frame)] = frame
        depth = 0
        while frame is not None:
            code = frame.f_code
            depth += bool(
                code.co_flags & inspect.CO_COROUTINE and code.co_filename.startswith(PACKAGE)
            )
            frame = frame.f_back
        self.deepest = max(self.deepest, depth)


async def trace_one_request():
    server = await asyncio.start_server(answer_each, "127.0.0.1", 0)
    app = make_app(server.sockets[0].getsockname()[1])
    for _ in range(3):
        await ask(app)
    path = CallPath()
    sys.setprofile(path)
    try:
        await ask(app)
    finally:
        sys.setprofile(None)
    await app.handler.gateway.runtime.close(await app.handler.gateway.runtime.get())
    server.close()
    return path


def test_the_simple_warm_request_is_short():
    path = asyncio.run(trace_one_request())
    files = {frame.partition(":")[0] for frame in path.frames}

    assert len(path.frames) <= MOST_FRAMES, "\n".join(path.frames)
    assert len(files) <= MOST_FILES, sorted(files)
    assert path.deepest <= DEEPEST
