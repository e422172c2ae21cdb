"""Slow DNS through a gateway: it delays no request that another endpoint can serve."""

# The plugin of anyio reads `anyio_backend`.
# ruff: noqa: ARG001

import socket
import threading
from contextlib import contextmanager

import anyio
import pytest

from embedroute import Config, Gateway, Provider
from embedroute.transport import Resolver, TransportConfig, create_transport
from tests.fault_upstream import Upstream
from tests.support.elapsed import measured

pytestmark = pytest.mark.anyio

transports = pytest.mark.parametrize(
    ("anyio_backend", "name"),
    [
        pytest.param(("asyncio", {"use_uvloop": False}), "http1", id="asyncio-http1"),
        pytest.param(("asyncio", {"use_uvloop": True}), "http1", id="uvloop-http1"),
        pytest.param("asyncio", "httpx2", id="asyncio-httpx2"),
        pytest.param("trio", "httpx2", id="trio-httpx2"),
    ],
)


def address(port):
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))


@contextmanager
def slow_lookup(*ports):
    """A lookup that hangs for ``a.example`` until its event is set; every name has ``ports``."""
    released = threading.Event()

    def look_up(host, port):
        del port
        if host == "a.example":
            released.wait(30)
        return [address(port) for port in ports]

    try:
        yield look_up, released
    finally:
        released.set()


def make_gateway(name, look_up, slugs, **provider):
    """A gateway whose provider ``a`` has the base URL ``http://a.example/v1``, and so on."""
    return Gateway(
        Config(
            gateway={"auth": "open"},
            cache={"bytes": 0},
            providers={
                slug: Provider(
                    backend="openai", options={"base_url": f"http://{slug}.example/v1"}, **provider
                )
                for slug in slugs
            },
            models={"m": {"dimensions": 8, "endpoints": [{"provider": slug} for slug in slugs]}},
        ),
        environ={},
        transport=lambda: create_transport(
            name,
            TransportConfig(),
            None,
            on_asyncio=name == "http1",
            resolver=Resolver(look_up),
        ),
    )


@transports
async def test_a_hanging_lookup_delays_no_request_that_another_endpoint_serves(anyio_backend, name):
    with Upstream() as upstream, slow_lookup(upstream.port) as (look_up, _):
        gateway = make_gateway(name, look_up, "ab")
        order = {"order": ["a", "b"]}
        for number in range(3):
            async with measured() as elapsed, anyio.create_task_group() as group:
                for each in range(20):
                    text = f"{number} {each}"
                    embed = gateway.embed
                    group.start_soon(lambda text, f=embed: f(text, model="m", provider=order), text)
            assert elapsed.ticks < 0.95  # a lookup that hangs is waited for once, for 0.5 s
        await gateway.runtime.close(await gateway.runtime.get())

    assert 60 == len(upstream.requests)


@transports
async def test_a_slow_lookup_of_the_only_endpoint_is_awaited(anyio_backend, name):
    with Upstream() as upstream, slow_lookup(upstream.port) as (look_up, released):
        gateway = make_gateway(name, look_up, "a")
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: gateway.embed("text", model="m"))
            await anyio.sleep(0.8)
            released.set()
        await gateway.runtime.close(await gateway.runtime.get())

    assert 1 == len(upstream.requests)


@transports
async def test_the_config_spreads_requests_over_all_addresses(anyio_backend, name):
    with (
        Upstream() as one,
        Upstream() as two,
        slow_lookup(one.port, two.port) as (look_up, _),
    ):
        gateway = make_gateway(name, look_up, "b", resolve="all", connection_rest_ms=0)
        for number in range(6):
            await gateway.embed(f"text {number}", model="m")
        await gateway.runtime.close(await gateway.runtime.get())

    assert [3, 3] == [len(one.requests), len(two.requests)]
