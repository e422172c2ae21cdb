"""Tests of the loopback upstream: its responses, its records and its cleanup."""

import base64
import contextlib
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time

import anyio
import httpx2
import numpy as np
import pytest

from tests.fault_upstream import (
    DOUBTFUL,
    HARMLESS,
    INPUT_FAULTS,
    LIES,
    MODES,
    STALLS,
    Upstream,
    vector_of,
    vectors_of,
)
from tests.fault_upstream.server import bound
from tests.support.wait import until

TEXTS = ["one", "two", "three"]
ENDLESS = {"gzip_bomb", "huge_body", "huge_chunked"}


@pytest.fixture(scope="module")
def shared():
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(shared):
    """One upstream for all, as good as new."""
    until(lambda: shared.in_flight == 0)
    shared.mode, shared.delay, shared.limit = "honest", 0.0, 2
    shared.requests.clear()
    return shared


@pytest.fixture(scope="module")
def client():
    with new_client() as client:
        yield client


def new_client(timeout=30.0):
    # A context of its own without certificates spares each client 20 ms of reading them.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx2.Client(
        trust_env=False, verify=context, timeout=timeout, headers={"accept-encoding": "identity"}
    )


def post(client, upstream, inputs=TEXTS, **others):
    return client.post(f"{upstream.url}/embeddings", json={"model": "m", "input": inputs, **others})


def floats(reply):
    rows = sorted(reply.json()["data"], key=lambda row: row["index"])
    with np.errstate(over="ignore"):
        return np.array([row["embedding"] for row in rows], dtype="<f8").astype("<f4")


def unpacked(reply):
    return np.array(
        [
            np.frombuffer(base64.b64decode(row["embedding"], validate=True), "<f4")
            for row in reply.json()["data"]
        ]
    )


def raw(upstream, *pieces, answers=1):
    """Send pieces of bytes; read until ``answers`` responses have come or the connection closes."""
    with socket.create_connection(("127.0.0.1", upstream.port), timeout=20) as wire:
        for piece in pieces:
            wire.sendall(piece)
            time.sleep(0.01)
        actual = b""
        while actual.count(b"HTTP/1.1 ") < answers and (more := wire.recv(65536)):
            actual += more
    return actual


@pytest.mark.parametrize("inputs", ["one", TEXTS, [1, 2, 3], [[1, 2], [3]], ["\u20ac", "\ud7ff"]])
@pytest.mark.parametrize("dimensions", [None, 1, 5, 20])
def test_returns_a_unit_vector_for_each_input(client, upstream, inputs, dimensions):
    items = inputs if isinstance(inputs, list) and not isinstance(inputs[0], int) else [inputs]
    expected = vectors_of(items, dimensions or 8)

    assert np.array_equal(expected, floats(post(client, upstream, inputs, dimensions=dimensions)))
    assert np.array_equal(
        expected,
        unpacked(post(client, upstream, inputs, dimensions=dimensions, encoding_format="base64")),
    )
    assert np.allclose(np.linalg.norm(expected, axis=1), 1)


def test_a_narrow_vector_is_a_truncated_wide_one():
    wide = vector_of("a", 1536)[:64].astype(float)

    assert np.allclose(wide / np.linalg.norm(wide), vector_of("a", 64), atol=1e-7)


def test_each_kind_of_input_and_each_space_has_different_vectors():
    vectors = [
        vector_of("1", 8),
        vector_of([1], 8),
        vector_of([1, 2], 8),
        vector_of("1", 8, space="other"),
    ]

    assert len({row.tobytes() for row in vectors}) == 4


def test_every_mode_is_in_exactly_one_table():
    tables = [HARMLESS, DOUBTFUL, LIES, INPUT_FAULTS]

    assert sorted(MODES) == sorted(name for table in tables for name in table)
    assert set(LIES) > STALLS


@pytest.mark.parametrize("mode", [mode for mode in HARMLESS if not mode.endswith("_when_reused")])
def test_harmless_modes_return_the_correct_vectors(upstream, mode):
    upstream.mode, upstream.limit = mode, 3
    with new_client() as fresh:
        reply = post(fresh, upstream, dimensions=4)

    assert np.array_equal(vectors_of(TEXTS, 4), floats(reply))


@pytest.mark.parametrize("mode", sorted(LIES.keys() - STALLS - ENDLESS))
def test_every_fault_differs_from_the_correct_response(upstream, mode):
    """To a strict reader: status 200, sound JSON, indexes 0 to n-1 and the right vectors."""
    upstream.mode = mode
    with new_client(timeout=0.5) as fresh:
        assert [_right(fresh, upstream, encoding) for encoding in ("float", "base64")] == [
            False,
            False,
        ]


