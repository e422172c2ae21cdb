"""Times what a host waits for: import, building the gateway, the first request and the next, in-process over ASGI.

Run as `python -X importtime -m benchmarks.first_request MODEL` with `BENCH_CONFIG`; prints JSON, in ms. `MARK` on stderr
parts the modules that were imported before the first request from those it imports.
"""

import asyncio
import json
import os
import sys
import time

from benchmarks.configs import KEY

MARK = "== first request"


def since(moment: float) -> float:
    return (time.perf_counter() - moment) * 1000


async def ask(app, model: str) -> float:
    """Send one request into the app; ms until it returns."""
    body = json.dumps({"model": model, "input": "a text", "encoding_format": "base64"}).encode()
    headers = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {KEY}".encode())]
    path = "/v1/embeddings"
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "root_path": "",
    }
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}
    scope |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}
    messages, sent = asyncio.Queue(), []
    messages.put_nowait({"type": "http.request", "body": body, "more_body": False})

    async def send(message) -> None:
        sent.append(message)

    began = time.perf_counter()
    await app(scope, messages.get, send)
    if sent[0]["status"] != 200:
        raise SystemExit(str(sent))
    return since(began)


async def requests(app, model: str) -> list[float]:
    return [await ask(app, model) for _ in range(2)]


def main() -> None:
    began = time.perf_counter()
    import embedroute  # noqa: PLC0415

    imported = time.perf_counter()
    app = embedroute.embeddings_app(embedroute.Gateway.from_file(os.environ["BENCH_CONFIG"]))
    built = time.perf_counter()
    print(MARK, file=sys.stderr, flush=True)
    first, second = asyncio.run(requests(app, sys.argv[1]))
    times = {"import": imported - began, "build": built - imported}
    print(
        json.dumps(
            {name: 1000 * seconds for name, seconds in times.items()}
            | {"first": first, "second": second}
        )
    )


if __name__ == "__main__":
    main()
