"""A raw ASGI client that can send what HTTP clients do not.

It controls the order and duplicates of headers, raw paths, and the pieces of the body.
"""

import json
import time
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote

import anyio

from tests.support.elapsed import Elapsed, measured


class Answer(NamedTuple):
    """The response of an application.

    ``taken`` is the number of bytes of the request body that the application received. ``elapsed``
    is the duration, and ``busy`` the CPU time of this thread, which runs the event loop.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    taken: int
    elapsed: Elapsed
    busy: float

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]

    def header(self, name):
        values = (value for header, value in self.headers if header == name.encode())
        return next((value.decode() for value in values), None)


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
    """Send a request. ``pause`` is seconds before each piece; ``scope`` extends the ASGI scope."""
    raw, _, query = target.partition("?")
    full_scope = {
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
    remaining = iter(pieces)
    ended = []
    taken = 0

    async def receive():
        nonlocal taken
        await anyio.sleep(pause)
        piece = next(remaining, None)
        if piece is None and ended:
            await anyio.sleep_forever()
        if piece is None:
            ended.append(True)
        taken += len(piece or b"")
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    messages = []

    async def send(message):
        messages.append(message)

    worked = time.thread_time()
    async with measured() as elapsed:
        await app(full_scope, receive, send)
    busy = time.thread_time() - worked
    start, *rest = messages
    body = b"".join(message.get("body", b"") for message in rest)
    return Answer(start["status"], list(start["headers"]), body, taken, elapsed, busy)
