"""Tests that a failed call says why in words, with real sockets and both transports."""

# The plugin of anyio reads `anyio_backend`.
# ruff: noqa: ARG001

import errno
import re
import socket
import ssl
import struct
import threading
from contextlib import contextmanager, suppress

import anyio
import pytest

from embedroute import errors
from embedroute.backend import Secret, UpstreamRequest
from embedroute.errors import EmbedrouteError, TLSError, UpstreamError
from embedroute.reasons import describe, describe_timeout
from embedroute.transport import ExchangeLimits, Resolver, TransportConfig, create_transport
from tests.support.black_hole import black_hole
from tests.support.tls import certified
from tests.support.wait import until_on_loop

RUNS = [
    pytest.param(("asyncio", {"use_uvloop": False}), "http1", id="asyncio-http1"),
    pytest.param(("asyncio", {"use_uvloop": True}), "http1", id="uvloop-http1"),
    pytest.param("asyncio", "httpx2", id="asyncio-httpx2"),
    pytest.param("trio", "httpx2", id="trio-httpx2"),
]
transports = pytest.mark.parametrize(("anyio_backend", "name"), RUNS)
CLASS_NAME = re.compile(r"\b[A-Z][a-z]+[A-Z]\w*|\w+(?:Error|Exception)\b")
"""A name in CamelCase, or one that ends like an exception."""


