"""Tests the health checks: without a key, and readiness only while the gateway can serve."""

import anyio
import pytest

from embedroute import Config, EmbeddingsMiddleware, Gateway, embeddings_app
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

LIVE, READY = "/health/live", "/health/ready"


def gateway(**settings):
    return Gateway(
        Config(
            gateway={"auth": "keys", **settings},
            keys={"one": {"key": "sk-er-one-0123456789"}},
            providers={"hashed": {}},
        )
    )


@pytest.mark.parametrize(
    ("method", "path", "root_path", "status", "body"),
    [
        ("GET", LIVE, "", 200, b'{"status":"live"}'),
        ("GET", READY, "", 200, b'{"status":"ready"}'),
        ("HEAD", READY, "", 200, b""),
        ("GET", f"/ai{LIVE}", "/ai", 200, b'{"status":"live"}'),
        ("GET", f"/ai{READY}/", "/ai", 200, b'{"status":"ready"}'),
    ],
)
async def test_a_health_check_needs_no_key(method, path, root_path, status, body):
    answer = await call(embeddings_app(gateway()), method, path, root_path=root_path)

    assert (status, body) == (answer.status, answer.body)
    assert "application/json" == answer.header("content-type")


async def test_a_health_check_allows_no_other_method():
    answer = await call(embeddings_app(gateway()), "POST", READY)

    assert (405, "GET, HEAD") == (answer.status, answer.header("allow"))


async def test_a_gateway_that_cannot_open_its_transport_is_alive_but_not_ready(anyio_backend_name):
    """Here it needs asyncio."""
    app = embeddings_app(gateway(transport="http1"))

    statuses = [(await call(app, "GET", path)).status for path in (LIVE, READY)]

    assert [200, 200 if anyio_backend_name == "asyncio" else 500] == statuses


async def test_a_gateway_is_not_ready_while_its_host_shuts_down():
    app = embeddings_app(gateway())
    events, receive = anyio.create_memory_object_stream(2)
    statuses = []

    async def send(message):
        statuses.append((message["type"], (await call(app, "GET", READY)).status))

    for event in ("startup", "shutdown"):
        await events.send({"type": f"lifespan.{event}"})
    with events, receive:
        await app({"type": "lifespan"}, receive.receive, send)

    assert [
        ("lifespan.startup.complete", 200),
        ("lifespan.shutdown.complete", 503),
    ] == statuses
    assert 200 == (await call(app, "GET", LIVE)).status


async def test_middleware_leaves_the_paths_of_health_checks_to_its_host():
    async def host(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app = EmbeddingsMiddleware(host, gateway())

    assert [299, 299] == [(await call(app, "GET", path)).status for path in (LIVE, f"/v1{READY}")]
