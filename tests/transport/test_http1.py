"""Tests of the ``http1`` transport: connection reuse, repeated requests, validation and cleanup."""

import asyncio
import gc
import json
import random
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from contextlib import suppress
from types import MappingProxyType

import anyio
import pytest

from embedroute import CacheSettings, Config, Endpoint, Gateway, Model, Provider, Settings
from embedroute.backend import Secret, SecretBytes, UpstreamRequest
from embedroute.errors import (
    ConnectError,
    InvalidUpstreamResponse,
    PoolTimeout,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.transport import LARGEST_HEAD, ExchangeLimits, TransportConfig
from embedroute.transport.http1.connection import Connection
from embedroute.transport.http1.pool import Http1Transport
from embedroute.transport.http1.request import parse_target, write_head
from tests.fault_upstream import Upstream, vectors_of
from tests.support.serving import SLOW
from tests.support.slow import thorough_unless
from tests.support.tls import certified
from tests.support.wait import until_on_loop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


def request(url, texts=("text",), **headers):
    return UpstreamRequest.json(url, {"input": list(texts)}, headers=headers)


class ScriptedServer:
    """A server that sends the nth of its ``answers`` to the nth request; None closes instead.

    Requests are counted over all connections.
    """

    def __init__(self, *answers, host="127.0.0.1", tls=None):
        self.tls = tls
        self.answers, self.host, self.heads, self.connections = list(answers), host, [], 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, self.host, 0, ssl=self.tls)
        port = self.server.sockets[0].getsockname()[1]
        self.url = (
            f"http://[{self.host}]:{port}/v1"
            if ":" in self.host
            else f"http://{self.host}:{port}/v1"
        )
        if self.tls:
            self.url = self.url.replace("http:", "https:")
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line[15:])
                    for line in head.split(b"\r\n")
                    if line.startswith(b"content-length")
                )
                self.heads.append(head)
                await reader.readexactly(length)
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                pieces = answer if isinstance(answer, list) else [answer]
                for piece in pieces:
                    if piece is None:
                        return
                    if isinstance(piece, float):
                        await asyncio.sleep(piece)
                    else:
                        writer.write(piece)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()


class ClosingServer:
    """A server that sends ``words`` on each connection and closes it.

    It runs in a separate thread, so that it is faster than the event loop.
    """

    def __init__(self, words, *, tls=None, listens=True):
        self.words, self.tls, self.listens, self.connections = words, tls, listens, 0

    def __enter__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'s' if self.tls else ''}://localhost:{self.socket.getsockname()[1]}/v1"
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()

    def serve(self):
        with suppress(OSError):
            while True:
                line, _ = self.socket.accept()
                self.connections += 1
                with (
                    suppress(OSError),
                    self.tls.wrap_socket(line, server_side=True) if self.tls else line as wrapped,
                ):
                    while self.listens and not wrapped.recv(1 << 16).endswith(b"}"):
                        pass
                    wrapped.sendall(self.words)


def read_request(connection):
    received = b""
    while not received.endswith(b"}"):
        received += connection.recv(65536)


