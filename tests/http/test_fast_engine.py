"""The quick engine alone: what it keeps, what it sends again, what it refuses to write, and what it leaves behind."""

import asyncio
import gc
import random
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from functools import partial
from types import MappingProxyType

import anyio
import pytest

from embedroute import CacheSettings, Config, Endpoint, Gateway, Model, Provider, Settings
from embedroute.backend import Secret, UpstreamRequest
from embedroute.errors import BadAnswer, TimedOut, Unavailable, Unreachable, UpstreamError
from embedroute.http import LARGEST_HEAD, Connect
from embedroute.http.connection import Connection
from embedroute.http.fast_engine import FastEngine
from embedroute.http.target import parse_target, write_head
from embedroute.secret import SecretBytes
from tests.certified import certified
from tests.serving import SLOW
from tests.upstream import Upstream, vectors_of
from tests.waiting import until_on_loop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


def request(url, texts=("text",), **headers):
    return UpstreamRequest.json(url, {"input": list(texts)}, headers=headers)


class Wire:
    """A server that answers the nth request, counted over all connections, with the nth of its ``answers``; None closes."""

    def __init__(self, *answers, host="127.0.0.1", tls=None):
        self.tls = tls
        self.answers, self.host, self.heads, self.connections = list(answers), host, [], 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, self.host, 0, ssl=self.tls)
        port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://[{self.host}]:{port}/v1" if ":" in self.host else f"http://{self.host}:{port}/v1"
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
                length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
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


class Abrupt:
    """A server in a thread of its own, so that it is quicker than the loop: it says ``words`` to each, and closes."""

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
                with suppress(OSError), self.tls.wrap_socket(line, server_side=True) if self.tls else line as wrapped:
                    while self.listens and not wrapped.recv(1 << 16).endswith(b"}"):
                        pass
                    wrapped.sendall(self.words)


def ok(body=b"{}", *headers, status=b"200 OK"):
    lines = [b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


class Engine(FastEngine):
    """Closed at the end of ``async with``; ``held`` are the connections that it has not let go of."""

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.aclose()

    @property
    def held(self):
        return len(self._open)

    @property
    def idle(self):
        return sum(map(len, self._idle.values()))

    async def meet(self, url):
        """Be past the watch over a host's first answer."""
        reply = await self.send(request(url), 5.0)
        await asyncio.sleep(0.07)
        return reply


async def failure_of(sent):
    """What an exchange fails with; its answer, if it does not."""
    try:
        return await sent
    except UpstreamError as error:
        return error


ANSWERS = {
    "plain": (ok(b"{}"), 200, b"{}"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", 304, b""),
    "continue first": (b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"{}"), 200, b"{}"),
    "hints with a length": (b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + ok(b"[]"), 200, b"[]"),
    "chunked": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;a=b\r\n{\r\n1\r\n}\r\n0\r\ncontent-type: evil\r\nx: y\r\n\r\n",
        200,
        b"{}",
    ),
    "long, chunked, with a trailer": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n20000\r\n" + b"a" * 0x20000 + b"\r\n0\r\nx: y\r\n\r\n",
        200,
        b"a" * 0x20000,
    ),
    "of two pieces": ([ok(b"ab")[:-1], 0.01, b"b"], 200, b"ab"),
    "of three pieces": ([ok(b"abc")[:-2], 0.01, b"b", 0.01, b"c"], 200, b"abc"),
    "until the end": ([b"HTTP/1.1 200 OK\r\n\r\n{}", None], 200, b"{}"),
    "HTTP/1.0": ([b"HTTP/1.0 200 OK\r\n\r\n{}", None], 200, b"{}"),
    "nothing until the end": ([b"HTTP/1.1 200 OK\r\n\r\n", None], 200, b""),
    "elsewhere": (ok(b"", b"location: http://127.0.0.1:9/", status=b"308 Permanent Redirect"), 308, b""),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_every_framing_of_a_body_is_read(name):
    answer, status, body = ANSWERS[name]
    async with Wire(answer) as wire, Engine() as engine:
        for reply in [await engine.meet(wire.url), await engine.send(request(wire.url), 5.0)]:
            assert (status, body) == (reply.status, reply.content)
            assert reply.headers.get("content-type") is None

    assert 2 == len(wire.heads)
    assert (2 if isinstance(answer, list) and answer[-1] is None else 1) == wire.connections


