"""Count the instructions of one simple warm request in process, by callgrind (needs valgrind).

Usage: python -m benchmarks.instructions

The request has an API key and one text, and asks for base64. The cache is off, and a stub
replaces the transport. Two runs of different length are compared, so that neither the start nor the
imports count. Runs on one machine differ by about 1 %.
"""

import asyncio
import base64
import gc
import json
import os
import re
import subprocess
import sys

import numpy as np
import uvloop

from embedroute import ApiKey, Config, Gateway, Model, Provider, embeddings_app
from embedroute.backend import Secret, UpstreamResponse

KEY = "a-key-of-sixteen-characters"
FEW, MANY = 100, 500
VECTOR = base64.b64encode(np.full(8, 8**-0.5, "<f4").tobytes()).decode()
ANSWER = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": VECTOR}],
    "model": "m",
    "usage": {"prompt_tokens": 2, "total_tokens": 2},
}
BODY = json.dumps({"model": "m", "input": "hello world", "encoding_format": "base64"}).encode()
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "POST",
    "path": "/v1/embeddings",
    "raw_path": b"/v1/embeddings",
    "query_string": b"",
    "root_path": "",
    "scheme": "http",
    "headers": [
        (b"host", b"gateway"),
        (b"authorization", b"Bearer " + KEY.encode()),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(BODY)),
        (b"accept", b"*/*"),
        (b"user-agent", b"bench"),
    ],
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 8000),
}


class StubTransport:
    """Answers every request at once with the same vector."""

    name = "stub"
    content = json.dumps(ANSWER).encode()

    async def send(self, *_request):
        return UpstreamResponse(200, {"content-type": "application/json"}, self.content)

    async def aclose(self):
        pass


def make_app():
    config = Config(
        gateway={"auth": "keys"},
        keys={"team": ApiKey(key=Secret(KEY))},
        cache={"bytes": 0},
        providers={"openai": Provider(backend="openai", options={"api_key": "sk-upstream"})},
        models={"m": Model(dimensions=8, endpoints=[{"provider": "openai"}])},
    )
    return embeddings_app(Gateway(config, environ={}, transport=StubTransport))


async def send_requests(count):
    app = make_app()
    for _ in range(count):
        await send_request(app)


async def send_request(app):
    received, sent = [], []

    async def receive():
        if received:
            await asyncio.get_running_loop().create_future()
        received.append(True)
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message):
        sent.append(message)

    await app(SCOPE, receive, send)
    if sent[0]["status"] != 200:
        raise RuntimeError(sent)


def count_instructions(requests):
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command += [sys.executable, "-m", "benchmarks.instructions", str(requests)]
    environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    run = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return int(re.search(r"refs:\s+([\d,]+)", run.stderr)[1].replace(",", ""))


def main():
    if len(sys.argv) > 1:
        gc.disable()
        uvloop.run(send_requests(int(sys.argv[1])))
        return
    per_request = (count_instructions(MANY) - count_instructions(FEW)) / (MANY - FEW)
    print(f"{per_request:,.0f} instructions a request")


if __name__ == "__main__":
    main()
