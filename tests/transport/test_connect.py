"""Tests of how transports connect: addresses of a name, proxies, trust and connection limits."""

# The plugin of anyio reads `anyio_backend`, and the resource of a test is opened before its request.
# ruff: noqa: ARG001, SIM117

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import anyio
import pytest

from embedroute import Config, Endpoint, Gateway, Model, Provider
from embedroute.backend import Secret, UpstreamRequest
from embedroute.errors import ConfigError, ConnectError, PoolTimeout
from embedroute.transport import ExchangeLimits, Resolver, TransportConfig, create_transport
from embedroute.transport.connection_slots import ConnectionSlots
from embedroute.transport.http1.pool import Http1Transport
from embedroute.transport.httpx2 import Httpx2Transport
from embedroute.transport.tls import create_ssl_context
from tests.fault_upstream import Upstream
from tests.support.black_hole import black_hole
from tests.support.elapsed import measured
from tests.support.empty_objects import EmptyObjectServer
from tests.support.proxy import ForwardProxy
from tests.support.tls import certified
from tests.support.wait import until_on_loop

pytestmark = pytest.mark.anyio

TRANSPORTS = {"http1": Http1Transport, "httpx2": lambda connect: Httpx2Transport(None, connect)}
RUNS = [
    pytest.param(("asyncio", {"use_uvloop": False}), "http1", id="asyncio-http1"),
    pytest.param(("asyncio", {"use_uvloop": True}), "http1", id="uvloop-http1"),
    pytest.param("asyncio", "httpx2", id="asyncio-httpx2"),
    pytest.param("trio", "httpx2", id="trio-httpx2"),
]
transports = pytest.mark.parametrize(("anyio_backend", "name"), RUNS)
only_http1 = pytest.mark.parametrize(("anyio_backend", "name"), RUNS[:2])


@contextmanager
def serving(host="127.0.0.1", tls=None):
    server = EmptyObjectServer(host)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def cert(tmp_path_factory):
    """The file of a self-signed certificate for localhost, and a server context with it."""
    return certified(tmp_path_factory.mktemp("tls"))


async def send(transport, url, timeout=8.0, limits=None):
    request = UpstreamRequest.json(url, {"input": ["a"]}, bearer=Secret("sk-1"))
    return await transport.send(request, timeout, limits or ExchangeLimits())


async def send_once(transport, url, timeout=8.0):
    try:
        return await send(transport, url, timeout)
    finally:
        await transport.aclose()


# Addresses.


def answering(*addresses, calls=None):
    """Return a lookup with fixed addresses; it appends the host of each call to ``calls``."""

    def look_up(host, port):
        del port
        if calls is not None:
            calls.append(host)
        return [
            (
                socket.AF_INET6 if ":" in address[0] else socket.AF_INET,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                address,
            )
            for address in addresses
        ]

    return look_up


@transports
async def test_tries_the_next_address_if_the_first_does_not_answer(anyio_backend, name):
    """The system's own timeout for a connection is longer than that of a request."""
    with black_hole() as hole, serving() as server:
        look_up = answering(hole, server.server_address[:2])
        transport = create_transport(
            "auto",
            TransportConfig(),
            None,
            on_asyncio=name == "http1",
            resolver=Resolver(look_up),
        )
        async with measured() as elapsed:
            reply = await send_once(transport, "http://two.example/v1")

    assert 200 == reply.status
    assert 0.2 < elapsed.seconds
    assert elapsed.ticks < 3


def create(name, look_up):
    resolver = Resolver(look_up)
    on_asyncio = name == "http1"
    return create_transport(
        "auto", TransportConfig(), None, on_asyncio=on_asyncio, resolver=resolver
    )


@transports
async def test_tries_the_next_address_before_the_first_attempt_has_ended(anyio_backend, name):
    """One address after the other would take more than 2 s."""
    with black_hole() as hole, serving() as server:
        look_up = answering(hole, hole, server.server_address[:2])
        began = time.monotonic()
        reply = await send_once(create(name, look_up), "http://three.example/v1")
        took = time.monotonic() - began

    assert 200 == reply.status
    assert 0.45 < took < 1.5


