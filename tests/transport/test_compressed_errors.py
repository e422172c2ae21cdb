"""Tests that a compressed error response keeps its status and its message, in every transport."""

# The plugin of anyio reads `anyio_backend`.
# ruff: noqa: ARG001

import gzip
import json
import threading
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from embedroute.backend import UpstreamRequest
from embedroute.errors import (
    InvalidUpstreamResponse,
    QuotaExhausted,
    RateLimited,
    Rejected,
    RejectedByPage,
    UpstreamAuthError,
    UpstreamModelNotFound,
    UpstreamUnavailable,
)
from embedroute.transport import DEFAULT_CONFIG, ExchangeLimits
from embedroute.transport.base import LARGEST_DECOMPRESSED, decompress_error_body
from embedroute.transport.http1.pool import Http1Transport
from embedroute.transport.httpx2 import Httpx2Transport
from embedroute.upstream_errors import classify_response

TRANSPORTS = {
    "httpx2": lambda: Httpx2Transport(None, DEFAULT_CONFIG),
    "http1": lambda: Http1Transport(DEFAULT_CONFIG),
}
transports = pytest.mark.parametrize(
    ("anyio_backend", "name"), [("asyncio", "httpx2"), ("trio", "httpx2"), ("asyncio", "http1")]
)

ERROR = json.dumps({"error": {"message": "Rate limit exceeded", "type": "rate"}}).encode()


def raw_deflate(content):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


BODIES = {
    "gzip": ("gzip", gzip.compress(ERROR, mtime=0)),
    "x-gzip": ("x-gzip", gzip.compress(ERROR, mtime=0)),
    "deflate": ("deflate", zlib.compress(ERROR)),
    "raw deflate": ("deflate", raw_deflate(ERROR)),
    "upper case": ("GZIP", gzip.compress(ERROR, mtime=0)),
    "identity": ("identity", ERROR),
}


@contextmanager
def serve(status, encoding, content):
    """Serve one response to every request."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-encoding", encoding)
            self.send_header("retry-after", "2")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


async def send(name, url, largest=100_000):
    engine = TRANSPORTS[name]()
    try:
        return await engine.send(
            UpstreamRequest.json(url, {"input": ["a"]}), 5.0, ExchangeLimits(largest)
        )
    finally:
        await engine.aclose()


@transports
@pytest.mark.parametrize("body", BODIES)
async def test_reads_a_compressed_error(anyio_backend, name, body):
    with serve(429, *BODIES[body]) as url:
        response = await send(name, url)

    found = classify_response(response.status, response.headers, response.content)
    assert (RateLimited, 2) == (type(found), found.retry_after)
    assert found.message == "The upstream answered 429: Rate limit exceeded"


@transports
@pytest.mark.parametrize(
    ("encoding", "content"),
    [("br", b"\x0b\x02\x80"), ("gzip", b"no gzip"), ("gzip, gzip", gzip.compress(ERROR, mtime=0))],
)
async def test_keeps_the_status_of_an_error_that_it_cannot_decompress(
    anyio_backend, name, encoding, content
):
    with serve(403, encoding, content) as url:
        response = await send(name, url)

    found = classify_response(response.status, response.headers, response.content)
    assert (403, RejectedByPage) == (response.status, type(found))


UNREADABLE = {
    401: UpstreamAuthError,
    402: QuotaExhausted,
    404: UpstreamModelNotFound,
    413: RejectedByPage,
    429: RateLimited,
    500: UpstreamUnavailable,
    503: UpstreamUnavailable,
}


@transports
@pytest.mark.parametrize("status", UNREADABLE)
@pytest.mark.parametrize("encoding", ["br", "zstd"])
async def test_judges_an_unreadable_error_by_its_status_and_headers(
    anyio_backend, name, status, encoding
):
    with serve(status, encoding, b"\x28\xb5\x2f\xfd\x04\x00") as url:
        response = await send(name, url)

    found = classify_response(response.status, response.headers, response.content)
    assert (UNREADABLE[status], 2) == (type(found), found.retry_after)
    assert found.message == f"The upstream answered {status}."


@transports
async def test_rejects_a_compressed_success(anyio_backend, name):
    with (
        serve(200, "gzip", gzip.compress(b'{"data": []}', mtime=0)) as url,
        pytest.raises(InvalidUpstreamResponse, match="compressed"),
    ):
        await send(name, url)


@transports
async def test_expands_a_gzip_bomb_only_in_part(anyio_backend, name):
    bomb = gzip.compress(b"x" * (64 << 20), mtime=0)
    with serve(400, "gzip", bomb) as url:
        response = await send(name, url)

    assert b"x" * LARGEST_DECOMPRESSED == response.content
    found = classify_response(response.status, response.headers, response.content)
    assert type(found) is Rejected


def test_reads_the_start_of_a_truncated_body():
    content = gzip.compress(bytes(range(256)) * 100)

    assert decompress_error_body("gzip", content[:-20]).startswith(bytes(range(256)))


def test_does_not_change_a_body_without_an_encoding():
    assert decompress_error_body(None, ERROR) == ERROR
    assert decompress_error_body("", b"") == b""
