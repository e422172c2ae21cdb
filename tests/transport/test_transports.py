"""Tests of every transport against the same upstreams: requests, limits, errors and cleanup."""

# The plugin of anyio reads `anyio_backend`.
# ruff: noqa: ARG001

import gc
import http.cookiejar
import os
import random
import re
import socket
import ssl
import subprocess
import sys
import threading
import tracemalloc
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import httpx2
import msgspec
import numpy as np
import pytest

from embedroute.backend import Batch, Secret, UpstreamRequest
from embedroute.backends.openai import OpenAI
from embedroute.errors import (
    ConnectError,
    InvalidUpstreamResponse,
    PoolTimeout,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.transport import DEFAULT_CONFIG, ExchangeLimits, TransportConfig
from embedroute.transport.http1.pool import Http1Transport
from embedroute.transport.httpx2 import Httpx2Transport
from tests.fault_upstream import MODES, Upstream, vectors_of
from tests.support.empty_objects import EmptyObjectServer
from tests.support.slow import thorough_unless
from tests.support.wait import until_on_loop

TRANSPORTS = {"httpx2": lambda connect: Httpx2Transport(None, connect), "http1": Http1Transport}
RUNS = [("asyncio", "httpx2"), ("trio", "httpx2"), ("asyncio", "http1")]
transports = pytest.mark.parametrize(("anyio_backend", "name"), RUNS)
only_httpx2 = pytest.mark.parametrize(
    ("anyio_backend", "name"), [run for run in RUNS if run[1] == "httpx2"]
)
only_http1 = pytest.mark.parametrize(
    ("anyio_backend", "name"), [run for run in RUNS if run[1] == "http1"]
)

DEAD = "http://127.0.0.1:9/v1"


@pytest.fixture(scope="module")
def shared():
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(shared):
    shared.mode, shared.delay = "honest", 0.0
    shared.requests.clear()
    return shared


def first_row(reply):
    return np.array(reply.json()["data"][0]["embedding"], "<f4")


class TransportClient:
    """A transport that ``async with`` opens and closes."""

    def __init__(self, name, connect=DEFAULT_CONFIG):
        self.transport = TRANSPORTS[name](connect)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.transport.aclose()

    async def send(self, url, texts=("text",), timeout=5.0, **headers):
        body = {"model": "m", "input": list(texts)}
        return await self.transport.send(
            UpstreamRequest.json(f"{url}/embeddings", body, bearer=Secret("sk-1"), headers=headers),
            timeout,
        )

    async def meet(self, upstream):
        """Do the first exchange, and wait until its connection can be reused."""
        mode, upstream.mode = upstream.mode, "honest"
        await self.send(upstream.url)
        await anyio.sleep(0.1)
        upstream.mode = mode
        upstream.requests.clear()


@transports
async def test_sends_the_request_that_was_built(anyio_backend, name, upstream):
    async with TransportClient(name) as client:
        for _ in range(2):
            reply = await client.send(upstream.url, **{"x-one": "1", "x-two": Secret("two")})

    assert reply.status == 200
    assert reply.headers["content-type"] == reply.headers["Content-Type"] == "application/json"
    assert len(reply.json()["data"]) == 1
    for ask in upstream.requests:
        assert ask.json == {"model": "m", "input": ["text"]}
        sent = {
            name: ask.headers.get(name)
            for name in ("authorization", "accept", "accept-encoding", "x-one", "x-two", "cookie")
        }
        assert sent == {
            "authorization": "Bearer sk-1",
            "accept": "application/json",
            "accept-encoding": "identity",
            "x-one": "1",
            "x-two": "two",
            "cookie": None,
        }


@transports
async def test_a_header_of_the_backend_replaces_the_default(anyio_backend, name, upstream):
    """This ignores case, and applies to the credentials of the URL too."""
    url = f"{upstream.url}/embeddings".replace("//", "//me:p%40ss@", 1)
    async with TransportClient(name) as client:
        for headers in ({"Accept": "a/b", "Authorization": "Bearer x"}, {}):
            await client.transport.send(
                UpstreamRequest(url=url, content=b"{}", headers=headers), 5.0
            )

    assert ["a/b", "application/json"] == [ask.headers["accept"] for ask in upstream.requests]
    assert ["Bearer x", "Basic bWU6cEBzcw=="] == [
        ask.headers["authorization"] for ask in upstream.requests
    ]


@transports
@pytest.mark.parametrize(
    "header",
    [
        *("Content-Length", "connection", "content-length", "keep-alive", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    ],
)
async def test_rejects_framing_headers(anyio_backend, name, upstream, header):
    async with TransportClient(name) as client:
        with pytest.raises(UpstreamUnavailable, match="sets itself"):
            await client.send(upstream.url, **{header: "0"})

    assert not upstream.requests


@only_http1
async def test_reuses_connections(anyio_backend, name, upstream):
    async with TransportClient(name) as client:
        await client.meet(upstream)
        before = upstream.connections
        for _ in range(5):
            await anyio.sleep(0.07)  # until the connection has been silent long enough
            await client.send(upstream.url)

    assert upstream.connections - before <= 1


@only_httpx2
async def test_httpx2_uses_a_connection_once_and_sends_connection_close(
    anyio_backend, name, upstream
):
    """Httpx2 offers no way to check that a kept connection is silent."""
    before = upstream.connections
    async with TransportClient(name) as client:
        for _ in range(5):
            await client.send(upstream.url)

    assert upstream.connections - before == 5
    assert ["close"] * 5 == [ask.headers.get("connection") for ask in upstream.requests]


@transports
async def test_never_sends_a_cookie_back(anyio_backend, name, upstream):
    upstream.mode = "sets_cookie"
    async with TransportClient(name) as client:
        for _ in range(4):
            await client.send(upstream.url)

    assert [None] * 4 == [ask.headers.get("cookie") for ask in upstream.requests]


@pytest.mark.anyio
async def test_a_client_of_the_host_stores_no_cookies_if_made_as_documented(upstream):
    document = (Path(__file__).parents[2] / "docs" / "transports.md").read_text(encoding="utf-8")
    [expression] = re.findall(r"`(httpx2\.AsyncClient\(cookies=.*)`", document)
    client = eval(expression, {"httpx2": httpx2, "http": http})  # noqa: S307 - our own document
    upstream.mode = "sets_cookie"
    request = UpstreamRequest.json(f"{upstream.url}/embeddings", {"model": "m", "input": ["text"]})
    async with client:
        for _ in range(4):
            await Httpx2Transport(client).send(request, 5.0)

    assert [None] * 4 == [ask.headers.get("cookie") for ask in upstream.requests]
    assert not client.cookies


@transports
@pytest.mark.parametrize(
    ("mode", "status"),
    [("redirect", 307), ("redirect_302", 302), ("status_401", 401), ("empty_500", 500)],
)
async def test_returns_any_status_unchanged(anyio_backend, name, upstream, mode, status):
    """A redirect is not followed: it would send body and key to another host."""
    async with TransportClient(name) as client:
        await client.meet(upstream)
        upstream.mode = mode
        assert (await client.send(upstream.url)).status == status

    assert upstream.followed == []


FAILURES = {
    "gzip": InvalidUpstreamResponse,
    "gzip_label": InvalidUpstreamResponse,
    "brotli_label": InvalidUpstreamResponse,
    "gzip_bomb": InvalidUpstreamResponse,
    "huge_body": InvalidUpstreamResponse,
    "huge_chunked": InvalidUpstreamResponse,
    "reset_before_headers": UpstreamUnavailable,
    "fin_before_headers": UpstreamUnavailable,
    "half_headers": UpstreamUnavailable,
    "half_body_reset": UpstreamUnavailable,
    "half_body_fin": UpstreamUnavailable,
    "chunked_truncated": UpstreamUnavailable,
    "bad_status_line": UpstreamUnavailable,
    "ssh_banner": UpstreamUnavailable,
    "bad_chunk_size": UpstreamUnavailable,
    "stalled": UpstreamTimeout,
    "stalled_body": UpstreamTimeout,
    "stalled_half_body": UpstreamTimeout,
    "never_ending": UpstreamTimeout,
    "one_xx_flood": UpstreamTimeout,
}


@transports
@pytest.mark.parametrize("met", thorough_unless(False.__eq__, [False, True]))
@pytest.mark.parametrize("mode", FAILURES)
async def test_maps_a_failed_exchange_to_an_error(anyio_backend, name, upstream, mode, met):
    async with TransportClient(name) as client:
        if met:
            await client.meet(upstream)
        upstream.mode = mode
        with anyio.fail_after(120), pytest.raises(UpstreamError) as caught:
            await client.send(
                upstream.url, timeout=0.4 if FAILURES[mode] is UpstreamTimeout else 60.0
            )

    assert FAILURES[mode] is caught.type


@transports
@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (DEAD, ConnectError),
        ("http://no-such-host.invalid/v1", ConnectError),
        ("https://{host}/v1", UpstreamError),
        ("ftp://{host}/v1", UpstreamError),
        ("http://127.0.0.1:99999/v1", UpstreamError),
        ("http://[::1/v1", UpstreamError),
        ("not a url", UpstreamError),
    ],
)
async def test_a_failed_connection_is_an_upstream_error(anyio_backend, name, upstream, url, kind):
    """A port without TLS, an unknown host or an invalid URL raises an ``UpstreamError``."""
    async with TransportClient(name) as client:
        with pytest.raises(kind) as caught:
            await client.send(
                url.format(host=f"127.0.0.1:{upstream.port}"),
                timeout=30.0 if kind is ConnectError else 1.0,
            )

    assert "sk-1" not in caught.value.message


