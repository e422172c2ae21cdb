"""A raw ASGI client: header order and duplicates, raw paths and piecemeal bodies as no HTTP client would send them."""

import json
import time
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote

import anyio


class Answer(NamedTuple):
    """What an application answered; ``taken`` counts the bytes of the body that it asked for.

    ``seconds`` is how long that took, ``busy`` for how many of them this thread, which is the loop's, had the CPU.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    taken: int
    seconds: float
    busy: float

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]

    def header(self, name):
        return next((value.decode() for held, value in self.headers if held == name.encode()), None)


async def call(
    app,
    method: str,
    target: str,
    headers=(),
    pieces: Iterable[bytes] = (b"",),
    *,
    pause=0.0,
    **scope,
) -> Answer:
    """Send one request; ``pause`` is seconds before each piece of the body, ``scope`` adds to the ASGI scope."""
    raw, _, query = target.partition("?")
    whole = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw),
        "raw_path": raw.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        **scope,
    }
    left, ended, taken = iter(pieces), [], 0

    async def receive():
        nonlocal taken
        await anyio.sleep(pause)
        piece = next(left, None)
        if piece is None and ended:
            await anyio.sleep_forever()
        if piece is None:
            ended.append(True)
        taken += len(piece or b"")
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    messages = []

    async def send(message):
        messages.append(message)

    began, worked = time.perf_counter(), time.thread_time()
    await app(whole, receive, send)
    took, busy = time.perf_counter() - began, time.thread_time() - worked
    start, *rest = messages
    body = b"".join(message.get("body", b"") for message in rest)
    return Answer(start["status"], list(start["headers"]), body, taken, took, busy)