@transports
async def test_a_slow_response_starts_no_second_attempt(anyio_backend, name):
    """The first address has accepted the connection, so the request is sent there only."""
    with Upstream(delay=0.6) as upstream, socket.create_server(("127.0.0.1", 0)) as second:
        second.setblocking(False)
        url = urlsplit(upstream.url)
        look_up = answering((url.hostname, url.port), second.getsockname())
        transport = create(name, look_up)
        address = f"http://two.example{url.path}/embeddings"
        request = UpstreamRequest.json(address, {"model": "m", "input": ["a"]})
        reply = await transport.send(request, 10.0)
        await transport.aclose()
        with pytest.raises(BlockingIOError):
            second.accept()

    assert 200 == reply.status
    assert len(upstream.requests) == 1


@transports
async def test_tries_both_address_families_early(anyio_backend, name):
    """One address after the other would take 7 s."""
    with black_hole() as hole, serving("::1") as server:
        look_up = answering(*[hole] * 30, server.server_address[:2])
        reply = await send_once(create(name, look_up), "http://many.example/v1")

    assert 200 == reply.status


@transports
async def test_tries_the_next_address_at_once_if_the_first_refuses(anyio_backend, name):
    """One address every 250 ms would take 5 s."""
    with serving() as server:
        look_up = answering(*[("127.0.0.1", 9)] * 20, server.server_address[:2])
        began = time.monotonic()
        reply = await send_once(create(name, look_up), "http://two.example/v1")

    assert 200 == reply.status
    assert time.monotonic() - began < 2.5


@transports
async def test_fails_if_no_address_answers(anyio_backend, name):
    """The timeout is for all addresses together."""
    with black_hole() as hole:
        began = time.monotonic()
        with pytest.raises(ConnectError, match=r"Cannot connect to the upstream"):
            await send_once(create(name, answering(*[hole] * 4)), "http://four.example/v1", 1.0)

    assert time.monotonic() - began < 2.5


@only_http1
async def test_a_name_without_addresses_is_a_connect_error(anyio_backend, name):
    with pytest.raises(ConnectError, match="Cannot connect to the upstream"):
        await send_once(Http1Transport(resolver=Resolver(answering())), "http://none.example/v1")


@only_http1
async def test_each_new_connection_resolves_the_name_again(anyio_backend, name):
    """A connection of ``max_age`` is not kept, so a busy host follows a change in DNS."""
    calls = []
    with serving() as server:
        look_up = answering(server.server_address[:2], calls=calls)
        kept = Http1Transport(resolver=Resolver(look_up))
        for _ in range(2):
            await send(kept, "http://kept.example/v1", limits=ExchangeLimits(rest=0.0))
        old = Http1Transport(resolver=Resolver(look_up, ttl=0.0), max_age=0.0)
        for _ in range(2):
            await send(old, "http://old.example/v1", limits=ExchangeLimits(rest=0.0))
        await kept.aclose()
        await old.aclose()

    assert ["kept.example", "old.example", "old.example"] == calls


@transports
async def test_the_certificate_is_checked_for_the_name_and_not_for_the_address(
    anyio_backend, name, cert
):
    with serving(tls=cert[1]) as server:
        transport = create_transport(
            "auto",
            TransportConfig(ca_file=cert[0]),
            None,
            on_asyncio=name == "http1",
            resolver=Resolver(answering(server.server_address[:2])),
        )
        assert 200 == (await send(transport, "https://localhost/v1")).status
        with pytest.raises(ConnectError):
            await send(transport, "https://other.example/v1")
        await transport.aclose()

    [(_, headers)] = server.requests
    assert "localhost" == (headers.get("host") or headers.get("Host"))


# Proxies.


def through(proxy, cert=None, **settings):
    ca = cert[0] if cert else None
    return TransportConfig(proxy=Secret(proxy.url()), ca_file=ca, **settings)


CREDENTIALS = b"proxy-authorization: basic dxnlcjpwqhnz"