@transports
@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ("Zürich", b"Z\xfcrich"),
        ("¿qué?", b"\xbfqu\xe9?"),
        ("a\x80ÿ", b"a\x80\xff"),
        ("\xa0b\x85", b"\xa0b\x85"),
        ("Z\xc3\xbcrich", b"Z\xc3\xbcrich"),
    ],
)
async def test_encodes_headers_as_latin_1(anyio_backend, name, upstream, value, encoded):
    """Both configured headers and keys. The last value is UTF-8 decoded as latin-1."""
    backend = OpenAI(
        base_url=upstream.url,
        api_key=Secret(value),
        extra_headers={"x-city": Secret(value)},
        project=value,
    )
    async with TransportClient(name) as client:
        reply = await client.transport.send(backend.build(Batch(model="m", texts=("text",))), 5.0)

    [ask] = upstream.requests
    sent = {
        name: ask.headers[name].encode("latin-1")
        for name in ("authorization", "x-city", "openai-project")
    }
    assert reply.status == 200
    assert {
        "authorization": b"Bearer " + encoded,
        "x-city": encoded,
        "openai-project": encoded,
    } == sent


@transports
async def test_an_invalid_header_is_an_upstream_error(anyio_backend, name, upstream):
    async with TransportClient(name) as client:
        for value in ("naïve ☃", "a\r\nb: c"):
            with pytest.raises(UpstreamUnavailable):
                await client.send(upstream.url, **{"x-one": value})

    assert [ask for ask in upstream.requests if "b" in ask.headers] == []