def ok(body=b"{}", *headers, status=b"200 OK"):
    lines = [b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


class InspectableTransport(Http1Transport):
    """A transport that ``async with`` closes; ``open_count`` is the number of its open connections."""

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.aclose()

    @property
    def open_count(self):
        return sum(len(pool.open) for pool in self._pools.values())

    @property
    def alive(self):
        """Open connections without those that have ended and that the pool has yet to drop."""
        return sum(connection.alive for pool in self._pools.values() for connection in pool.open)

    @property
    def idle(self):
        return sum(len(pool.idle) for pool in self._pools.values())

    @property
    def in_use(self):
        return sum(pool.slots.in_use for pool in self._pools.values())

    @property
    def unreliable(self):
        return any(pool.unreliable for pool in self._pools.values())

    async def meet(self, url):
        """Send a request, and wait until its connection can be reused."""
        reply = await self.send(request(url), 5.0)
        await asyncio.sleep(0.07)
        return reply


UNRESTED = ExchangeLimits(rest=0.0)


async def error_of(sent):
    """Return the error of an exchange, or its response."""
    try:
        return await sent
    except UpstreamError as error:
        return error


ANSWERS = {
    "plain": (ok(b"{}"), 200, b"{}"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", 304, b""),
    "continue first": (b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"{}"), 200, b"{}"),
    "hints with a length": (
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + ok(b"[]"),
        200,
        b"[]",
    ),
    "chunked": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;a=b\r\n{\r\n1\r\n}\r\n0\r\ncontent-type: evil\r\nx: y\r\n\r\n",
        200,
        b"{}",
    ),
    "long, chunked, with a trailer": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n20000\r\n"
        + b"a" * 0x20000
        + b"\r\n0\r\nx: y\r\n\r\n",
        200,
        b"a" * 0x20000,
    ),
    "of two pieces": ([ok(b"ab")[:-1], 0.01, b"b"], 200, b"ab"),
    "of three pieces": ([ok(b"abc")[:-2], 0.01, b"b", 0.01, b"c"], 200, b"abc"),
    "until the end": ([b"HTTP/1.1 200 OK\r\n\r\n{}", None], 200, b"{}"),
    "HTTP/1.0": ([b"HTTP/1.0 200 OK\r\n\r\n{}", None], 200, b"{}"),
    "nothing until the end": ([b"HTTP/1.1 200 OK\r\n\r\n", None], 200, b""),
    "elsewhere": (
        ok(b"", b"location: http://127.0.0.1:9/", status=b"308 Permanent Redirect"),
        308,
        b"",
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_reads_a_body_in_every_framing(name):
    answer, status, body = ANSWERS[name]
    async with ScriptedServer(answer) as wire, InspectableTransport() as transport:
        for reply in [await transport.meet(wire.url), await transport.send(request(wire.url), 5.0)]:
            assert (status, body) == (reply.status, reply.content)
            assert reply.headers.get("content-type") is None

    assert 2 == len(wire.heads)
    assert (2 if isinstance(answer, list) and answer[-1] is None else 1) == wire.connections


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

REFUSED = {
    "a body in gzip": (ok(b"{}", b"content-encoding: gzip"), InvalidUpstreamResponse),
    "chunks in gzip": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        UpstreamUnavailable,
    ),
    "two lengths": (ok(b"{}", b"content-length: 3"), UpstreamUnavailable),
    "a length and chunks": (ok(b"{}", b"transfer-encoding: chunked"), UpstreamUnavailable),
    "a signed length": (b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\n{}", UpstreamUnavailable),
    "a length beyond all": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n{}",
        InvalidUpstreamResponse,
    ),
    "another protocol": (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\nabc",
        UpstreamUnavailable,
    ),
    "a head of many headers": (
        ok(b"{}", *(b"x-%d: %d" % (at, at) for at in range(20_000))),
        UpstreamUnavailable,
    ),
    "a head that does not end": (
        [b"HTTP/1.1 200 OK\r\nx: ", *[b"a" * 4096, 0.001] * 40],
        UpstreamUnavailable,
    ),
    "announcements without end": ([b"HTTP/1.1 102 Processing\r\n\r\n" * 5000], UpstreamUnavailable),
    "a body of status 099": (ok(b"{", status=b"099 Odd") + ok(b"}"), UpstreamUnavailable),
    "a body of status 000": (ok(b"{", status=b"000 Odd") + ok(b"}"), UpstreamUnavailable),
    "a body of status 199": (ok(b"{", status=b"199 Odd") + ok(b"}"), UpstreamUnavailable),
    "a body of status 199 without a length": (
        [b"HTTP/1.1 199 Odd\r\n\r\n{}", None],
        UpstreamUnavailable,
    ),
    "a body of status 199 like an answer": (
        ok(ok(), status=b"199 Odd") + ok(b"{}"),
        UpstreamUnavailable,
    ),
    "a body of status 103": (ok(b"{", status=b"103 Early Hints") + ok(b"}"), UpstreamUnavailable),
    "a status of four digits": (ok(status=b"2000 OK"), UpstreamUnavailable),
    "RTSP/1.0": (ok().replace(b"HTTP/1.1", b"RTSP/1.0"), UpstreamUnavailable),
    "RTSP/1.1": (ok().replace(b"HTTP/1.1", b"RTSP/1.1"), UpstreamUnavailable),
    "RTSP/1.1 in pieces": (
        [b"RT", 0.01, b"SP/1.1 200 O", 0.01, b"K\r\ncontent-length: 0\r\n", 0.01, b"\r\n"],
        UpstreamUnavailable,
    ),
    "RTSP/1.1 behind an announcement": (
        b"HTTP/1.1 100 Continue\r\n\r\n" + ok().replace(b"HTTP", b"RTSP"),
        UpstreamUnavailable,
    ),
    "an announcement of RTSP": (b"RTSP/1.1 100 Continue\r\n\r\n" + ok(), UpstreamUnavailable),
    "ICE/1.0": (ok().replace(b"HTTP/1.1", b"ICE/1.0"), UpstreamUnavailable),
    "HTTP/0.9": (ok().replace(b"HTTP/1.1", b"HTTP/0.9"), UpstreamUnavailable),
    "HTTP/2.0": (ok().replace(b"HTTP/1.1", b"HTTP/2.0"), UpstreamUnavailable),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", UpstreamUnavailable),
    "the frames of HTTP/2": (
        bytes.fromhex("00000c04000000000000030000006400040000ffff"),
        UpstreamUnavailable,
    ),
    "a body alone": ([b"{}", None], UpstreamUnavailable),
    "a NUL in the reason": (ok(status=b"200 O\0K"), UpstreamUnavailable),
    "a NUL in the reason behind an announcement": (
        [b"HTTP/1.1 100 Continue\r\n\r", 0.01, b"\n" + ok(status=b"200 \0")],
        UpstreamUnavailable,
    ),
    "a control character in the reason": (ok(status=b"200 O\x1b[2JK"), UpstreamUnavailable),
    "line breaks before the answer": (b"\r\n\r\n" + ok(), UpstreamUnavailable),
    "257 headers": (ok(b"{}", *(b"x-%d: %d" % (at, at) for at in range(256))), UpstreamUnavailable),
    "a head over the limit before many chunks": (
        CHUNKED[:-2]
        + b"x-long: %b\r\n\r\n" % (b"a" * LARGEST_HEAD)
        + b"1\r\n7\r\n" * 100
        + b"0\r\n\r\n",
        UpstreamUnavailable,
    ),
    "2 MB of trailers": (
        CHUNKED + b"2\r\n{}\r\n0\r\n" + b"x: 012345678901\r\n" * 125_000 + b"\r\n",
        UpstreamUnavailable,
    ),
    "a trailer that does not end": (
        [CHUNKED + b"2\r\n{}\r\n0\r\nx: ", *[b"a" * 4096, 0.001] * 40],
        UpstreamUnavailable,
    ),
    "2 MB of a chunk's extension": (
        CHUNKED + b"2;" + b"a" * 2_000_000 + b"\r\n{}\r\n0\r\n\r\n",
        UpstreamUnavailable,
    ),
    "extensions of 4 KB for each byte": (
        [CHUNKED, *[b"1;" + b"a" * 4096 + b"\r\na\r\n", 0.001] * 40],
        UpstreamUnavailable,
    ),
    "nothing": ([None], UpstreamUnavailable),
    "half a head": ([b"HTTP/1.1 200", None], UpstreamUnavailable),
    "half a body": ([ok(b"{}")[:-1], None], UpstreamUnavailable),
    "silence": ([3.0], UpstreamTimeout),
    "a drip": (
        [b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n", *[b"a", 0.02] * 100],
        UpstreamTimeout,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_rejects_an_incomplete_or_invalid_response(name):
    """Its connection is closed, too."""
    answer, kind = REFUSED[name]
    async with ScriptedServer(answer) as wire, InspectableTransport() as transport:
        with pytest.raises(UpstreamError) as caught:
            await transport.send(request(wire.url), 0.5 if kind is UpstreamTimeout else 30.0)

        assert 0 == transport.open_count
    assert kind is caught.type
    assert 1 == len(wire.heads)


SOUND = {
    "a reason in Latin-1": ok(status=b"200 D\xe9j\xe0 vu"),
    "no reason": ok(status=b"200"),
    "an empty reason": ok(status=b"200 "),
    "256 headers": ok(b"{}", *(b"x-%d: %d" % (at, at) for at in range(255))),
    "three announcements": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 104 X\r\n\r\n"
    + ok(),
    "an announcement cut in its end": [b"HTTP/1.1 100 Continue\r\n\r", 0.01, b"\n" + ok()],
    "chunks of one byte": CHUNKED + b"1\r\na\r\n" * 200_000 + b"0\r\n\r\n",
    "60 KB of trailers": CHUNKED + b"2\r\n{}\r\n0\r\n" + b"x: 0123456789\r\n" * 4000 + b"\r\n",
}


@pytest.mark.parametrize("name", SOUND)
async def test_reads_an_unusual_but_valid_response(name):
    async with ScriptedServer(SOUND[name]) as wire, InspectableTransport() as transport:
        assert 200 == (await transport.send(request(wire.url), 30.0)).status
        assert not transport.unreliable


LARGEST = ExchangeLimits(largest=100_000)
BODIES = {
    "a length": lambda status, body: ok(body, status=status),
    "chunks": lambda status, body: (
        b"HTTP/1.1 %b\r\ntransfer-encoding: chunked\r\n\r\n" % status
        + b"".join(
            b"%x\r\n%b\r\n" % (len(piece), piece)
            for piece in (body[at : at + 999] for at in range(0, len(body), 999))
        )
        + b"0\r\n\r\n"
    ),
    "the end": lambda status, body: [b"HTTP/1.1 %b\r\n\r\n" % status, body, None],
}


@pytest.mark.parametrize("framed", BODIES)
async def test_rejects_a_body_over_the_limit_of_the_exchange(framed):
    async with (
        ScriptedServer(
            *(BODIES[framed](b"200 OK", bytes(size)) for size in (100_000, 100_001))
        ) as wire,
        InspectableTransport() as transport,
    ):
        assert 100_000 == len((await transport.send(request(wire.url), 5.0, LARGEST)).content)
        with pytest.raises(InvalidUpstreamResponse, match="larger than 100000 bytes"):
            await transport.send(request(wire.url), 5.0, LARGEST)


async def test_rejects_a_declared_length_over_the_limit_at_once():
    async with (
        ScriptedServer([b"HTTP/1.1 200 OK\r\ncontent-length: 100001\r\n\r\n", 60.0]) as wire,
        InspectableTransport() as transport,
    ):
        with pytest.raises(InvalidUpstreamResponse, match="larger than 100000 bytes"):
            await transport.send(request(wire.url), 30.0, LARGEST)


@pytest.mark.parametrize("framed", BODIES)
async def test_an_error_body_may_exceed_the_limit_of_the_exchange(framed):
    """Some error messages repeat the whole request."""
    mib = 1024 * 1024
    answers = [BODIES[framed](b"422 Unprocessable Content", bytes(size)) for size in (mib, mib + 1)]
    async with ScriptedServer(*answers) as wire, InspectableTransport() as transport:
        assert mib == len((await transport.send(request(wire.url), 5.0, LARGEST)).content)
        with pytest.raises(InvalidUpstreamResponse, match="larger than 1048576 bytes"):
            await transport.send(request(wire.url), 5.0, LARGEST)


async def test_reuses_a_kept_connection():
    async with ScriptedServer(ok()) as wire, InspectableTransport() as transport:
        await transport.meet(wire.url)
        for _ in range(20):
            await transport.send(request(wire.url), 5.0, UNRESTED)
        assert (1, 1) == (transport.idle, transport.open_count)

    assert 1 == wire.connections


@pytest.mark.parametrize(
    ("mode", "kept"),
    [("closed_when_reused", 1), ("closed_when_reused", 4), ("reset_when_reused", 4)],
)
async def test_repeats_a_request_once_on_a_new_connection_if_a_kept_one_closes(mode, kept):
    """It is not sent on another kept connection, which may be closing as well."""
    with Upstream(delay=0.02) as upstream:
        async with InspectableTransport() as transport:
            url = f"{upstream.url}/embeddings"
            await asyncio.gather(*(transport.send(request(url), 5.0) for _ in range(kept)))
            await asyncio.sleep(0.07)
            assert kept == transport.idle
            upstream.mode = mode
            upstream.requests.clear()
            reply = await transport.send(request(url), 5.0)

    assert 200 == reply.status
    assert 2 == len(upstream.requests)
    assert 1 == upstream.requests[1].nth


async def test_does_not_repeat_a_request_if_a_new_connection_closes():
    async with ScriptedServer(ok(), [None]) as wire, InspectableTransport() as transport:
        await transport.meet(wire.url)
        with pytest.raises(UpstreamUnavailable):
            await transport.send(request(wire.url), 5.0)

    assert 3 == len(wire.heads)


async def test_releases_connections_that_were_closed_while_idle():
    """This includes the connections of a burst."""
    with Upstream(delay=0.02, remember=False) as upstream:
        async with InspectableTransport() as transport:
            url = f"{upstream.url}/embeddings"
            await asyncio.gather(*(transport.send(request(url), 5.0) for _ in range(30)))
            assert 30 == transport.idle
            [pool] = transport._pools.values()
            for connection in list(pool.idle)[:-1]:
                connection.abort()
            for _ in range(40):
                await transport.send(request(url), 5.0, UNRESTED)

            assert (1, 1) == (transport.idle, transport.open_count)


async def test_closes_connections_that_stay_idle():
    """They are closed without a further call. A connection that is reused meanwhile stays open."""
    with Upstream(delay=0.02, remember=False) as upstream:
        async with InspectableTransport(kept_for=0.5) as transport:
            url = f"{upstream.url}/embeddings"
            await asyncio.gather(*(transport.send(request(url), 5.0) for _ in range(10)))
            assert 10 == transport.idle
            await asyncio.sleep(0.3)
            await transport.send(request(url), 5.0)
            await until_on_loop(lambda: transport.idle < 2)
            assert (1, 1) == (transport.idle, transport.open_count)
            await until_on_loop(lambda: not transport.open_count)


async def test_aborting_a_connection_does_not_complete_its_response():
    """A body without a length ends with its connection, unless the transport itself closes it."""
    async with (
        ScriptedServer([b"HTTP/1.1 200 OK\r\n\r\nhalf of it", 60.0]) as wire,
        InspectableTransport() as transport,
        asyncio.TaskGroup() as group,
    ):
        sent = group.create_task(error_of(transport.send(request(wire.url), 60.0)))
        await until_on_loop(
            lambda: any(
                connection._bytes_received
                for pool in transport._pools.values()
                for connection in pool.open
            )
        )
        await transport.aclose()

    assert isinstance(sent.result(), UpstreamUnavailable)


@pytest.mark.parametrize("heads", [1, 3])
async def test_rejects_a_head_over_the_limit(heads):
    """If head and body arrive in one read, the head is parsed before its bytes are counted."""
    long = b"HTTP/1.1 200 OK\r\nx-long: %b\r\ncontent-length: 0\r\n\r\n" % (
        b"a" * (LARGEST_HEAD + 1)
    )
    pieces = [long] if heads == 1 else [long[:100], 0.05, long[100:60_000], 0.05, long[60_000:]]
    async with ScriptedServer(pieces) as wire, InspectableTransport() as transport:
        with pytest.raises(UpstreamUnavailable, match="larger than 65536 bytes"):
            await transport.send(request(wire.url), 5.0)


@pytest.mark.parametrize(
    "extra", [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong", b"garbage", b"\0"]
)
@pytest.mark.parametrize("close", [(), (b"connection: close",)])
async def test_repeats_a_request_if_surplus_bytes_follow_on_a_reused_connection(extra, close):
    """From then on, no connection to the host is reused."""
    async with (
        ScriptedServer(ok(), ok(b"wrong", *close) + extra, ok(b"next")) as wire,
        InspectableTransport() as transport,
    ):
        await transport.meet(wire.url)
        for _ in range(3):
            assert b"next" == (await transport.send(request(wire.url), 5.0)).content
        assert 0 == transport.open_count

    assert 4 == wire.connections
    assert [False, False, True, True, True] == [
        b"\r\nconnection: close\r\n" in head for head in wire.heads
    ]


@pytest.mark.parametrize("body", [b"", b"right", b"a" * 600_000])
async def test_a_first_response_excludes_the_surplus_bytes_after_it(body, caplog):
    async with ScriptedServer(ok(body) + ok(b"wrong")) as wire, InspectableTransport() as transport:
        for _ in range(3):
            assert body == (await transport.send(request(wire.url), 5.0)).content
        assert 0 == transport.open_count

    assert 3 == wire.connections
    assert ["ERROR"] == [
        record.levelname for record in caplog.records if record.name == "embedroute.http"
    ]


both_loops = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": uvloop}) for uvloop in (False, True)]
)


@both_loops
async def test_reuses_a_connection_only_after_it_has_been_silent():
    limits = ExchangeLimits(rest=0.2)
    async with (
        ScriptedServer(ok(), ok(), [0.1, ok()], ok()) as wire,
        InspectableTransport() as transport,
    ):
        await transport.send(request(wire.url), 5.0, limits)
        await transport.send(request(wire.url), 5.0, limits)
        assert 2 == wire.connections
        await asyncio.sleep(0.25)
        await transport.send(
            request(wire.url), 5.0, limits
        )  # the time of silence starts with the last byte
        assert 2 == wire.connections
        await asyncio.sleep(0.1)
        await transport.send(request(wire.url), 5.0, limits)
        await transport.send(request(wire.url), 5.0, limits)
        assert (3, 3) == (wire.connections, transport.idle)


async def test_a_connection_must_be_silent_for_50_ms_by_default():
    async with ScriptedServer(ok()) as wire, InspectableTransport() as transport:
        await transport.send(request(wire.url), 5.0)
        with anyio.fail_after(30):  # on a busy machine, 50 ms may pass between two requests
            while wire.connections == 1:
                await transport.send(request(wire.url), 5.0)
        assert 2 == wire.connections
        await asyncio.sleep(0.06)
        for _ in range(2):
            await transport.send(request(wire.url), 5.0)
        assert 2 == wire.connections


async def test_reuses_the_longest_silent_connection():
    async with ScriptedServer(ok()) as wire, InspectableTransport() as transport:
        await asyncio.gather(*(transport.send(request(wire.url), 5.0) for _ in range(3)))
        [pool] = transport._pools.values()
        order = list(pool.idle)
        for _ in range(4):
            await transport.send(request(wire.url), 5.0, UNRESTED)
        assert [order[1], order[2], order[0]] == list(pool.idle)
        assert 3 == wire.connections


@both_loops
@pytest.mark.parametrize(
    "surplus", [ok(b"wrong"), ok(b"wrong", status=b"504 Gateway Timeout"), b"x", b"HTTP/1.1 40"]
)
async def test_closes_idle_connections_and_keeps_none_after_a_surplus_byte(surplus, caplog):
    """One error with host and provider is logged."""
    limits = ExchangeLimits(provider="acme")
    answers = [[0.01, ok()], [0.01, ok()], [ok(), 0.3, surplus], ok()]
    async with ScriptedServer(*answers) as wire, InspectableTransport(kept_for=3600.0) as transport:
        await asyncio.gather(*(transport.send(request(wire.url), 5.0, limits) for _ in range(3)))
        assert 3 == transport.idle
        await until_on_loop(lambda: not transport.open_count)
        for _ in range(3):
            await transport.send(request(wire.url), 5.0, limits)
        assert 0 == transport.open_count

    assert 6 == wire.connections
    assert [False] * 3 + [True] * 3 == [b"\r\nconnection: close\r\n" in head for head in wire.heads]
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert ("embedroute.http", "acme") == (record.name, record.provider)
    assert record.host in wire.url
    assert f"provider=acme host={record.host}" in record.getMessage()


@pytest.mark.parametrize(
    "notice", [ok(status=b"408 Request Timeout"), b"HTTP/1.0 408 Request Time-out\r\n\r\n", b"\r\n"]
)
async def test_a_closing_notice_on_an_idle_connection_closes_only_that_connection(notice):
    async with (
        ScriptedServer([ok(), 0.02, notice, 0.05], ok()) as wire,
        InspectableTransport() as transport,
    ):
        await transport.send(request(wire.url), 5.0)
        await until_on_loop(lambda: not transport.alive)
        await transport.meet(wire.url)
        await transport.send(request(wire.url), 5.0)
        assert not transport.unreliable

    assert 2 == wire.connections


async def test_repeats_exchanges_on_reused_connections_when_their_host_is_caught():
    """The first exchange of a connection can be trusted and is not repeated."""
    answers = [
        [0.02, ok()],
        [0.02, ok()],
        [60.0, ok(b"doubtful")],
        [ok(b"sound"), 0.03, ok(b"surplus")],
        [0.1, ok(b"first")],
    ]
    async with ScriptedServer(*answers, ok(b"again")) as wire, InspectableTransport() as transport:
        await asyncio.gather(*(transport.send(request(wire.url), 5.0) for _ in range(2)))
        await asyncio.sleep(0.07)
        replies = await asyncio.gather(*(transport.send(request(wire.url), 30.0) for _ in range(3)))

    assert [b"again", b"sound", b"first"] == [reply.content for reply in replies]
    assert [None, True, None] == [reply.source and reply.source.unreliable for reply in replies]
    assert 4 == wire.connections


async def test_a_caught_host_does_not_affect_other_hosts():
    async with (
        ScriptedServer([ok(), 0.02, b"surplus"], ok()) as liar,
        ScriptedServer(ok()) as honest,
        InspectableTransport() as transport,
    ):
        await transport.meet(liar.url)
        for _ in range(3):
            await transport.meet(honest.url)
        assert (1, 1) == (honest.connections, transport.open_count)


async def test_a_connection_that_was_idle_for_too_long_is_not_used_by_a_late_event_loop():
    """The timer that closes it has not run yet, and the upstream may close it at any moment."""
    async with ScriptedServer(ok()) as wire, InspectableTransport(kept_for=0.2) as transport:
        await transport.meet(wire.url)
        time.sleep(0.3)  # noqa: ASYNC251 - a late event loop
        await transport.send(request(wire.url), 5.0)

        assert 2 == wire.connections


async def test_bytes_received_while_the_loop_was_busy_are_unsolicited():
    """They are in the socket's buffer when the connection is taken from the pool."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(60)
    url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
    loop = asyncio.get_running_loop()

    def first():
        connection, _ = server.accept()
        read_request(connection)
        connection.sendall(ok(b"first"))
        return connection

    def second():
        connection, _ = server.accept()
        read_request(connection)
        connection.sendall(ok(b"second"))
        connection.close()

    async with InspectableTransport() as transport:
        serving = loop.run_in_executor(None, first)
        assert b"first" == (await transport.meet(url)).content
        connection = await serving
        assert 1 == transport.idle
        serving = loop.run_in_executor(None, second)
        connection.sendall(ok(b"wrong"))
        assert b"second" == (await transport.send(request(url), 5.0)).content
        await serving
        assert transport.unreliable
    connection.close()
    server.close()


async def test_does_not_keep_a_connection_that_responded_before_reading_the_request():
    """Otherwise the rest of its request would precede the next request."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(60)
    url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"

    def hasty():
        connection, _ = server.accept()
        connection.recv(1024)
        connection.sendall(ok(b"too large", status=b"413 Content Too Large"))
        return connection

    async with InspectableTransport() as transport:
        serving = asyncio.get_running_loop().run_in_executor(None, hasty)
        reply = await transport.send(request(url, ["a" * 30_000_000]), 5.0)
        assert (413, 0) == (reply.status, transport.open_count)
        (await serving).close()
    server.close()


TARGETS = [
    ("http://host/v1", ("host", 80, False), b"POST /v1 HTTP/1.1", b"host", None),
    ("HTTP://Host:80/v1", ("host", 80, False), b"POST /v1 HTTP/1.1", b"host", None),
    ("https://host:443", ("host", 443, True), b"POST / HTTP/1.1", b"host", None),
    ("https://host:80/?a=b#c", ("host", 80, True), b"POST /?a=b HTTP/1.1", b"host:80", None),
    ("http://host:443/", ("host", 443, False), b"POST / HTTP/1.1", b"host:443", None),
    (
        "http://[::1]:8080/a%20b c",
        ("::1", 8080, False),
        b"POST /a%20b%20c HTTP/1.1",
        b"[::1]:8080",
        None,
    ),
    ("http://[::1]/é", ("::1", 80, False), b"POST /%C3%A9 HTTP/1.1", b"[::1]", None),
    (
        "http://me:p%40ss@host/",
        ("host", 80, False),
        b"POST / HTTP/1.1",
        b"host",
        b"Basic bWU6cEBzcw==",
    ),
    (
        "http://xn--bcher-kva.example/",
        ("xn--bcher-kva.example", 80, False),
        b"POST / HTTP/1.1",
        b"xn--bcher-kva.example",
        None,
    ),
]


@pytest.mark.parametrize(("url", "origin", "line", "host", "authorization"), TARGETS)
def test_encodes_the_request_line_and_host_of_a_url(url, origin, line, host, authorization):
    target = parse_target("POST", url)
    first, *headers = write_head(target, request(url).headers).split(b"\r\n")
    fields = dict(header.split(b": ", 1) for header in headers if header)

    assert (origin, line, host, authorization) == (
        target.origin,
        first,
        fields[b"host"],
        fields.get(b"authorization"),
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host/v1",
        "ftp://host/",
        "http:///v1",
        "http://host:99999/",
        "http://host:x/",
        "http://bücher.example/",
        "http://ho st/",
        "http://ho\0st/",
        "http://a\\b/",
        "http://[::1/",
    ],
)
def test_rejects_an_invalid_url(url):
    with pytest.raises(UpstreamUnavailable):
        parse_target("POST", url)


@pytest.mark.parametrize("method", ["", "POST /x HTTP/1.1\r\nx: ", "PÖST", "A B"])
def test_rejects_an_invalid_method(method):
    with pytest.raises(UpstreamUnavailable):
        parse_target(method, "http://host/")


@pytest.mark.parametrize(
    "headers",
    [
        {"x": "a\r\nb: c"},
        {"x": "a\nb: c"},
        {"x": "a\rb: c"},
        {"x": "a\0"},
        {"x\r\ny": "a"},
        {"x": "☃"},
        {"transfer-encoding": "chunked"},
        {"content-length": "0"},
        {"connection": "upgrade"},
    ],
)
def test_rejects_headers_that_could_end_or_split_a_request(headers):
    with pytest.raises(UpstreamUnavailable):
        write_head(parse_target("POST", "http://host/"), headers)


def test_a_header_of_the_backend_overrides_the_default():
    headers = {"host": "other", "accept": "*/*", "authorization": Secret("Bearer k")}
    head = write_head(parse_target("POST", "http://me:pass@host/"), headers)

    assert [b"host: other", b"accept: */*", b"authorization: Bearer k"] == [
        line
        for line in head.split(b"\r\n")
        if line.startswith((b"host", b"accept:", b"authorization"))
    ]


async def test_each_call_sends_its_own_headers():
    """Two backends share a URL; each passes an immutable mapping. A third modifies its mapping."""
    accounts = [MappingProxyType({"authorization": Secret(f"Bearer {name}")}) for name in "ab"]
    changing = {"authorization": "Bearer c"}
    async with ScriptedServer(ok(b"{}")) as wire, InspectableTransport() as transport:
        for headers in [*accounts, *accounts[::-1], *accounts, changing]:
            await transport.send(UpstreamRequest(url=wire.url, content=b"{}", headers=headers), 5.0)
        changing["authorization"] = "Bearer d"
        await transport.send(
            UpstreamRequest(url=wire.url, content=b"longer", headers=changing), 5.0
        )

    values = [
        line[-1:]
        for head in wire.heads
        for line in head.split(b"\r\n")
        if line.startswith(b"authorization")
    ]
    assert [b"a", b"b", b"b", b"a", b"a", b"b", b"c", b"d"] == values
    assert wire.heads[-1].endswith(b"\r\ncontent-length: 6\r\n\r\n")


async def test_connects_to_an_ipv6_address():
    async with ScriptedServer(ok(b"six"), host="::1") as wire, InspectableTransport() as transport:
        assert b"six" == (await transport.send(request(wire.url), 5.0)).content


@pytest.mark.parametrize(
    ("until", "reached"), [("20200102000000Z", False), ("20991231000000Z", True)]
)
async def test_rejects_an_expired_certificate(tmp_path, until, reached):
    """The request is not sent unencrypted either."""
    cert, context = certified(tmp_path, until)
    async with (
        ScriptedServer(ok(b"{}"), tls=context) as wire,
        InspectableTransport(TransportConfig(ca_file=cert)) as transport,
    ):
        url = wire.url.replace("127.0.0.1", "localhost")
        if reached:
            assert 200 == (await transport.send(request(url), 5.0)).status
        else:
            with pytest.raises(ConnectError):
                await transport.send(request(url), 5.0)

    assert reached == bool(wire.heads)


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": uvloop}) for uvloop in (False, True)]
)
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("length", [True, False])
async def test_a_large_response_is_complete_if_the_upstream_closes_after_it(tmp_path, tls, length):
    """Pauses in reading must not lose bytes that came before the end."""
    cert, context = certified(tmp_path) if tls else (None, None)
    body = b"%08d" * 1_000_000 % tuple(range(1_000_000))
    head = (
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n"
        + (b"content-length: %d\r\n" % len(body) if length else b"")
        + b"\r\n"
    )
    with ClosingServer(head + body, tls=context) as upstream:
        async with InspectableTransport(TransportConfig(ca_file=cert)) as transport:
            replies = [await transport.send(request(upstream.url), 20.0) for _ in range(6)]

    assert [True] * 6 == [reply.content == body for reply in replies]


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": uvloop}) for uvloop in (False, True)]
)
async def test_makes_one_connection_per_call_to_an_upstream_that_sends_first_and_closes():
    """Such an upstream is overloaded. Its bytes may arrive before or after the request."""
    calls = 20

    async def hold_up():
        while True:
            time.sleep(0.001)  # noqa: ASYNC251 - it is busy
            await asyncio.sleep(0)

    holding = asyncio.create_task(hold_up())
    with ClosingServer(
        ok(b"{}", b"connection: close", status=b"503 Busy"), listens=False
    ) as upstream:
        async with InspectableTransport() as transport:
            for _ in range(calls):
                with suppress(UpstreamUnavailable):
                    assert 503 == (await transport.send(request(upstream.url), 2.0)).status
        holding.cancel()

    assert calls == upstream.connections