@transports
@pytest.mark.parametrize("tls", [False, True])
async def test_sends_the_whole_url_to_a_proxy_without_tls(anyio_backend, name, tls, cert):
    """The credentials of the proxy are in each request, and connections to it are kept."""
    with ForwardProxy(tls=cert[1] if tls else None) as proxy:
        transport = TRANSPORTS[name](through(proxy, cert))
        for _ in range(2):
            reply = await send(
                transport, "http://upstream.invalid:81/v1?a=b", limits=ExchangeLimits(rest=0.0)
            )
        await transport.aclose()

    assert b"{}" == reply.content
    assert 2 == len(proxy.heads)
    for head in proxy.heads:
        assert head.startswith(b"POST http://upstream.invalid:81/v1?a=b HTTP/1.1\r\n")
        assert b"\r\nhost: upstream.invalid:81\r\n" in head.lower()
        assert CREDENTIALS in head.lower()
        assert b"authorization: bearer sk-1" in head.lower()


@transports
@pytest.mark.parametrize("tls", [False, True])
async def test_opens_a_tunnel_to_an_upstream_with_tls(anyio_backend, name, tls, cert):
    """The proxy sees the name of the host, and the upstream nothing of the proxy."""
    with serving(tls=cert[1]) as server:
        port = server.server_address[1]
        with ForwardProxy(port, tls=cert[1] if tls else None) as proxy:
            transport = TRANSPORTS[name](through(proxy, cert))
            for _ in range(3):
                reply = await send(transport, f"https://localhost:{port}/v1")
            await transport.aclose()

    assert b"{}" == reply.content
    assert proxy.heads
    for head in proxy.heads:
        assert head.startswith(b"CONNECT localhost:%d HTTP/1.1\r\n" % port)
        assert CREDENTIALS in head.lower()
        assert b"sk-1" not in head
    assert ["/v1"] * 3 == [path for path, _ in server.requests]
    assert [] == [
        name for _, headers in server.requests for name in headers if "proxy" in name.lower()
    ]


@transports
async def test_a_tunnel_checks_the_name_in_the_certificate_of_the_upstream(
    anyio_backend, name, cert
):
    with serving(tls=cert[1]) as server, ForwardProxy(server.server_address[1]) as proxy:
        with pytest.raises(ConnectError, match="through the proxy http://localhost:"):
            await send_once(TRANSPORTS[name](through(proxy, cert)), "https://other.example/v1")

    assert [] == server.requests


@transports
async def test_checks_the_certificate_of_the_proxy(anyio_backend, name, cert):
    with ForwardProxy(tls=cert[1]) as proxy:
        with pytest.raises(ConnectError, match="proxy https://localhost:"):
            await send_once(TRANSPORTS[name](through(proxy)), "http://upstream.invalid/v1")

    assert [] == proxy.heads


REQUIRED = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n"


REJECTED_CREDENTIALS = r"The proxy http://localhost:\d+ rejected the gateway's credentials"
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 3\r\n\r\nno!"


@transports
@pytest.mark.parametrize(
    ("origin", "refusal", "message"),
    [
        ("https://upstream.invalid", REQUIRED, REJECTED_CREDENTIALS),
        ("http://upstream.invalid", REQUIRED, REJECTED_CREDENTIALS),
        (
            "https://upstream.invalid",
            BAD_GATEWAY,
            r"The proxy http://localhost:\d+ refused to connect to upstream.invalid:443 with status 502",
        ),
        (
            "https://upstream.invalid:0",
            BAD_GATEWAY,
            r"The proxy http://localhost:\d+ refused to connect to upstream.invalid:0 with status 502",
        ),
    ],
    ids=["tunnel-407", "plain-407", "tunnel-502", "tunnel-502-port-0"],
)
async def test_a_refusal_of_the_proxy_names_it_without_its_password(
    anyio_backend, name, origin, refusal, message
):
    with ForwardProxy(refusal=refusal) as proxy:
        with pytest.raises(ConnectError, match=message) as caught:
            await send_once(TRANSPORTS[name](through(proxy)), f"{origin}/v1")

    assert [] == [text for text in ("p@ss", "p%40ss") if text in str(caught.value)]


INVALID = r"The proxy http://localhost:\d+ refused to connect to upstream.invalid:443 without a valid HTTP response"