@transports
@pytest.mark.parametrize("mode", ["answers_twice", "answers_twice_later"])
async def test_a_surplus_response_is_never_taken_for_the_next_response(
    anyio_backend, name, upstream, mode
):
    """Each request gets its own vector or an error, if surplus comes at once or later."""
    upstream.mode = mode
    async with TransportClient(name) as client:
        for at in range(6):
            texts = [f"text {at}"]
            reply = await client.send(upstream.url, texts)
            assert first_row(reply).tolist() == vectors_of(texts)[0].tolist()


@only_http1
async def test_repeats_a_request_after_a_surplus_response_on_a_reused_connection(
    anyio_backend, name, upstream
):
    """The first response may belong to another request, so the request is sent again."""
    async with TransportClient(name) as client:
        await client.meet(upstream)
        upstream.mode = "answers_twice"
        with suppress(InvalidUpstreamResponse):
            reply = await client.send(upstream.url, ["one"])  # sent again on a new connection
            assert first_row(reply).tolist() == vectors_of(["one"])[0].tolist()
        for text in ("two", "three"):
            reply = await client.send(upstream.url, [text])
            assert first_row(reply).tolist() == vectors_of([text])[0].tolist()


@transports
async def test_cancelled_requests_release_their_connections(anyio_backend, name):
    rng = random.Random(7)
    with Upstream(remember=False) as upstream:
        async with TransportClient(name) as client:
            await client.meet(upstream)
            upstream.delay = 0.01

            async def leave():
                for _ in range(8):
                    with anyio.move_on_after(rng.random() * 0.02):
                        await client.send(upstream.url)

            async with anyio.create_task_group() as group:
                for _ in range(32):
                    group.start_soon(leave)
            await until_on_loop(lambda: upstream.in_flight == 0)
            upstream.delay = 0.0
            # Connections are accepted in order: when a new one is, so are those of the cancelled
            # requests.
            async with TransportClient(name) as another:
                await another.send(upstream.url)
            before = upstream.connections
            async with anyio.create_task_group() as group:
                for _ in range(64):
                    group.start_soon(client.send, upstream.url)
            assert upstream.connections - before <= 64
        await until_on_loop(lambda: not upstream.open)


