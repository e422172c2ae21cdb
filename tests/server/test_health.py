"""Tests the health checks: without a key, and readiness only while the gateway can serve."""

import errno

import anyio
import pytest

from embedroute import Config, EmbeddingsMiddleware, Gateway, embeddings_app
from embedroute.errors import RateLimited
from embedroute.testing import ScriptedBackend
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


OPERATOR, TEAM = "sk-er-operator-0123456789", "sk-er-team-0123456789"


def gateway_with(*backends, **settings):
    """A gateway whose models m0, m1, … have one endpoint each."""
    return Gateway(
        Config(
            gateway={"auth": "keys", **settings},
            keys={"operator": {"key": OPERATOR, "debug": True}, "team": {"key": TEAM}},
            providers={f"p{at}": {"backend": backend} for at, backend in enumerate(backends)},
            models={
                f"m{at}": {"dimensions": 8, "endpoints": [{"provider": f"p{at}"}]}
                for at in range(len(backends))
            },
        )
    )


async def resting_gateway(**settings):
    """Model m0 rests after a 429, and m1 does not."""
    limited = ScriptedBackend(width=8, then=RateLimited("slow down", retry_after=60))
    made = gateway_with(limited, ScriptedBackend(width=8), rate_limit_wait=0, **settings)
    with pytest.raises(RateLimited):
        await made.embed("text", model="m0")
    return made


async def ready(made, key=None):
    headers = [("authorization", f"Bearer {key}")] if key else []
    return await call(embeddings_app(made), "GET", READY, headers)


@pytest.mark.parametrize("key", [None, TEAM, "sk-er-unknown-0123456789"])
async def test_a_model_whose_endpoints_all_rest_makes_the_gateway_not_ready(key):
    answer = await ready(await resting_gateway(), key)

    assert (answer.status, answer.body) == (503, b'{"status":"not ready"}')


async def test_a_key_that_may_debug_gets_the_reasons():
    answer = await ready(await resting_gateway(), OPERATOR)

    assert answer.status == 503
    limited, other = answer.json["models"]
    [endpoint] = limited["endpoints"]
    assert (limited["model"], limited["ready"]) == ("m0", False)
    assert (endpoint["endpoint"], endpoint["reason"]) == ("p0:m0", "rate limited")
    assert 50 < endpoint["rests_for"] <= 60
    assert (other["model"], other["ready"]) == ("m1", True)
    assert other["endpoints"] == [{"endpoint": "p1:m1", "rests_for": 0.0, "reason": None}]


async def test_upstreams_do_not_matter_if_readiness_is_that_of_the_process():
    answer = await ready(await resting_gateway(readiness="process"))

    assert (answer.status, answer.body) == (200, b'{"status":"ready"}')


async def test_a_store_that_is_not_reachable_makes_the_gateway_not_ready():
    async def reach():
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    made = gateway_with(ScriptedBackend(width=8))
    made.store_checks["redis"] = reach

    bare, full = await ready(made), await ready(made, OPERATOR)

    assert (bare.status, bare.body) == (503, b'{"status":"not ready"}')
    stores = [{"store": "redis", "ready": False, "reason": "connection refused"}]
    assert (full.status, full.json["stores"]) == (503, stores)


async def test_the_store_of_the_config_is_checked(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    made = Gateway(
        Config(
            gateway={"auth": "open", "debug": True},
            store={"url": f"sqlite:///{tmp_path}/folder/vectors.db"},
            providers={"hashed": {}},
        )
    )

    folder.rmdir()

    missing = await ready(made)
    folder.mkdir()
    there = await ready(made)

    assert (missing.status, there.status) == (503, 200)
    assert [store["ready"] for store in missing.json["stores"]] == [False]
    assert [store["ready"] for store in there.json["stores"]] == [True]
    await made.runtime.close(await made.runtime.get())


async def test_a_reachable_store_does_not_matter():
    made = gateway_with(ScriptedBackend(width=8))
    made.store_checks["redis"] = anyio.lowlevel.checkpoint

    assert (await ready(made)).status == 200


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