@only_http1
@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (None, INVALID),
        (b"SSH-2.0-OpenSSH\r\n\r\n", INVALID),
        (b"a" * 70_000, INVALID),
        (
            b"HTTP/1.1 100 Continue\r\n\r\n",
            r"through the proxy http://localhost:\d+: connecting timed out after 0\.5 s",
        ),
    ],
    ids=["closes", "ssh", "endless", "only-1xx"],
)
async def test_an_invalid_response_to_connect_is_a_connect_error(
    anyio_backend, name, refusal, message
):
    timeout = 0.5 if message != INVALID else 8.0
    with ForwardProxy(refusal=refusal) as proxy:
        with pytest.raises(ConnectError, match=message):
            await send_once(Http1Transport(through(proxy)), "https://upstream.invalid/v1", timeout)


@only_http1
async def test_bytes_of_the_proxy_after_its_response_end_the_tunnel(anyio_backend, name, cert):
    """They may be a response to another request."""
    with serving(tls=cert[1]) as server:
        port = server.server_address[1]
        with ForwardProxy(port, surplus=b"HTTP/1.1 200 OK\r\n\r\n") as proxy:
            with pytest.raises(ConnectError, match="without a valid HTTP response"):
                await send_once(Http1Transport(through(proxy, cert)), f"https://localhost:{port}/")

    assert [] == server.requests


@transports
async def test_an_unreachable_proxy_is_named(anyio_backend, name):
    connect = TransportConfig(proxy=Secret("http://user:secret@127.0.0.1:9"))
    with pytest.raises(
        ConnectError, match=r"the proxy http://127\.0\.0\.1:9: connection refused"
    ) as caught:
        await send_once(TRANSPORTS[name](connect), "http://upstream.invalid/v1")

    assert "secret" not in caught.value.message


@only_http1
async def test_cancelling_a_request_closes_its_connection_to_the_proxy(anyio_backend, name):
    with ForwardProxy(refusal=b"HTTP/1.1 100 Continue\r\n\r\n") as proxy:
        transport = Http1Transport(through(proxy))
        call = asyncio.create_task(send(transport, "https://upstream.invalid/v1"))
        await until_on_loop(lambda: proxy.heads)
        call.cancel()
        await asyncio.wait([call])
        await until_on_loop(proxy.closed.is_set)
        await transport.aclose()

    assert call.cancelled()


# Trust.


@pytest.fixture(scope="module")
def cert_dir(cert, tmp_path_factory):
    """A directory as SSL_CERT_DIR names it: each file is named by the hash of its subject."""
    place = tmp_path_factory.mktemp("authorities")
    command = ["openssl", "x509", "-noout", "-hash", "-in", cert[0]]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - fixed arguments
    shutil.copy(cert[0], place / f"{ran.stdout.strip()}.0")
    return str(place)


@transports
@pytest.mark.parametrize(
    ("settings", "reached"),
    [
        ({"tls_trust": "environment", "environment_file": "FILE"}, True),
        ({"tls_trust": "environment", "environment_dir": "DIRECTORY"}, True),
        ({"tls_trust": "environment", "ca_file": "FILE"}, True),
        ({"tls_trust": "environment"}, False),
        ({"tls_trust": "system", "environment_file": "FILE"}, False),
        ({"tls_trust": "system", "ca_file": "FILE"}, True),
        ({"tls_trust": "ca_file", "ca_file": "FILE"}, True),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
async def test_the_setting_selects_the_trusted_authorities(
    anyio_backend, name, settings, reached, cert, cert_dir
):
    places = {"FILE": cert[0], "DIRECTORY": cert_dir}
    connect = TransportConfig(**{key: places.get(value, value) for key, value in settings.items()})
    with serving(tls=cert[1]) as server:
        sent = send_once(
            TRANSPORTS[name](connect), f"https://localhost:{server.server_address[1]}/"
        )
        if reached:
            assert 200 == (await sent).status
        else:
            with pytest.raises(ConnectError):
                await sent


def test_a_ca_file_alone_excludes_the_authorities_of_the_system(cert):
    only = create_ssl_context(TransportConfig(tls_trust="ca_file", ca_file=cert[0]))

    assert 1 == only.cert_store_stats()["x509"]
    assert ssl.CERT_REQUIRED == only.verify_mode
    assert only.check_hostname


@transports
async def test_certificates_are_loaded_only_for_an_upstream_with_tls(anyio_backend, name):
    """Loading those of the system takes longer than building the whole gateway."""
    missing = TransportConfig(tls_trust="ca_file", ca_file="/nope.pem")
    with Upstream() as upstream:
        plain = await send_once(TRANSPORTS[name](missing), f"{upstream.url}/embeddings")
        with pytest.raises(ConnectError):
            await send_once(TRANSPORTS[name](missing), "https://localhost:9/v1/embeddings")

    assert 200 == plain.status


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"SSL_CERT_FILE": "/nope.pem"}, "SSL_CERT_FILE /nope.pem cannot be read: No such file"),
        ({"SSL_CERT_FILE": __file__}, f"SSL_CERT_FILE {__file__} contains no certificate"),
        ({"SSL_CERT_DIR": "/nope"}, "SSL_CERT_DIR /nope is not a directory"),
    ],
)
def test_a_gateway_does_not_start_without_the_authorities_of_its_environment(environ, message):
    config = Config(
        gateway={"auth": "open", "tls_trust": "environment"}, providers={"hashed": Provider()}
    )
    with pytest.raises(ConfigError) as caught:
        Gateway(config, environ=environ)

    assert caught.value.message.startswith(f'[gateway] tls_trust = "environment": {message}')