@transports
async def test_cancelling_a_request_closes_its_connection_at_once(anyio_backend, name):
    with Upstream(remember=False) as upstream:
        async with TransportClient(name) as client:
            await client.meet(upstream)
            upstream.mode = "stalled"
            async with anyio.create_task_group() as group:
                group.start_soon(client.send, upstream.url)
                await until_on_loop(lambda: upstream.in_flight == 1)
                group.cancel_scope.cancel()

            assert await until_on_loop(lambda: upstream.in_flight == 0) < 0.25
            assert upstream.aborted == 1


HALF = 8 << 20


@contextmanager
def stalling():
    """The address of an upstream that sends half of its response."""
    lines = []

    def serve():
        with suppress(OSError):
            while True:
                lines.append(listening.accept()[0])
                lines[-1].recv(65536)
                with suppress(OSError):
                    lines[-1].sendall(
                        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (2 * HALF, bytes(HALF))
                    )

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
    for line in lines:
        line.close()


@transports
@pytest.mark.parametrize("left", [False, True])
async def test_an_error_does_not_keep_an_incomplete_body_in_memory(anyio_backend, name, left):
    """Code that stores the error would keep megabytes in memory."""
    failures = []
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        with stalling() as url:
            async with TransportClient(name) as client:
                for _ in range(2):
                    with anyio.move_on_after(0.4 if left else 5):
                        try:
                            await client.send(url, timeout=5.0 if left else 0.4)
                        except UpstreamError as error:
                            failures.append(error)
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()

    assert (0 if left else 2) == len(failures)
    assert HALF < most
    assert kept < HALF


# Proxies and TLS.


SCRIPT = """
import anyio
from embedroute.transport.httpx2 import Httpx2Transport
from embedroute.transport.http1.pool import Http1Transport
from embedroute.backend import UpstreamRequest

async def main():
    for make in (Httpx2Transport, Http1Transport):
        transport = make()
        for _ in range(2):
            print((await transport.send(UpstreamRequest.json({url!r}, {{"input": ["a"]}}), 5.0)).status)
        await transport.aclose()

anyio.run(main)
"""


def test_ignores_a_proxy_of_the_environment(upstream):
    """The proxy would receive the key."""
    names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    environ = {**os.environ, **dict.fromkeys(names, DEAD)}
    script = SCRIPT.format(url=f"{upstream.url}/embeddings")
    ran = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False
    )

    assert (ran.stdout, ran.stderr) == ("200\n" * 4, "")


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    """The URL of a TLS server with a certificate of a private CA, and the file of that CA."""
    place = tmp_path_factory.mktemp("tls")
    ca, cert, key = (str(place / name) for name in ("ca.pem", "cert.pem", "key.pem"))
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    root = [*new, "-subj", "/CN=our ca", "-keyout", str(place / "ca.key"), "-out", ca]
    leaf = [
        *new,
        "-subj",
        "/CN=localhost",
        "-CA",
        ca,
        "-CAkey",
        str(place / "ca.key"),
        "-keyout",
        key,
        "-out",
        cert,
    ]
    names = [
        "-addext",
        "subjectAltName=DNS:localhost",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ]
    for command in (root, [*leaf, *names]):
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own words
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = EmptyObjectServer()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    yield server.server_address[1], ca
    server.shutdown()
    thread.join()
    server.server_close()