REFUSED = {
    "a body in gzip": (ok(b"{}", b"content-encoding: gzip"), BadAnswer),
    "chunks in gzip": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Unavailable),
    "two lengths": (ok(b"{}", b"content-length: 3"), Unavailable),
    "a length and chunks": (ok(b"{}", b"transfer-encoding: chunked"), Unavailable),
    "a signed length": (b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\n{}", Unavailable),
    "a length beyond all": (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n{}", BadAnswer),
    "another protocol": (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\nabc", Unavailable),
    "a head of many headers": (ok(b"{}", *(b"x-%d: %d" % (at, at) for at in range(20_000))), Unavailable),
    "a head that does not end": ([b"HTTP/1.1 200 OK\r\nx: ", *[b"a" * 4096, 0.001] * 40], Unavailable),
    "announcements without end": ([b"HTTP/1.1 102 Processing\r\n\r\n" * 5000], Unavailable),
    "nothing": ([None], Unavailable),
    "half a head": ([b"HTTP/1.1 200", None], Unavailable),
    "half a body": ([ok(b"{}")[:-1], None], Unavailable),
    "silence": ([3.0], TimedOut),
    "a drip": ([b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n", *[b"a", 0.02] * 100], TimedOut),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_no_whole_and_plain_answer_is_refused(name):
    """And its connection is given up."""
    answer, kind = REFUSED[name]
    async with Wire(answer) as wire, Engine() as engine:
        with pytest.raises(UpstreamError) as caught:
            await engine.send(request(wire.url), 0.5 if kind is TimedOut else 30.0)

        assert 0 == engine.held
    assert kind is caught.type
    assert 1 == len(wire.heads)


async def test_a_kept_connection_is_used_again():
    async with Wire(ok()) as wire, Engine() as engine:
        await engine.meet(wire.url)
        for _ in range(20):
            await engine.send(request(wire.url), 5.0)
        assert (1, 1) == (engine.idle, engine.held)

    assert 1 == wire.connections


@pytest.mark.parametrize(("mode", "kept"), [("closed_when_reused", 1), ("closed_when_reused", 4), ("reset_when_reused", 4)])
async def test_what_ran_into_a_closing_connection_is_sent_once_more_on_a_fresh_one(mode, kept):
    """However many others are kept, which may be closing just as well."""
    with Upstream(delay=0.02) as upstream:
        async with Engine() as engine:
            url = f"{upstream.url}/embeddings"
            await engine.meet(url)
            await asyncio.gather(*(engine.send(request(url), 5.0) for _ in range(kept)))
            assert kept == engine.idle
            upstream.mode = mode
            upstream.requests.clear()
            reply = await engine.send(request(url), 5.0)

    assert 200 == reply.status
    assert 2 == len(upstream.requests)
    assert 1 == upstream.requests[1].nth


async def test_a_fresh_connection_that_is_closed_is_not_tried_again():
    async with Wire(ok(), [None]) as wire, Engine() as engine:
        await engine.meet(wire.url)
        with pytest.raises(Unavailable):
            await engine.send(request(wire.url), 5.0)

    assert 3 == len(wire.heads)


async def test_connections_that_went_while_idle_are_let_go_of():
    """Those of a burst too, which nobody comes back to."""
    with Upstream(delay=0.02, remember=False) as upstream:
        async with Engine() as engine:
            url = f"{upstream.url}/embeddings"
            await engine.meet(url)
            await asyncio.gather(*(engine.send(request(url), 5.0) for _ in range(30)))
            assert 30 == engine.idle
            [kept] = engine._idle.values()
            for connection in kept[:-1]:
                connection.abort()
            for _ in range(40):
                await engine.send(request(url), 5.0)

            assert (1, 1) == (engine.idle, engine.held)


async def test_connections_are_closed_that_nobody_comes_back_to():
    """Those of a burst, though no call follows; one that is used again meanwhile is not among them."""
    with Upstream(delay=0.02, remember=False) as upstream:
        async with Engine(kept_for=0.5) as engine:
            url = f"{upstream.url}/embeddings"
            await engine.meet(url)
            await asyncio.gather(*(engine.send(request(url), 5.0) for _ in range(10)))
            assert 10 == engine.idle
            await asyncio.sleep(0.3)
            await engine.send(request(url), 5.0)
            await until_on_loop(lambda: engine.idle < 2)
            assert (1, 1) == (engine.idle, engine.held)
            await until_on_loop(lambda: not engine.held)


async def test_the_end_of_a_connection_that_is_given_up_is_not_the_end_of_an_answer():
    """A body without a length ends with its connection, but not where the engine is closed in its midst."""
    async with Wire([b"HTTP/1.1 200 OK\r\n\r\nhalf of it", 60.0]) as wire, Engine() as engine, asyncio.TaskGroup() as group:
        sent = group.create_task(failure_of(engine.send(request(wire.url), 60.0)))
        await until_on_loop(lambda: any(it._heard for it in engine._open))
        await engine.aclose()

    assert isinstance(sent.result(), Unavailable)


@pytest.mark.parametrize("heads", [1, 3])
async def test_a_head_is_bounded_however_it_comes(heads):
    """In one read with the answer it would be parsed before its bytes are counted."""
    long = b"HTTP/1.1 200 OK\r\nx-long: %b\r\ncontent-length: 0\r\n\r\n" % (b"a" * (LARGEST_HEAD + 1))
    pieces = [long] if heads == 1 else [long[:100], 0.05, long[100:60_000], 0.05, long[60_000:]]
    async with Wire(pieces) as wire, Engine() as engine:
        with pytest.raises(Unavailable, match="larger than 65536 bytes"):
            await engine.send(request(wire.url), 5.0)


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong", b"garbage", b"\0"])
@pytest.mark.parametrize("close", [(), (b"connection: close",)])
async def test_an_answer_on_a_used_connection_that_more_follows_is_not_trusted(extra, close):
    async with Wire(ok(), ok(b"right", *close) + extra, ok(b"next")) as wire, Engine() as engine:
        await engine.meet(wire.url)
        with pytest.raises(BadAnswer):
            await engine.send(request(wire.url), 5.0)
        for _ in range(3):
            assert b"next" == (await engine.send(request(wire.url), 5.0)).content
        assert 0 == engine.held

    assert 4 == wire.connections


@pytest.mark.parametrize("body", [b"", b"right", b"a" * 600_000])
async def test_a_first_answer_that_more_follows_is_itself_and_nothing_else(body):
    async with Wire(ok(body) + ok(b"wrong")) as wire, Engine() as engine:
        for _ in range(3):
            assert body == (await engine.send(request(wire.url), 5.0)).content
        assert 0 == engine.held

    assert 3 == wire.connections


async def test_bytes_that_came_while_the_loop_was_busy_are_no_answer():
    """They stand in the socket's buffer when the connection is taken again."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(60)
    url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
    loop = asyncio.get_running_loop()

    def first():
        held, _ = server.accept()
        held.recv(65536)
        held.sendall(ok(b"first"))
        return held

    def second():
        held, _ = server.accept()
        held.recv(65536)
        held.sendall(ok(b"second"))
        held.close()

    async with Engine() as engine:
        serving = loop.run_in_executor(None, first)
        assert b"first" == (await engine.meet(url)).content
        held = await serving
        assert 1 == engine.idle
        serving = loop.run_in_executor(None, second)
        held.sendall(ok(b"wrong"))
        assert b"second" == (await engine.send(request(url), 5.0)).content
        await serving
    held.close()
    server.close()


async def test_an_answer_before_the_request_was_read_leaves_no_connection_to_keep():
    """Else the rest of the request would stand before the next one."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(60)
    url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"

    def hasty():
        held, _ = server.accept()
        held.recv(1024)
        held.sendall(ok(b"too large", status=b"413 Content Too Large"))
        return held

    async with Engine() as engine:
        engine._quiet["127.0.0.1", server.getsockname()[1], False] = True
        serving = asyncio.get_running_loop().run_in_executor(None, hasty)
        reply = await engine.send(request(url, ["a" * 30_000_000]), 5.0)
        assert (413, 0) == (reply.status, engine.held)
        (await serving).close()
    server.close()


TARGETS = [
    ("http://host/v1", ("host", 80, False), b"POST /v1 HTTP/1.1", b"host", None),
    ("HTTP://Host:80/v1", ("host", 80, False), b"POST /v1 HTTP/1.1", b"host", None),
    ("https://host:443", ("host", 443, True), b"POST / HTTP/1.1", b"host", None),
    ("https://host:80/?a=b#c", ("host", 80, True), b"POST /?a=b HTTP/1.1", b"host:80", None),
    ("http://host:443/", ("host", 443, False), b"POST / HTTP/1.1", b"host:443", None),
    ("http://[::1]:8080/a%20b c", ("::1", 8080, False), b"POST /a%20b%20c HTTP/1.1", b"[::1]:8080", None),
    ("http://[::1]/é", ("::1", 80, False), b"POST /%C3%A9 HTTP/1.1", b"[::1]", None),
    ("http://me:p%40ss@host/", ("host", 80, False), b"POST / HTTP/1.1", b"host", b"Basic bWU6cEBzcw=="),
    ("http://xn--bcher-kva.example/", ("xn--bcher-kva.example", 80, False), b"POST / HTTP/1.1", b"xn--bcher-kva.example", None),
]


@pytest.mark.parametrize(("url", "origin", "line", "host", "authorization"), TARGETS)
def test_a_url_is_written_as_http_wants_it(url, origin, line, host, authorization):
    target = parse_target("POST", url)
    first, *headers = write_head(target, request(url).headers).split(b"\r\n")
    held = dict(header.split(b": ", 1) for header in headers if header)

    assert (origin, line, host, authorization) == (target.origin, first, held[b"host"], held.get(b"authorization"))


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
def test_a_url_that_cannot_be_written_is_refused(url):
    with pytest.raises(Unavailable):
        parse_target("POST", url)


@pytest.mark.parametrize("method", ["", "POST /x HTTP/1.1\r\nx: ", "PÖST", "A B"])
def test_a_method_is_a_word(method):
    with pytest.raises(Unavailable):
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
def test_no_header_can_end_or_split_a_request(headers):
    with pytest.raises(Unavailable):
        write_head(parse_target("POST", "http://host/"), headers)


def test_a_backends_own_header_stands_over_the_engines():
    headers = {"host": "other", "accept": "*/*", "authorization": Secret("Bearer k")}
    head = write_head(parse_target("POST", "http://me:pass@host/"), headers)

    assert [b"host: other", b"accept: */*", b"authorization: Bearer k"] == [
        line for line in head.split(b"\r\n") if line.startswith((b"host", b"accept:", b"authorization"))
    ]


async def test_each_call_has_its_own_headers_whatever_was_written_before():
    """Two accounts at one address, each with a mapping of its own that cannot change, and one that changes its mapping."""
    accounts = [MappingProxyType({"authorization": Secret(f"Bearer {name}")}) for name in "ab"]
    changing = {"authorization": "Bearer c"}
    async with Wire(ok(b"{}")) as wire, Engine() as engine:
        for headers in [*accounts, *accounts[::-1], *accounts, changing]:
            await engine.send(UpstreamRequest(url=wire.url, content=b"{}", headers=headers), 5.0)
        changing["authorization"] = "Bearer d"
        await engine.send(UpstreamRequest(url=wire.url, content=b"longer", headers=changing), 5.0)

    told = [line[-1:] for head in wire.heads for line in head.split(b"\r\n") if line.startswith(b"authorization")]
    assert [b"a", b"b", b"b", b"a", b"a", b"b", b"c", b"d"] == told
    assert wire.heads[-1].endswith(b"\r\ncontent-length: 6\r\n\r\n")


async def test_an_ipv6_address_is_reached():
    async with Wire(ok(b"six"), host="::1") as wire, Engine() as engine:
        assert b"six" == (await engine.send(request(wire.url), 5.0)).content


@pytest.mark.parametrize(("until", "reached"), [("20200102000000Z", False), ("20991231000000Z", True)])
async def test_a_certificate_that_is_out_of_date_is_not_trusted(tmp_path, until, reached):
    """Nor is anything sent in the clear then."""
    cert, context = certified(tmp_path, until)
    async with Wire(ok(b"{}"), tls=context) as wire, Engine(Connect(ca_file=cert)) as engine:
        url = wire.url.replace("127.0.0.1", "localhost")
        if reached:
            assert 200 == (await engine.send(request(url), 5.0)).status
        else:
            with pytest.raises(Unreachable):
                await engine.send(request(url), 5.0)

    assert reached == bool(wire.heads)


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": uvloop}) for uvloop in (False, True)])
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("length", [True, False])
async def test_a_large_answer_is_whole_though_its_upstream_closes_behind_it(tmp_path, tls, length):
    """Reading it in turns may lose nothing of what came before the end."""
    cert, context = certified(tmp_path) if tls else (None, None)
    body = b"%08d" * 1_000_000 % tuple(range(1_000_000))
    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + (b"content-length: %d\r\n" % len(body) if length else b"") + b"\r\n"
    with Abrupt(head + body, tls=context) as upstream:
        async with Engine(Connect(ca_file=cert)) as engine:
            replies = [await engine.send(request(upstream.url), 20.0) for _ in range(6)]

    assert [True] * 6 == [reply.content == body for reply in replies]


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": uvloop}) for uvloop in (False, True)])
async def test_an_upstream_that_speaks_first_and_closes_is_not_stormed():
    """One that takes nobody now: each call is one connection, whether its words come before our own or after."""
    calls = 20

    async def hold_up():
        while True:
            time.sleep(0.001)  # noqa: ASYNC251 - it is busy
            await asyncio.sleep(0)

    holding = asyncio.create_task(hold_up())
    with Abrupt(ok(b"{}", b"connection: close", status=b"503 Busy"), listens=False) as upstream:
        async with Engine() as engine:
            for _ in range(calls):
                with suppress(Unavailable):
                    assert 503 == (await engine.send(request(upstream.url), 2.0)).status
        holding.cancel()

    assert calls == upstream.connections


async def test_what_comes_behind_an_answer_before_anybody_has_read_it_is_unasked_for():
    """Uvloop reads up to 32 times before whoever waits goes on."""
    loop, told = asyncio.get_running_loop(), []
    async with Wire(ok(b"{}")) as wire:
        address = wire.url.removeprefix("http://").partition("/")[0].split(":")
        _, connection = await loop.create_connection(lambda: Connection(loop, partial(told.append, "noise")), *address)
        answer = connection.exchange(SecretBytes(b"GET / HTTP/1.1\r\n\r\n"), b"")
        for _ in range(2):
            connection.data_received(ok(b"{}"))

        assert b"{}" == (await answer).content
        assert (["noise"], False) == (told, connection.over())


async def test_a_call_that_is_cancelled_in_the_midst_of_its_answer_says_nothing_of_its_upstream():
    """What still comes was asked for; the upstream's other connections are kept as before."""
    body = bytes(8_000_000)
    async with Wire(ok(b"{}"), ok(b"{}"), ok(body)) as wire, Engine() as engine:
        await engine.meet(wire.url)
        await engine.meet(wire.url)
        for _ in range(5):
            call = asyncio.create_task(engine.send(request(wire.url), 5.0))
            await asyncio.sleep(0.002)
            call.cancel()
            await asyncio.wait([call])
            await asyncio.sleep(0.01)

        assert [True] == list(engine._quiet.values())


async def test_a_ca_file_that_is_not_there_is_no_connection():
    async with Engine(Connect(ca_file="/nowhere.pem")) as engine:
        with pytest.raises(Unreachable):
            await engine.send(request("https://127.0.0.1:9/"), 5.0)


async def test_a_connection_that_is_not_made_in_time_is_unreachable():
    """A full backlog: the kernel says nothing."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(server.getsockname())
    async with Engine() as engine:
        with pytest.raises(Unreachable):
            await engine.send(request(f"http://127.0.0.1:{server.getsockname()[1]}/"), 0.2)
    for held in (server, *fillers):
        held.close()


async def test_more_calls_than_there_is_room_for_wait_their_turn():
    with Upstream(delay=0.05, remember=False) as upstream:
        async with Engine() as engine:
            engine._room = anyio.Semaphore(4)
            url = f"{upstream.url}/embeddings"
            replies = await asyncio.gather(*(engine.send(request(url), 5.0) for _ in range(40)))
            assert {200} == {reply.status for reply in replies}
            assert 4 == upstream.most_in_flight
            upstream.delay = 60.0
            late = [asyncio.create_task(engine.send(request(url), 0.2)) for _ in range(6)]
            assert {TimedOut} == {type(failure) for failure in await asyncio.gather(*late, return_exceptions=True)}


async def test_five_thousand_cancelled_calls_leave_nothing_behind():
    rng = random.Random(11)
    gc.collect()  # what others left behind is not ours to be warned of
    with Upstream(delay=0.002, remember=False) as upstream, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        before = asyncio.all_tasks()
        async with Engine() as engine:
            url = f"{upstream.url}/embeddings"
            await engine.meet(url)

            async def leave():
                for _ in range(50):
                    task = asyncio.create_task(engine.send(request(url), 5.0))
                    for _ in range(rng.randint(0, 3)):
                        await asyncio.sleep(rng.choice([0, 0, 0.001, 0.003]))
                    task.cancel()
                    await asyncio.wait([task])

            await asyncio.gather(*(leave() for _ in range(100)))
            await until_on_loop(lambda: upstream.in_flight == 0 and len(upstream.open) == engine.idle)
            assert engine.held == engine.idle
            assert 512 == engine._room._value
        assert before == asyncio.all_tasks()
        await until_on_loop(lambda: not upstream.open)
        gc.collect()
    assert [] == [str(warning.message) for warning in warned]


LOOPS = """
import asyncio, gc, sys, warnings
from embedroute.backend import UpstreamRequest
from embedroute.http import LARGEST_HEAD, Connect
from embedroute.http.fast_engine import FastEngine
warnings.simplefilter("error")

async def main():
    engine = FastEngine()
    ask = UpstreamRequest.json({url!r}, {{"input": ["a"]}})
    for _ in range(3):
        print((await engine.send(ask, 5.0)).status)
        await asyncio.sleep(0.06)
    late = asyncio.create_task(engine.send(ask, 5.0))
    await asyncio.sleep(0)
    late.cancel()
    await asyncio.wait([late])
    await engine.aclose()
    print(len(asyncio.all_tasks()))

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main(), debug=True)
gc.collect()
"""


@pytest.mark.parametrize("loop", ["asyncio, debugging", "uvloop"])
def test_it_closes_without_a_word(loop):
    """No warning of an open socket or a pending task, under either loop; how busy the machine is, is not its to say."""
    with Upstream(remember=False) as upstream:
        script = LOOPS.format(url=f"{upstream.url}/embeddings")
        command = [sys.executable, "-X", "dev", "-c", script, loop]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own words

    assert ("200\n200\n200\n1\n", "") == (ran.stdout, SLOW.sub("", ran.stderr))


def test_two_loops_one_after_the_other_each_have_their_own_connections():
    with Upstream() as upstream:
        gateway = Gateway(
            Config(
                gateway=Settings(auth="open", engine="fast"),
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