def test_the_environment_is_not_read_by_default():
    config = Config(gateway={"auth": "open"}, providers={"hashed": Provider()})

    Gateway(config, environ={"SSL_CERT_FILE": "/nope.pem", "HTTPS_PROXY": "nonsense"})


# Connection limits.


@transports
async def test_requests_over_the_connection_limit_wait(anyio_backend, name):
    limits = ExchangeLimits(provider="one", max_connections=3)
    statuses = []
    with Upstream(delay=0.03, remember=False) as upstream:
        transport = TRANSPORTS[name](TransportConfig())
        url = f"{upstream.url}/embeddings"

        async def call():
            statuses.append((await send(transport, url, limits=limits)).status)

        async with anyio.create_task_group() as group:
            for _ in range(15):
                group.start_soon(call)
        await transport.aclose()

    assert [200] * 15 == statuses
    assert 3 == upstream.most_in_flight


@transports
async def test_the_limits_of_two_providers_count_the_same_connections(anyio_backend, name):
    """``max_connections`` limits the connections to a host, not those of one provider."""
    with Upstream(delay=0.03, remember=False) as upstream:
        transport = TRANSPORTS[name](TransportConfig())
        url = f"{upstream.url}/embeddings"
        async with anyio.create_task_group() as group:
            for number in range(12):
                limits = ExchangeLimits(max_connections=2 + number % 2)
                group.start_soon(send, transport, url, 8.0, limits)
        await transport.aclose()

    assert 3 == upstream.most_in_flight


@transports
async def test_a_request_that_waits_too_long_names_the_setting(anyio_backend, name):
    limits = ExchangeLimits(provider="one", max_connections=1)
    with Upstream(remember=False) as upstream:
        transport = TRANSPORTS[name](TransportConfig())
        url = f"{upstream.url}/embeddings"
        await send(transport, url, limits=limits)
        await until_on_loop(lambda: upstream.in_flight == 0)
        upstream.mode = "stalled"
        async with anyio.create_task_group() as group:
            group.start_soon(send, transport, url, 60.0, limits)
            await until_on_loop(lambda: upstream.in_flight == 1)
            with pytest.raises(
                PoolTimeout,
                match=r"^The upstream was not called: all 1 connections to it were in use for 0\.1 s\. "
                r"Raise max_connections in \[providers\.one\], or send fewer requests at once\.$",
            ):
                await send(transport, url, 0.1, limits)
            group.cancel_scope.cancel()
        upstream.mode = "honest"
        assert 200 == (await send(transport, url, limits=limits)).status
        await transport.aclose()


@only_http1
async def test_resting_connections_count_towards_the_limit(anyio_backend, name):
    """A new connection then replaces a resting one, so that no request has to wait."""
    limits = ExchangeLimits(rest=10.0, max_connections=2)
    with Upstream(remember=False) as upstream:
        transport = Http1Transport()
        for _ in range(6):
            await send(transport, f"{upstream.url}/embeddings", limits=limits)
        with anyio.fail_after(10):  # before they are closed for being idle
            await until_on_loop(lambda: len(upstream.open) <= 2)
        assert 6 == upstream.connections
        await transport.aclose()