@transports
@pytest.mark.parametrize(
    ("host", "trusting", "reached"),
    [("localhost", True, True), ("localhost", False, False), ("127.0.0.1", True, False)],
)
async def test_trusts_a_configured_ca_for_its_host_names(
    anyio_backend, name, private, host, trusting, reached
):
    port, ca = private
    async with TransportClient(name, TransportConfig(ca_file=ca if trusting else None)) as client:
        if reached:
            for _ in range(3):
                assert (await client.send(f"https://{host}:{port}/v1")).status == 200
        else:
            with pytest.raises(ConnectError):
                await client.send(f"https://{host}:{port}/v1")


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_uses_a_client_of_the_host_and_leaves_it_open(anyio_backend, upstream):
    async with httpx2.AsyncClient(headers={"x-host": "yes"}, trust_env=False) as own:
        transport = Httpx2Transport(own)
        reply = await transport.send(
            UpstreamRequest.json(f"{upstream.url}/embeddings", {"input": ["a"]}), 5.0
        )
        await transport.aclose()

        assert reply.status == 200
        assert upstream.requests[0].headers["x-host"] == "yes"
        assert not own.is_closed


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_client_of_the_host_decides_whether_connections_are_kept(anyio_backend, upstream):
    before = upstream.connections
    async with httpx2.AsyncClient(trust_env=False) as own:
        transport = Httpx2Transport(own)
        for _ in range(3):
            await transport.send(
                UpstreamRequest.json(f"{upstream.url}/embeddings", {"input": ["a"]}), 5.0
            )

    assert upstream.connections - before == 1
    assert ["keep-alive"] * 3 == [ask.headers["connection"] for ask in upstream.requests]


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_wait_for_a_connection_of_the_hosts_client_is_a_pool_timeout(
    anyio_backend, upstream
):
    upstream.mode = "stalled"
    request = UpstreamRequest.json(f"{upstream.url}/embeddings", {"input": ["a"]})
    limits = httpx2.Limits(max_connections=1)
    async with httpx2.AsyncClient(limits=limits, trust_env=False) as own:
        transport = Httpx2Transport(own)
        async with anyio.create_task_group() as group:
            group.start_soon(transport.send, request, 60.0)
            await until_on_loop(lambda: upstream.in_flight == 1)
            with pytest.raises(PoolTimeout, match="connections of the http_client were in use"):
                await transport.send(request, 0.5)
            group.cancel_scope.cancel()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("mode", ["huge_body", "huge_chunked"])
async def test_rejects_a_large_body_with_a_client_of_the_host(anyio_backend, upstream, mode):
    async with httpx2.AsyncClient(trust_env=False) as own:
        upstream.mode = mode
        with pytest.raises(InvalidUpstreamResponse):
            await Httpx2Transport(own).send(
                UpstreamRequest.json(f"{upstream.url}/embeddings", {"input": ["a"]}), 60.0
            )


@only_httpx2
@pytest.mark.parametrize("mode", ["honest", "chunked"])
async def test_rejects_a_body_over_the_limit(anyio_backend, name, upstream, mode):
    upstream.mode = mode
    request = UpstreamRequest.json(f"{upstream.url}/embeddings", {"input": ["a"]})
    async with TransportClient(name) as client:
        size = len((await client.transport.send(request, 5.0)).content)
        assert size == len(
            (await client.transport.send(request, 5.0, ExchangeLimits(largest=size))).content
        )
        with pytest.raises(InvalidUpstreamResponse, match=f"larger than {size - 1} bytes"):
            await client.transport.send(request, 5.0, ExchangeLimits(largest=size - 1))


def frames_of(error):
    """Return the frames in the tracebacks of an error and its causes, without those of tests."""
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            if "/tests/" not in trace.tb_frame.f_code.co_filename:
                yield trace.tb_frame
            trace = trace.tb_next
        error = error.__cause__ or error.__context__


@only_httpx2
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    "mode",
    ["gzip_label", "huge_body", "half_body_reset", "stalled", "unreachable", "framing", "snowman"],
)
async def test_tracebacks_of_errors_contain_no_key(anyio_backend, name, upstream, mode, own):
    """Error reporters print the local variables of every frame, also those of causes."""
    url = DEAD if mode == "unreachable" else upstream.url
    upstream.mode = mode if mode in MODES else "honest"
    headers = {"framing": {"content-length": "1"}, "snowman": {"x-one": "\N{SNOWMAN}"}}.get(
        mode, {}
    )
    request = UpstreamRequest.json(
        url, {"input": ["a"]}, bearer=Secret("sk-canary"), headers=headers
    )
    async with httpx2.AsyncClient(trust_env=False) as client:
        transport = Httpx2Transport(client if own else None)
        with pytest.raises(UpstreamError) as caught:
            await transport.send(msgspec.structs.replace(request, url=f"{url}/embeddings"), 0.5)
        await transport.aclose()

    assert [] == [frame for frame in frames_of(caught.value) if "sk-canary" in repr(frame.f_locals)]