def _right(client, upstream, encoding):
    try:
        reply = post(client, upstream, dimensions=4, encoding_format=encoding)
        rows = sorted(reply.json()["data"], key=lambda row: row["index"])
        read = floats(reply) if encoding == "float" else unpacked(reply)
    except (
        httpx2.HTTPError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        UnicodeDecodeError,
        RecursionError,
    ):
        return False
    numbered = all(type(row["index"]) is int and row["index"] == at for at, row in enumerate(rows))
    plain = (
        all(type(number) is float for row in rows for number in row["embedding"])
        or encoding == "base64"
    )
    return (
        numbered
        and plain
        and reply.status_code == 200
        and np.array_equal(read, vectors_of(TEXTS, 4))
    )


@pytest.mark.parametrize("mode", INPUT_FAULTS)
def test_an_input_fault_returns_a_client_error(client, upstream, mode):
    upstream.mode = mode

    assert post(client, upstream).status_code in {400, 413, 422, 500}


@pytest.mark.parametrize("mode", sorted(STALLS))
def test_a_stall_ends_at_once_when_the_client_disconnects(upstream, mode):
    upstream.mode = mode
    before = upstream.aborted
    with socket.create_connection(("127.0.0.1", upstream.port)) as wire:
        wire.sendall(_request(b'{"input":"a"}'))
        until(lambda: upstream.in_flight == 1)
        time.sleep(0.03)

    assert until(lambda: upstream.in_flight == 0) < 0.05
    assert upstream.aborted == before + 1
    assert upstream.requests[-1].gone


@pytest.mark.parametrize("mode", sorted(ENDLESS))
def test_endless_responses_are_sent_no_faster_than_they_are_read(upstream, mode):
    upstream.mode = mode
    with socket.create_connection(("127.0.0.1", upstream.port)) as wire:
        wire.sendall(_request(b'{"input":"a"}'))
        read = 0
        while read < 1 << 20:
            read += len(wire.recv(65536))

    assert until(lambda: upstream.in_flight == 0) < 0.2


def _request(body, **headers):
    lines = [f"{name}: {value}".encode() for name, value in headers.items()]
    return b"\r\n".join(
        [b"POST /v1/embeddings HTTP/1.1", b"Content-Length: %d" % len(body), *lines, b"", body]
    )


CHUNKED = b"POST /v1/embeddings?a=b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [_request(b'{"input":"a"}')],
        [_request(b'{"input":"a"}')[:30], _request(b'{"input":"a"}')[30:-3], b'a"}'],
        [CHUNKED, b'5;x=y\r\n{"inp\r\n', b'8\r\nut":"a"}\r', b"\n0\r\n", b"\r\n"],
        [CHUNKED + b'd\r\n{"input":"a"}\r\n0\r\ntrailer: 1\r\n\r\n'],
    ],
)
def test_requests_are_read_from_any_pieces(upstream, pieces):
    assert raw(upstream, *pieces).startswith(b"HTTP/1.1 200 OK\r\n")
    assert upstream.requests[-1].body == b'{"input":"a"}'


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /v1/models HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /v1/embeddings HTTP/1.1\r\n\r\n", b"404"),
        (_request(b"{}"), b"400"),
        (_request(b"not json"), b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
    ],
)
def test_rejects_invalid_requests(upstream, request_bytes, status):
    assert raw(upstream, request_bytes).split(b" ")[1] == status


def test_a_connection_is_kept_and_pipelined_requests_are_answered_in_order(upstream):
    before = upstream.connections
    answer = raw(upstream, _request(b'{"input":"a"}') + _request(b'{"input":"b"}'), answers=2)

    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert [(ask.inputs, ask.nth) for ask in upstream.requests] == [(["a"], 1), (["b"], 2)]
    assert upstream.connections == before + 1


def test_records_a_request_as_it_was_sent(client, upstream):
    began = time.monotonic()
    client.post(
        f"{upstream.url}/embeddings",
        json={"input": "a"},
        headers={"Authorization": "Bearer sk-1", "X-Odd": "1"},
    )
    (ask,) = upstream.requests

    assert (ask.method, ask.path, ask.key, ask.headers["x-odd"]) == (
        "POST",
        "/v1/embeddings",
        "sk-1",
        "1",
    )
    assert (ask.json, ask.mode, ask.gone) == ({"input": "a"}, "honest", False)
    assert began <= ask.at <= time.monotonic()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("status_503", [503, 503, 503]),
        (["status_503", "status_429", "honest"], [503, 429, 200]),
        (iter(["status_503", "honest"]), [503, 200, 200]),
        (lambda ask: "status_400" if "two" in ask.inputs else "honest", [400, 400, 400]),
    ],
)
def test_modes_can_be_a_sequence_or_a_function_of_the_request(client, upstream, mode, expected):
    upstream.mode = mode

    assert expected == [post(client, upstream).status_code for _ in expected]


def test_rejects_an_unknown_mode(upstream):
    with pytest.raises(ValueError, match="No such mode: honset"):
        upstream.mode = ["honest", "honset"]