async def test_trailing_bytes_are_unsolicited():
    """Uvloop reads up to 32 times before the waiting task continues."""
    loop, surplus = asyncio.get_running_loop(), []
    async with ScriptedServer(ok(b"{}")) as wire:
        address = wire.url.removeprefix("http://").partition("/")[0].split(":")
        _, connection = await loop.create_connection(
            lambda: Connection(loop, lambda *_: surplus.append("surplus")), *address
        )
        answer = connection.exchange(
            SecretBytes(b"GET / HTTP/1.1\r\n\r\n"), b"", ExchangeLimits(), None
        )
        for _ in range(2):
            connection.data_received(ok(b"{}"))

        assert b"{}" == (await answer).content
        assert (["surplus"], False) == (surplus, connection.alive)


async def test_a_call_cancelled_during_its_response_does_not_catch_the_upstream():
    """The bytes that still arrive belong to that call. Other connections are kept."""
    body = bytes(8_000_000)
    async with (
        ScriptedServer(ok(b"{}"), ok(b"{}"), ok(body)) as wire,
        InspectableTransport() as transport,
    ):
        await transport.meet(wire.url)
        await transport.meet(wire.url)
        for _ in range(5):
            call = asyncio.create_task(transport.send(request(wire.url), 5.0))
            await asyncio.sleep(0.002)
            call.cancel()
            await asyncio.wait([call])
            await asyncio.sleep(0.01)

        assert not transport.unreliable


