"""Tests of HTTP/2 with the httpx2 transport: reuse, surplus responses and cancellation."""

import asyncio
import logging
import socket
import ssl
import threading
from base64 import b64encode
from contextlib import contextmanager

import anyio
import anyio.to_thread
import httpx2
import pytest
from hypercorn.asyncio import serve
from hypercorn.config import Config

from embedroute.backend import Secret, UpstreamRequest
from embedroute.errors import (
    InvalidUpstreamResponse,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.transport import ExchangeLimits, TransportConfig
from embedroute.transport.httpx2 import Httpx2Transport
from tests.fault_upstream import Upstream, vectors_of
from tests.support.http2_upstream import Http2Upstream
from tests.support.slow import thorough_unless
from tests.support.tls import certified
from tests.support.wait import until_on_loop

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A directory with ``cert.pem`` and ``key.pem`` for localhost."""
    place = tmp_path_factory.mktemp("tls")
    certified(place)
    return place


@pytest.fixture
def lying(tls):
    """Return a function that starts an upstream with a kind of surplus."""

    def make(surplus="", delay=0.0):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls / "cert.pem", tls / "key.pem")
        return str(tls / "cert.pem"), Http2Upstream(context, surplus, delay)

    return make


def transport_for(cert):
    return Httpx2Transport(None, TransportConfig(ca_file=str(cert), http2=True))


def ask(url, text="text", **headers):
    return UpstreamRequest.json(
        f"{url}/embeddings", {"input": [text]}, bearer=Secret("sk-1"), headers=headers
    )


def vector(reply):
    return reply.json()["data"][0]["embedding"]


def expected(text):
    return vectors_of([text])[0].tolist()


class Hypercorn:
    """A real server in a thread. ``scopes`` records its requests."""

    def __init__(self, tls, protocols, idle=5.0):
        self.scopes = []
        self.config = Config()
        self.config.keep_alive_timeout = idle
        self.config.certfile, self.config.keyfile = str(tls / "cert.pem"), str(tls / "key.pem")
        self.config.alpn_protocols = protocols
        self.config.loglevel = "WARNING"

    async def app(self, scope, receive, send):
        if scope["type"] != "http":
            return
        self.scopes.append(scope)
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 100_000})

    async def __aenter__(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://localhost:{listener.getsockname()[1]}/v1"
        self.config.bind = [f"fd://{listener.detach()}"]  # hypercorn closes it
        self.ready = threading.Event()
        self.thread = threading.Thread(target=asyncio.run, args=(self.serve(),), daemon=True)
        self.thread.start()
        self.ready.wait()
        return self

    async def serve(self):
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        self.ready.set()
        await serve(self.app, self.config, shutdown_trigger=self.stop.wait)

    async def __aexit__(self, *_):
        self.loop.call_soon_threadsafe(self.stop.set)
        await anyio.to_thread.run_sync(
            self.thread.join
        )  # the client's loop has to close its sockets meanwhile


async def test_keeps_an_http2_connection(tls):
    """The header ``connection: close``, which HTTP/2 does not have, is not sent."""
    async with Hypercorn(tls, ["h2", "http/1.1"]) as server:
        transport = transport_for(tls / "cert.pem")
        for _ in range(5):
            assert (await transport.send(ask(server.url), 10.0)).status == 200
        await transport.aclose()

    assert ["2"] * 5 == [scope["http_version"] for scope in server.scopes]
    assert len({scope["client"] for scope in server.scopes}) == 1
    assert [None] * 5 == [dict(scope["headers"]).get(b"connection") for scope in server.scopes]


async def test_uses_an_http1_connection_once(tls):
    async with Hypercorn(tls, ["http/1.1"]) as server:
        transport = transport_for(tls / "cert.pem")
        for _ in range(3):
            assert (await transport.send(ask(server.url), 10.0)).status == 200
        await transport.aclose()

    assert ["1.1"] * 3 == [scope["http_version"] for scope in server.scopes]
    assert len({scope["client"] for scope in server.scopes}) == 3
    assert [b"close"] * 3 == [dict(scope["headers"]).get(b"connection") for scope in server.scopes]


async def test_does_not_offer_http2_by_default(tls):
    async with Hypercorn(tls, ["h2", "http/1.1"]) as server:
        transport = Httpx2Transport(None, TransportConfig(ca_file=str(tls / "cert.pem")))
        await transport.send(ask(server.url), 10.0)
        await transport.aclose()

    assert ["1.1"] == [scope["http_version"] for scope in server.scopes]


async def test_concurrent_exchanges_do_not_share_a_connection(lying):
    cert, upstream = lying(delay=0.05)
    with upstream:
        transport = transport_for(cert)
        for _ in range(2):
            async with anyio.create_task_group() as group:
                for number in range(8):
                    group.start_soon(transport.send, ask(upstream.url, f"text {number}"), 10.0)
        await transport.aclose()

    assert (16, 8) == (upstream.requests, upstream.connections)


@pytest.mark.parametrize("callers", thorough_unless((4).__eq__, [1, 4, 16]))
@pytest.mark.parametrize("surplus", ["late", "at_once", "ahead"])
async def test_a_surplus_response_is_never_taken_for_another_response(lying, surplus, callers):
    cert, upstream = lying(surplus, delay=0.01)
    texts = iter([f"text {number}" for number in range(24)])
    right, wrong = [], []
    with upstream:
        transport = transport_for(cert)

        async def call():
            for text in texts:
                try:
                    reply = await transport.send(ask(upstream.url, text), 10.0)
                except UpstreamError:
                    continue
                (right if vector(reply) == expected(text) else wrong).append(text)

        async with anyio.create_task_group() as group:
            for _ in range(callers):
                group.start_soon(call)
        await transport.aclose()

    assert wrong == []
    assert (
        right or surplus != "late"
    )  # frames that follow at once violate the protocol, so the response is rejected
    assert upstream.requests == 24


async def test_never_sends_a_cookie_back(lying):
    cert, upstream = lying()
    with upstream:
        transport = transport_for(cert)
        for _ in range(3):
            await transport.send(ask(upstream.url), 10.0)
        await transport.aclose()

    assert [None] * 3 == [headers.get(b"cookie") for headers in upstream.headers]


@pytest.mark.parametrize("given_up", ["cancelled", "timed out"])
async def test_cancelling_a_request_closes_only_its_connection(lying, given_up):
    cert, upstream = lying()
    with upstream:
        transport = transport_for(cert)
        await transport.send(ask(upstream.url), 10.0)
        upstream.delay = 1.0
        replies = []

        async def patient():
            replies.append(await transport.send(ask(upstream.url, "patient"), 10.0))

        async with anyio.create_task_group() as group:
            group.start_soon(patient)
            await until_on_loop(lambda: upstream.requests == 2)
            if given_up == "cancelled":
                with anyio.move_on_after(0.2):
                    await transport.send(ask(upstream.url), 10.0)
            else:
                with pytest.raises(UpstreamTimeout):
                    await transport.send(ask(upstream.url), 0.2)
            await until_on_loop(lambda: len(upstream.open) == 1)
            assert replies == []

        assert expected("patient") == vector(replies[0])
        await transport.aclose()
        await until_on_loop(lambda: not upstream.open)


async def test_does_not_reuse_a_closed_connection(tls):
    for _ in range(2):
        async with Hypercorn(tls, ["h2"], idle=0.1) as server:
            transport = transport_for(tls / "cert.pem")
            for _ in range(3):
                assert (await transport.send(ask(server.url), 10.0)).status == 200
                await anyio.sleep(0.4)
            await transport.aclose()

        assert len({scope["client"] for scope in server.scopes}) == 3


async def test_rejects_a_large_body_while_reading_it(tls):
    async with Hypercorn(tls, ["h2"], idle=60.0) as server:
        transport = transport_for(tls / "cert.pem")
        with (
            anyio.fail_after(20),
            pytest.raises(InvalidUpstreamResponse, match="larger than 99999 bytes"),
        ):
            await transport.send(ask(server.url), 60.0, ExchangeLimits(largest=99_999))
        reply = await transport.send(ask(server.url), 10.0, ExchangeLimits(largest=100_000))
        await transport.aclose()

    assert len(reply.content) == 100_000
    assert len({scope["client"] for scope in server.scopes}) == 2


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\0"])
async def test_rejects_a_header_with_a_line_break(lying, value):
    """A proxy that forwards it as HTTP/1.1 would end the header there."""
    cert, upstream = lying()
    with upstream:
        transport = transport_for(cert)
        with pytest.raises(UpstreamUnavailable, match="line break"):
            await transport.send(ask(upstream.url, **{"x-one": value}), 10.0)
        await transport.aclose()

    assert upstream.headers == []


# Logs.

CANARY = "canary/s3cret"
SHOWN = {CANARY, "canary%2Fs3cret", b64encode(b"me:canary/s3cret").decode()}
"""How a log could show the password or the key."""


@contextmanager
def everything_logged():
    """Collect the records of all loggers in this thread, from DEBUG upwards."""
    lines, ours = [], threading.get_ident()

    class Collect(logging.Handler):
        def emit(self, record):
            if record.thread == threading.get_ident() == ours:
                lines.append(self.format(record))

    root, handler = logging.getLogger(), Collect()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


def request_with_canaries(url, **headers):
    url = f"{url}/embeddings?key=canary%2Fs3cret".replace("//", "//me:canary%2Fs3cret@", 1)
    return UpstreamRequest(url=url, content=b'{"input": ["a"]}', headers=headers)


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": Secret(f"Bearer {CANARY}")}, {"api-key": Secret(CANARY)}]
)
@pytest.mark.parametrize("protocol", ["http", "https", "http2"])
async def test_no_log_record_contains_a_key_or_the_password_of_a_url(lying, tls, protocol, headers):
    cert, upstream = lying()
    with Upstream() as plain, upstream:
        async with Hypercorn(tls, ["http/1.1"]) as server:
            url, trusted = {
                "http": (plain.url, tls / "cert.pem"),
                "https": (server.url, tls / "cert.pem"),
                "http2": (upstream.url, cert),
            }[protocol]
            transport = transport_for(trusted)
            with everything_logged() as lines:
                for _ in range(2):
                    reply = await transport.send(request_with_canaries(url, **headers), 10.0)
                    assert reply.status == 200
            await transport.aclose()

    assert [line for line in lines if "connect_tcp.complete" in line]
    assert [] == [
        line for line in lines if any(word in line for word in SHOWN) or "Encoded header" in line
    ]


async def test_no_log_record_contains_the_password_of_a_url_with_a_client_of_the_host():
    with Upstream() as upstream, everything_logged() as lines:
        async with httpx2.AsyncClient(trust_env=False) as own:
            url = f"{upstream.url}/embeddings".replace("//", "//me:canary%2Fs3cret@", 1)
            await Httpx2Transport(own).send(
                UpstreamRequest(url=url, content=b"{}", headers={}), 10.0
            )

    assert [line for line in lines if "HTTP Request: POST http://127.0.0.1" in line]
    assert [] == [line for line in lines if any(word in line for word in SHOWN)]


async def test_hpack_still_logs_the_headers_of_other_clients(lying):
    cert, upstream = lying()
    context = httpx2.create_ssl_context(verify=ssl.create_default_context(cafile=cert))
    with upstream, everything_logged() as lines:
        transport = transport_for(cert)
        await transport.send(ask(upstream.url), 10.0)
        before = len([line for line in lines if "Encoded header" in line])
        async with httpx2.AsyncClient(http2=True, trust_env=False, verify=context) as own:
            await own.post(f"{upstream.url}/embeddings", json={"input": ["a"]})
        await transport.aclose()

    assert before == 0
    assert [line for line in lines if "Encoded header" in line]