@contextmanager
def answering(answer, context=None):
    """Serve ``answer(socket)`` on a free port of loopback, over TLS if there is a ``context``."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with suppress(OSError), connection:
                    if context is None:
                        answer(connection)
                    else:
                        with context.wrap_socket(connection, server_side=True) as encrypted:
                            answer(encrypted)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def read_request(connection):
    received = b""
    while not received.endswith(b"{}"):
        received += connection.recv(65536)


def reset(connection):
    read_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def reset_in_the_middle(connection):
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{")
    connection.recv(0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def close(connection):
    read_request(connection)


def close_in_the_middle(connection):
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{")


def answer_nonsense(connection):
    read_request(connection)
    connection.sendall(b"\x00\x01 nonsense\r\n\r\n")


def answer_without_tls(connection):
    connection.recv(10)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")


def answer_nothing(connection):
    read_request(connection)
    connection.recv(1)


@contextmanager
def refusing():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield closed.getsockname()[1]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    """Server contexts by the kind of their certificate, and the file of the trusted one."""
    trusted, good = certified(tmp_path_factory.mktemp("good"))
    _, unknown = certified(tmp_path_factory.mktemp("unknown"))
    ended, expired = certified(tmp_path_factory.mktemp("expired"), until="20200102000000Z")
    return {
        "good": (good, trusted),
        "self-signed": (unknown, None),
        "unknown": (unknown, trusted),
        "expired": (expired, ended),
    }


async def fail(name, url, config=None, resolver=None, timeout=5.0):
    """Return the error of a call to ``url``."""
    transport = create_transport(
        name, config or TransportConfig(), None, on_asyncio=name == "http1", resolver=resolver
    )
    request = UpstreamRequest(
        url=url, content=b"{}", headers={"authorization": Secret("sk-1"), "x-pad": "a"}
    )
    with anyio.fail_after(8):
        try:
            await transport.send(request, timeout, ExchangeLimits(provider="tei"))
        except EmbedrouteError as error:
            return error
        finally:
            await transport.aclose()
    raise AssertionError("the call succeeded")


def check(error, reason):
    assert reason == error.reason == describe(error)
    assert reason in error.message
    assert not CLASS_NAME.search(error.message)


@pytest.mark.anyio
@transports
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reset, "connection reset"),
        (reset_in_the_middle, "connection reset"),
        (close, "connection closed before the response was complete"),
        (close_in_the_middle, "connection closed before the response was complete"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_a_broken_connection_is_described(anyio_backend, name, answer, reason):
    with answering(answer) as port:
        check(await fail(name, f"http://127.0.0.1:{port}/v1"), reason)


@pytest.mark.anyio
@transports
async def test_a_response_that_is_not_http_is_described(anyio_backend, name):
    with answering(answer_nonsense) as port:
        error = await fail(name, f"http://127.0.0.1:{port}/v1")

    check(error, "response is not valid HTTP")


@pytest.mark.anyio
@transports
async def test_a_refused_connection_is_described(anyio_backend, name):
    with refusing() as port:
        error = await fail(name, f"http://127.0.0.1:{port}/v1")

    check(error, "connection refused")
    assert "Cannot connect to the upstream: connection refused." == error.message


@pytest.mark.anyio
@transports
async def test_a_refused_connection_to_all_addresses_is_described(anyio_backend, name):
    def look_up(host, port):
        return socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM) * 2

    with refusing() as port:
        error = await fail(name, f"http://two.example:{port}/v1", resolver=Resolver(look_up))

    check(error, "connection refused")


@pytest.mark.anyio
@transports
async def test_a_refused_connection_to_the_proxy_is_described(anyio_backend, name):
    with refusing() as port:
        proxy = Secret(f"http://me:pass@127.0.0.1:{port}")
        error = await fail(name, "http://up.example/v1", TransportConfig(proxy=proxy))

    assert "connection refused" in error.reason
    assert f"the proxy http://127.0.0.1:{port}: connection refused." in error.message
    assert not CLASS_NAME.search(error.message)


def unknown_name(host, port):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def no_address(host, port):
    return []


@pytest.mark.anyio
@transports
@pytest.mark.parametrize("look_up", [unknown_name, no_address])
async def test_a_failed_dns_lookup_is_described(anyio_backend, name, look_up):
    error = await fail(name, "http://gone.example/v1", resolver=Resolver(look_up))

    check(error, "DNS lookup failed")


@pytest.mark.anyio
@transports
@pytest.mark.parametrize(
    ("kind", "host", "reason"),
    [
        ("expired", "localhost", "certificate expired"),
        ("self-signed", "localhost", "self-signed certificate"),
        ("unknown", "localhost", "self-signed certificate"),
        ("good", "other.example", "certificate for another host name"),
        ("good", "127.0.0.1", "certificate for another IP address"),
    ],
)
async def test_an_invalid_certificate_is_described(
    anyio_backend, name, contexts, kind, host, reason
):
    context, trusted = contexts[kind]

    def look_up(_host, port):
        return socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)

    with answering(close, context) as port:
        config = TransportConfig(ca_file=trusted)
        error = await fail(name, f"https://{host}:{port}/v1", config, Resolver(look_up))

    check(error, reason)
    assert TLSError is type(error)


@pytest.mark.anyio
@transports
async def test_a_server_without_tls_is_described(anyio_backend, name):
    with answering(answer_without_tls) as port:
        error = await fail(name, f"https://127.0.0.1:{port}/v1")

    check(error, "server does not use TLS")
    assert TLSError is type(error)


@pytest.mark.anyio
@transports
async def test_a_connection_that_ends_in_the_tls_handshake_is_described(anyio_backend, name):
    with answering(lambda connection: connection.recv(10)) as port:
        error = await fail(name, f"https://127.0.0.1:{port}/v1")

    assert error.reason in {"connection closed", "connection reset"}
    assert not CLASS_NAME.search(error.message)


@pytest.mark.anyio
@transports
async def test_a_call_that_is_cancelled_in_the_tls_handshake_closes_its_connection(
    anyio_backend, name
):
    received = []

    def read_to_the_end(connection):
        connection.settimeout(20)
        while piece := connection.recv(65536):
            received.append(piece)
        received.append(b"")

    with answering(read_to_the_end) as port:
        transport = create_transport(name, TransportConfig(), None, on_asyncio=name == "http1")
        request = UpstreamRequest(url=f"https://127.0.0.1:{port}/v1", content=b"{}", headers={})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(transport.send, request, 30.0, ExchangeLimits(provider="tei"))
            await until_on_loop(lambda: received)
            tasks.cancel_scope.cancel()
        await until_on_loop(lambda: not received[-1])
        await transport.aclose()


@pytest.mark.anyio
@transports
async def test_a_timeout_of_the_response_states_the_seconds(anyio_backend, name):
    with answering(answer_nothing) as port:
        error = await fail(name, f"http://127.0.0.1:{port}/v1", timeout=0.3)

    check(error, "timed out after 0.3 s")
    assert "The upstream timed out after 0.3 s." == error.message


@pytest.mark.anyio
@transports
async def test_a_timeout_of_connecting_states_the_seconds(anyio_backend, name):
    with black_hole() as (host, port):
        error = await fail(name, f"http://{host}:{port}/v1", timeout=0.5)

    assert re.fullmatch(r"connecting timed out after 0\.[45] s", error.reason)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(), "connection refused"),
        (OSError(errno.EHOSTUNREACH, "no route"), "host unreachable"),
        (OSError(errno.ENETUNREACH, "no route"), "network unreachable"),
        (OSError(errno.EACCES, "denied"), "connection not permitted"),
        (BrokenPipeError(), "connection reset"),
        (ConnectionAbortedError(), "connection closed"),
        (TimeoutError(), "timed out"),
        (EOFError(), "connection closed"),
        (ssl.SSLError("no reason"), "TLS handshake failed"),
        (ssl.SSLEOFError(), "connection closed"),
        (ExceptionGroup("all", [ValueError(), ConnectionResetError()]), "connection reset"),
        (ValueError("text of an input"), ""),
        (OSError("text"), ""),
        (errors.ConnectError("Cannot connect."), "connection failed"),
        (errors.UpstreamUnavailable("It failed.", upstream_status=503), "answered 503"),
        (errors.UpstreamUnavailable("It failed."), "failed"),
        (errors.RateLimited("Slow down.", upstream_status=429), "rate limited"),
        (errors.UpstreamAuthError("No."), "API key rejected"),
        (errors.InvalidRequest("No."), "request not supported"),
        (errors.InternalError("It failed."), "internal error"),
    ],
    ids=lambda value: repr(value) if isinstance(value, Exception) else None,
)
def test_an_exception_is_described_in_words(error, words):
    assert words == describe(error)


def test_the_cause_of_an_exception_is_described():
    """Client libraries wrap the error of the system in their own."""
    wrapper = ValueError("wrapped")
    wrapper.__cause__ = RuntimeError("again")
    wrapper.__cause__.__context__ = ConnectionRefusedError()

    assert "connection refused" == describe(wrapper)
    assert not describe(wrapper, outside=wrapper.__cause__.__context__)


def test_the_description_of_no_error_is_the_name_of_a_class():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    shown = {
        kind: describe(kind("Text of an upstream."))
        for kind in kinds
        if issubclass(kind, UpstreamError)
    }

    assert len(shown) > 15
    assert not [words for words in shown.values() if not words or CLASS_NAME.search(words)]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (5.0, "timed out after 5 s"),
        (4.98, "timed out after 5 s"),
        (0.295, "timed out after 0.3 s"),
        (0.031, "timed out after 0.031 s"),
        (120.0, "timed out after 120 s"),
    ],
)
def test_a_time_limit_is_shown_briefly(seconds, words):
    assert words == describe_timeout(seconds)
    assert f"DNS lookup {words}" == describe_timeout(seconds, "DNS lookup")