async def test_a_missing_ca_file_is_a_connect_error():
    async with InspectableTransport(TransportConfig(ca_file="/nowhere.pem")) as transport:
        with pytest.raises(ConnectError):
            await transport.send(request("https://127.0.0.1:9/"), 5.0)


async def test_a_connect_timeout_is_a_connect_error():
    """With a full backlog, the kernel does not respond."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(server.getsockname())
    async with InspectableTransport() as transport:
        with pytest.raises(ConnectError):
            await transport.send(request(f"http://127.0.0.1:{server.getsockname()[1]}/"), 0.2)
    for opened in (server, *fillers):
        opened.close()


FOUR = ExchangeLimits(max_connections=4)


async def test_calls_over_the_connection_limit_wait():
    with Upstream(delay=0.05, remember=False) as upstream:
        async with InspectableTransport() as transport:
            url = f"{upstream.url}/embeddings"
            replies = await asyncio.gather(
                *(transport.send(request(url), 5.0, FOUR) for _ in range(40))
            )
            assert {200} == {reply.status for reply in replies}
            assert 4 == upstream.most_in_flight
            upstream.delay = 60.0
            late = [
                asyncio.create_task(transport.send(request(url), seconds, FOUR))
                for seconds in [2.0] * 4 + [0.2] * 2
            ]
            failures = await asyncio.gather(*late, return_exceptions=True)
            assert {UpstreamTimeout: 4, PoolTimeout: 2} == Counter(map(type, failures))


@pytest.mark.uncounted
@pytest.mark.parametrize("tasks", thorough_unless((20).__eq__, [20, 100]))
async def test_thousands_of_cancelled_calls_leak_nothing(tasks):
    rng = random.Random(11)
    gc.collect()  # objects of other tests must not warn during this one
    with (
        Upstream(delay=0.002, remember=False) as upstream,
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.simplefilter("always")
        before = asyncio.all_tasks()
        async with InspectableTransport() as transport:
            url = f"{upstream.url}/embeddings"
            await transport.meet(url)

            async def leave():
                for _ in range(50):
                    task = asyncio.create_task(transport.send(request(url), 5.0))
                    for _ in range(rng.randint(0, 3)):
                        await asyncio.sleep(rng.choice([0, 0, 0.001, 0.003]))
                    task.cancel()
                    await asyncio.wait([task])

            await asyncio.gather(*(leave() for _ in range(tasks)))
            await until_on_loop(
                lambda: upstream.in_flight == 0 and len(upstream.open) == transport.idle
            )
            assert transport.open_count == transport.idle
            assert 0 == transport.in_use
        assert before == asyncio.all_tasks()
        await until_on_loop(lambda: not upstream.open)
        gc.collect()
    assert [] == [str(warning.message) for warning in warned]


LOOPS = """
import asyncio, gc, sys, warnings
from embedroute.backend import UpstreamRequest
from embedroute.transport.base import LARGEST_HEAD, TransportConfig, ExchangeLimits
from embedroute.transport.http1.pool import Http1Transport
warnings.simplefilter("error")