@only_http1
async def test_cancelled_requests_give_up_their_place_in_the_queue(anyio_backend, name):
    limits = ExchangeLimits(max_connections=1)
    with Upstream(delay=0.02, remember=False) as upstream:
        transport = Http1Transport()
        url = f"{upstream.url}/embeddings"
        for delay in (0.0, 0.005, 0.01, 0.02, 0.021, 0.022, 0.025, 0.03):
            calls = [asyncio.create_task(send(transport, url, limits=limits)) for _ in range(4)]
            await asyncio.sleep(delay)
            for call in calls[1:3]:
                call.cancel()
            await asyncio.wait(calls)
            assert 200 == calls[3].result().status
        await transport.aclose()


class Queue:
    """Requests that wait for slots in order, and note their names when they are admitted."""

    def __init__(self, in_use):
        self.slots = ConnectionSlots()
        self.slots.in_use = in_use
        self.admitted = []

    async def wait(self, name, limit, *, task_status, scope=None):
        with scope or anyio.CancelScope():
            task_status.started()
            await self.slots.wait(ExchangeLimits(max_connections=limit), 60.0)
            self.admitted.append(name)

    async def free(self, count=1):
        for _ in range(count):
            self.slots.in_use -= 1
            self.slots.admit()
            await anyio.wait_all_tasks_blocked()


async def start(group, queue, *requests):
    for name, limit in requests:
        await group.start(queue.wait, name, limit)
        await anyio.wait_all_tasks_blocked()


async def test_requests_are_admitted_in_the_order_of_their_arrival():
    queue = Queue(in_use=2)
    async with anyio.create_task_group() as group:
        await start(group, queue, ("a", 2), ("b", 2), ("c", 2))
        await queue.free(3)

    assert ["a", "b", "c"] == queue.admitted
    assert (2, {}) == (queue.slots.in_use, queue.slots.waiting)


async def test_a_higher_limit_admits_a_later_request():
    queue = Queue(in_use=5)
    async with anyio.create_task_group() as group:
        await start(group, queue, ("low", 2), ("high", 5), ("low again", 2), ("high again", 5))
        await queue.free(2)
        assert ["high", "high again"] == queue.admitted
        await queue.free(5)

    assert ["high", "high again", "low", "low again"] == queue.admitted


async def test_a_cancelled_request_leaves_the_queue_or_passes_its_connection_on():
    queue = Queue(in_use=1)
    waiting = anyio.CancelScope()
    admitted = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        await group.start(lambda **options: queue.wait("a", 1, scope=waiting, **options))
        await group.start(lambda **options: queue.wait("b", 1, scope=admitted, **options))
        await start(group, queue, ("c", 1))
        waiting.cancel()
        await anyio.wait_all_tasks_blocked()
        queue.slots.in_use -= 1
        queue.slots.admit()
        admitted.cancel()
        await anyio.wait_all_tasks_blocked()
        if "b" in queue.admitted:  # the cancellation was too late
            await queue.free()

    assert ["c"] == queue.admitted[-1:]
    assert "a" not in queue.admitted
    assert (1, {}) == (queue.slots.in_use, queue.slots.waiting)


async def test_a_request_waits_for_a_share_of_its_timeout():
    slots = ConnectionSlots()
    slots.in_use = 1

    with pytest.raises(PoolTimeout, match=r"connections to it were in use for 0\.1 s"):
        await slots.wait(ExchangeLimits(max_connections=1), 0.1)

    assert (1, {}) == (slots.in_use, slots.waiting)


async def test_the_config_limits_the_connections_of_a_provider():
    with Upstream(delay=0.03) as upstream:
        gateway = Gateway(
            Config(
                gateway={"auth": "open"},
                providers={
                    "one": Provider(
                        backend="openai", max_connections=2, options={"base_url": upstream.url}
                    )
                },
                models={"m": Model(dimensions=8, endpoints=[Endpoint(provider="one")])},
            ),
            environ={},
        )
        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(lambda text: gateway.embed(text, model="m"), f"text {number}")
        await gateway.runtime.close(await gateway.runtime.get())

    assert 2 == upstream.most_in_flight