def test_a_key_is_repeated_by_the_modes_that_leak_it(client, upstream):
    leaks = [mode for mode in MODES if mode.startswith("key_in_")] + ["status_401"]
    upstream.mode = leaks
    replies = [
        client.post(f"{upstream.url}/embeddings", json={"input": "a"}, headers={"api-key": "sk-1"})
        for _ in leaks
    ]

    assert all("sk-1" in reply.text for reply in replies)


def test_records_a_followed_redirect(client, upstream):
    upstream.mode = "redirect"

    assert post(client, upstream).status_code == 307
    assert upstream.followed == []
    assert (
        client.post(
            f"{upstream.url}/embeddings", json={"input": "a"}, follow_redirects=True
        ).status_code
        == 200
    )
    assert [ask.inputs for ask in upstream.followed] == [["a"]]


@pytest.mark.parametrize("mode", ["closed_when_reused", "reset_when_reused"])
def test_closes_a_reused_connection(upstream, mode):
    upstream.mode = mode
    with new_client() as fresh:
        assert post(fresh, upstream).status_code == 200
        with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
            post(fresh, upstream)
        assert post(fresh, upstream).status_code == 200


def test_reset_and_fin_differ(upstream):
    upstream.mode = ["fin_before_headers", "reset_before_headers"]

    assert raw(upstream, _request(b'{"input":"a"}')) == b""
    with pytest.raises(ConnectionResetError):
        raw(upstream, _request(b'{"input":"a"}'))


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_serves_many_requests_at_once(anyio_backend):
    """128 connections, four requests each, under asyncio and trio."""
    del anyio_backend
    count, replies = 128, []
    limits = httpx2.Limits(max_connections=count, max_keepalive_connections=count)
    with Upstream(delay=1.0) as upstream:
        async with (
            httpx2.AsyncClient(trust_env=False, limits=limits, timeout=60) as client,
            anyio.create_task_group() as tasks,
        ):
            for at in range(count):
                tasks.start_soon(_ask_one, client, upstream, f"text {at}", replies)

        assert upstream.most_in_flight > count // 4
        assert len(upstream.requests) == len(replies) == count
    assert all(np.array_equal([vector_of(text)], floats(reply)) for text, reply in replies)


async def _ask_one(client, upstream, text, replies):
    replies.append((text, await client.post(f"{upstream.url}/embeddings", json={"input": text})))


def test_records_a_disconnect_during_the_delay(upstream):
    upstream.delay, before = 300, upstream.aborted
    wire = socket.create_connection(("127.0.0.1", upstream.port))
    wire.sendall(_request(b'{"input":"a"}'))
    until(lambda: upstream.in_flight == 1)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()
    until(lambda: upstream.in_flight == 0)

    assert upstream.aborted == before + 1


def test_down_closes_connections_and_up_serves_again(client):
    with Upstream() as upstream:
        for _ in range(3):
            assert post(client, upstream).status_code == 200
            upstream.down()
            with pytest.raises(httpx2.ConnectError), new_client() as fresh:
                post(fresh, upstream)
            upstream.up()
            with new_client() as fresh:
                assert post(fresh, upstream).status_code == 200
        upstream.down()


def test_leaves_no_threads_or_sockets():
    """No thread, no socket, even with a stall under way; the port can be taken again at once."""
    threads = set(threading.enumerate())
    with Upstream("stalled") as upstream:
        wire = socket.create_connection(("127.0.0.1", upstream.port))
        wire.sendall(_request(b'{"input":"a"}'))
        until(lambda: upstream.in_flight == 1)
    with wire, contextlib.suppress(ConnectionResetError):
        assert wire.recv(1) == b""

    assert set(threading.enumerate()) <= threads
    assert (upstream.in_flight, upstream.aborted, upstream.open) == (0, 0, set())
    with Upstream(port=upstream.port) as again:
        assert again.port == upstream.port
        with pytest.raises(OSError, match="in use"), Upstream(port=again.port):
            pass


def test_the_process_can_be_killed_and_restarted_on_the_same_port(client):
    # Held here, so that no other process gets the port in between.
    with bound(0) as held:
        port = str(held.getsockname()[1])
        with _process("--port", port) as url, _process("--mode", "status_503,honest") as other:
            assert client.post(f"{url}/embeddings", json={"input": "a"}).status_code == 200
            assert [
                client.post(f"{other}/embeddings", json={"input": "a"}).status_code
                for _ in range(2)
            ] == [503, 200]
        with _process("--port", port, "--width", "3") as same, new_client() as fresh:
            reply = fresh.post(f"{same}/embeddings", json={"input": "a"})

    assert (same, floats(reply).shape) == (url, (1, 3))
    assert same == f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def _process(*options):
    command = [sys.executable, "-m", "tests.fault_upstream", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own interpreter
        yield process.stdout.readline().strip()
        process.kill()