async def main():
    transport = Http1Transport()
    ask = UpstreamRequest.json({url!r}, {{"input": ["a"]}})
    for _ in range(3):
        print((await transport.send(ask, 5.0)).status)
        await asyncio.sleep(0.06)
    late = asyncio.create_task(transport.send(ask, 5.0))
    await asyncio.sleep(0)
    late.cancel()
    await asyncio.wait([late])
    await transport.aclose()
    print(len(asyncio.all_tasks()))

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main(), debug=True)
gc.collect()
"""


@pytest.mark.parametrize("loop", ["asyncio, debugging", "uvloop"])
def test_closes_without_warnings(loop):
    """There is no warning of an open socket or a pending task, under either loop."""
    with Upstream(remember=False) as upstream:
        script = LOOPS.format(url=f"{upstream.url}/embeddings")
        command = [sys.executable, "-X", "dev", "-c", script, loop]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own words

    assert ("200\n200\n200\n1\n", "") == (ran.stdout, SLOW.sub("", ran.stderr))


def test_each_event_loop_has_its_own_connections():
    with Upstream() as upstream:
        gateway = Gateway(
            Config(
                gateway=Settings(auth="open", transport="http1"),
                cache=CacheSettings(bytes=0),
                providers={"one": Provider(backend="openai", options={"base_url": upstream.url})},
                models={"m": Model(dimensions=8, endpoints=[Endpoint(provider="one")])},
            ),
            environ={},
        )

        async def embed():
            for text in "abc":
                answer = await gateway.embed(text, model="m")
                assert vectors_of([text]).tolist() == answer.vectors.tolist()
                await asyncio.sleep(0.07)

        for at in range(2):
            asyncio.run(embed())
            assert at + 1 == upstream.connections
            assert [1, 2, 3] == [ask.nth for ask in upstream.requests[-3:]]


class LateSurplusServer:
    """An upstream whose connections can send a second response to their first request."""

    def __init__(self):
        self.release, self.texts = asyncio.Event(), []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def serve(self, reader, writer):
        with suppress(OSError, EOFError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line[15:])
                    for line in head.split(b"\r\n")
                    if line.startswith(b"content-length")
                )
                text = json.loads(await reader.readexactly(length))["input"][0]
                self.texts.append(text)
                body = json.dumps(
                    {"data": [{"index": 0, "embedding": vectors_of([text])[0].tolist()}]}
                ).encode()
                writer.write(ok(body))
                if text == "tell":
                    await self.release.wait()
                    writer.write(ok(body))
        writer.close()


@both_loops
async def test_drops_cached_vectors_of_reused_connections_when_their_host_is_caught(caplog):
    """First responses of a connection stay in the cache, and later responses are cached."""
    async with LateSurplusServer() as upstream:
        gateway = Gateway(
            Config(
                gateway=Settings(auth="open", transport="http1"),
                providers={
                    "acme": Provider(
                        backend="openai", options={"base_url": upstream.url}, connection_rest_ms=20
                    )
                },
                models={"m": Model(dimensions=8, endpoints=[Endpoint(provider="acme")])},
            ),
            environ={},
        )
        async with gateway.lifespan():
            for text in ["first", "reused", "reused too", "tell"]:
                await gateway.embed(text, model="m")
                await asyncio.sleep(0.03)
            for text in ["first", "reused", "reused too", "tell"]:
                await gateway.embed(text, model="m")
            assert ["first", "reused", "reused too", "tell"] == upstream.texts
            upstream.release.set()
            await until_on_loop(lambda: "acme" in caplog.text)
            for _ in range(2):
                for text in ["first", "reused", "reused too", "tell"]:
                    answer = await gateway.embed(text, model="m")
                    assert vectors_of([text]).tolist() == answer.vectors.tolist()

    assert ["reused", "reused too", "tell"] == upstream.texts[4:]


async def test_does_not_keep_a_connection_after_a_timeout_status():
    """After its own timeout, a proxy may still pass the real response on."""
    statuses = [
        b"200 OK",
        b"504 Gateway Timeout",
        b"408 Request Timeout",
        b"503 Service Unavailable",
        b"200 OK",
    ]
    async with (
        ScriptedServer(*(ok(status=status) for status in statuses)) as wire,
        InspectableTransport() as transport,
    ):
        for kept in (1, 0, 0, 1, 1):
            await transport.send(request(wire.url), 5.0, UNRESTED)
            assert kept == transport.open_count
