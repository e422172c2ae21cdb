"""Tests hosts without a server: clients call the app in this process."""

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import AsyncExitStack, suppress
from functools import partial
from weakref import ref

import anyio
import httpx2
import numpy as np
import pytest
import uvloop
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from embedroute import Config, EmbeddingsMiddleware, Gateway, embeddings_app
from embedroute.backend import Accepts
from embedroute.errors import InternalError, UpstreamUnavailable
from embedroute.routing import RetryPolicy
from embedroute.runtime import PerLoop, tasks
from embedroute.testing import ScriptedBackend, expected_vector
from tests.fault_upstream import Upstream, vector_of
from tests.hosts.gateways import KEY, WIDTH, make
from tests.support.serving import ROOT
from tests.support.wait import PATIENCE, POLL, until_on_loop

BACKENDS = ["asyncio", "trio"]
AT_MOST = 2
"""Connections of one event loop to one upstream, one request at a time."""
SIGNED = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def upstream():
    with Upstream() as upstream:
        yield upstream
        assert open_at(upstream) == 0


def open_at(upstream):
    """Return the number of open connections, after the upstream could notice closed ones."""
    end = time.monotonic() + PATIENCE
    while upstream.open and time.monotonic() < end:
        time.sleep(POLL)
    return len(upstream.open)


def body_of(text):
    return {"model": "far", "input": text}


def vector(reply):
    assert reply.status_code == 200, reply.text
    return np.array(reply.json()["data"][0]["embedding"], "<f4")


async def unaware(scope, _receive, _send):
    raise ValueError(f"no {scope['type']}")


async def silent(_scope, _receive, _send):
    pass


async def failing_start(_scope, receive, _send):
    await receive()
    raise LookupError("no database")


async def refusing_start(_scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


class Narrow(ScriptedBackend, frozen=True, kw_only=True):
    accepts = Accepts(max_inputs=2)


def scripted(then):
    """Make an app whose model always plays ``then``, for at most two inputs per call."""
    return embeddings_app(
        Gateway(
            Config(
                gateway={"auth": "open"},
                providers={"s": {"backend": Narrow(then=then)}},
                models={"m": {"dimensions": 8, "endpoints": [{"provider": "s"}]}},
            ),
            retries=RetryPolicy(first_wait=0.001),
        )
    )


def in_process(app):
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://host", headers=SIGNED
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "make_app", [embeddings_app, lambda gateway: EmbeddingsMiddleware(Starlette(), gateway)]
)
def test_an_event_loop_per_request_opens_and_closes_its_connections(upstream, backend, make_app):
    client = TestClient(make_app(make(upstream.url)), backend=backend, headers=SIGNED)

    for at in range(3):
        assert np.array_equal(
            vector(client.post("/v1/embeddings", json=body_of(f"t{at}"))),
            vector_of(f"t{at}", WIDTH),
        )
        assert (upstream.connections, open_at(upstream)) == (at + 1, 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "make_app", [embeddings_app, lambda gateway: EmbeddingsMiddleware(Starlette(), gateway)]
)
def test_connections_are_kept_during_a_lifespan_and_closed_after_it(upstream, backend, make_app):
    with TestClient(make_app(make(upstream.url)), backend=backend, headers=SIGNED) as client:
        for at in range(5):
            time.sleep(0.06)  # longer than a connection rests before it is used again
            assert np.array_equal(
                vector(client.post("/v1/embeddings", json=body_of(f"t{at}"))),
                vector_of(f"t{at}", WIDTH),
            )

    assert open_at(upstream) == 0
    assert upstream.connections <= (AT_MOST if backend == "asyncio" else 5)  # httpx2 uses each once


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "host",
    [
        embeddings_app,
        lambda gateway: EmbeddingsMiddleware(Starlette(), gateway),
        lambda gateway: EmbeddingsMiddleware(unaware, gateway),
        lambda gateway: Starlette(lifespan=gateway.lifespan),
    ],
)
def test_the_transport_is_logged_at_startup(backend, host, caplog):
    caplog.set_level(logging.INFO, "embedroute.http")

    with TestClient(host(make()), backend=backend):
        actual = [record.transport for record in caplog.records]

    assert ["http1" if backend == "asyncio" else "httpx2"] == actual


@pytest.mark.anyio
@pytest.mark.parametrize(
    "make_app",
    [
        embeddings_app,
        *(
            lambda gateway, app=app: EmbeddingsMiddleware(app, gateway)
            for app in (Starlette(), unaware)
        ),
    ],
)
async def test_startup_fails_if_the_gateway_does_not_support_the_event_loop(
    make_app, anyio_backend_name
):
    """Not with the first request."""
    gateway, sent = make(transport="http1"), []
    asked_for = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive():
        return {"type": next(asked_for)}

    async def send(message):
        sent.append(message["type"])

    with suppress(InternalError):
        await make_app(gateway)({"type": "lifespan", "state": {}}, receive, send)

    good = ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert sent == (good if anyio_backend_name == "asyncio" else ["lifespan.startup.failed"])


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_host_is_not_started_if_its_gateway_fails_to_start():
    """Otherwise it would have to be stopped, and hosts handle that in different ways."""
    sent = []

    async def host(_scope, _receive, _send):
        raise AssertionError

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message["type"])

    await EmbeddingsMiddleware(host, make(transport="http1"))({"type": "lifespan"}, receive, send)

    assert ["lifespan.startup.failed"] == sent


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("failing", [True, False])
async def test_a_host_whose_lifespan_returns_early_keeps_serving(upstream, failing, caplog):
    """The gateway also keeps serving, with the transport that was opened at startup."""
    caplog.set_level(logging.INFO, "embedroute.http")
    gateway, sent = make(upstream.url), []

    async def host(_scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        if failing:
            raise LookupError("later")

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message["type"])

    app = EmbeddingsMiddleware(host, gateway)
    with suppress(LookupError):
        await app({"type": "lifespan"}, receive, send)
    upstream.delay = 0.2
    async with in_process(app) as client, anyio.create_task_group() as group:
        group.start_soon(partial(client.post, "/v1/embeddings", json=body_of("slow")))
        await anyio.sleep(0.05)
        gc.collect()
        await anyio.sleep(0.05)
        opened = upstream.connections
    transports = [record.transport for record in caplog.records if record.name == "embedroute.http"]
    async with gateway.lifespan():
        pass

    assert (["lifespan.startup.complete"], 1, 1) == (sent, opened, upstream.connections)
    assert ["http1"] == transports


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("early", [True, False])
def test_an_unfinished_lifespan_keeps_no_reference_to_the_event_loop(run, early):
    """It returns right after startup, or sends no message at shutdown."""
    gateway, loops = make(), []

    async def host(_scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        if not early:
            await receive()

    async def serve():
        loops.append(ref(asyncio.get_running_loop()))
        await app({"type": "lifespan"}, start, say_nothing)
        await gateway.embed("t", model="hash")

    app = EmbeddingsMiddleware(host, gateway)
    for _ in range(3):
        run(serve())
    gc.collect()

    assert [None] * 3 == [loop() for loop in loops]


async def start():
    return {"type": "lifespan.startup"}


async def say_nothing(_message):
    pass


@pytest.mark.anyio
@pytest.mark.parametrize("app", [unaware, silent, Starlette(), None])
async def test_a_cancelled_lifespan_closes_the_gateway(upstream, app, anyio_backend_name):
    """A server that is killed does not announce the shutdown."""
    gateway, connections = make(upstream.url), []
    asked_for = iter(["lifespan.startup"])

    async def receive():
        kind = next(asked_for, None)
        if kind is None:
            await gateway.embed("t", model="far")
            connections.append(len(upstream.open))
            await anyio.sleep_forever()
        return {"type": kind}

    async with anyio.create_task_group() as group:
        served_app = embeddings_app(gateway) if app is None else EmbeddingsMiddleware(app, gateway)
        group.start_soon(served_app, {"type": "lifespan", "state": {}}, receive, say_nothing)
        await until_on_loop(lambda: connections)
        group.cancel_scope.cancel()

    assert open_at(upstream) == 0
    if anyio_backend_name == "asyncio":  # httpx2, on trio, keeps no connection
        assert [1] == connections


@pytest.mark.anyio
async def test_a_host_that_fails_during_startup_leaves_nothing_open(upstream):
    gateway = make(upstream.url)

    async def host(_scope, receive, _send):
        await receive()
        await gateway.embed("t", model="far")
        raise LookupError("no database")

    with pytest.raises(LookupError):
        await EmbeddingsMiddleware(host, gateway)({"type": "lifespan"}, start, say_nothing)

    assert (1, 0) == (upstream.connections, open_at(upstream))


@pytest.mark.parametrize("on_another", [True, False])
@pytest.mark.parametrize("app", [unaware, Starlette(), None])
def test_a_lifespan_collected_after_its_loop_closes_nothing_of_another_loop(
    upstream, app, on_another
):
    """As when an event loop is stopped before its tasks end."""
    gateway = make(upstream.url)
    served_app = embeddings_app(gateway) if app is None else EmbeddingsMiddleware(app, gateway)
    asked_for = iter(["lifespan.startup"])

    async def receive():
        kind = next(asked_for, None)
        if kind is None:
            await asyncio.Event().wait()
        return {"type": kind}

    def abandon():
        loop = asyncio.new_event_loop()
        task = loop.create_task(served_app({"type": "lifespan", "state": {}}, receive, say_nothing))
        loop.run_until_complete(asyncio.sleep(0.02))
        loop.close()
        task._log_destroy_pending = False

    async def serve():
        opened = await gateway.runtime.get()
        await gateway.embed("t", model="far")
        if on_another:
            gc.collect()
        await asyncio.sleep(0.1)
        await gateway.embed("u", model="far")
        return opened is await gateway.runtime.get()

    gc.disable()
    try:
        abandon()
        if not on_another:
            gc.collect()
        assert asyncio.run(serve())
    finally:
        gc.enable()
    assert 1 == upstream.connections


class Broken(Gateway):
    """A gateway whose opening fails with an unexpected exception."""

    def __init__(self, config):
        super().__init__(config)
        self.runtime = PerLoop("broken", self.fail)

    def fail(self, _stack):
        raise OSError("no such library")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "make_app",
    [
        embeddings_app,
        partial(EmbeddingsMiddleware, Starlette()),
        partial(EmbeddingsMiddleware, unaware),
    ],
)
async def test_any_error_while_opening_the_gateway_fails_the_startup(make_app, caplog):
    """If the lifespan raised, uvicorn would serve a host that has not been started."""
    sent = []

    async def send(message):
        sent.append(message)

    await make_app(Broken(Config(gateway={"auth": "open"}, providers={"hashed": {}})))(
        {"type": "lifespan"}, start, send
    )

    assert ["lifespan.startup.failed"] == [message["type"] for message in sent]
    assert sent[0]["message"].startswith("The gateway failed to start: ")
    assert "no such library" not in sent[0]["message"]
    assert ["no such library"] == [str(record.exc_info[1]) for record in caplog.records]


@pytest.mark.anyio
async def test_parallel_first_requests_share_one_runtime(upstream):
    """The same text at the same time: one call, so one single-flight table, so one runtime."""
    upstream.delay = 0.05
    gateway = make(upstream.url)
    vectors = []
    async with (
        gateway.lifespan(),
        in_process(Starlette(routes=[Mount("/ai", app=embeddings_app(gateway))])) as client,
    ):

        async def ask():
            vectors.append(vector(await client.post("/ai/v1/embeddings", json=body_of("same"))))

        await tasks.gather([ask] * 8, at_once=8)

    assert [row.tobytes() for row in vectors] == [vector_of("same", WIDTH).tobytes()] * 8
    assert len(upstream.requests) == 1


@pytest.mark.anyio
async def test_a_process_may_have_two_gateways(upstream, anyio_backend_name):
    """Each has its own keys, models and connections; closing one does not affect the other."""
    with Upstream(space="other") as other:
        near, far = make(upstream.url), make(other.url, auth="open")
        app = Starlette(
            routes=[Mount("/a", app=embeddings_app(near)), Mount("/b", app=embeddings_app(far))]
        )
        async with far.lifespan(), in_process(app) as client:
            async with near.lifespan():
                first = vector(await client.post("/a/v1/embeddings", json=body_of("t")))
                second = vector(await client.post("/b/v1/embeddings", json=body_of("t")))
            assert np.array_equal(first, vector_of("t", WIDTH))
            assert np.array_equal(second, vector_of("t", WIDTH, space="other"))
            assert open_at(upstream) == 0
            if anyio_backend_name == "asyncio":  # httpx2, on trio, keeps no connection
                assert len(other.open) == 1
            vector(await client.post("/b/v1/embeddings", json=body_of("u")))
            assert other.connections <= AT_MOST


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_gateway_serves_two_loops_in_two_threads(upstream, backend):
    upstream.delay = 0.05
    gateway, meet, vectors = make(upstream.url), threading.Barrier(2, timeout=60), {}

    async def embed(text):
        meet.wait()
        for at in range(3):
            answer = await gateway.embed(f"{text} {at}", model="far")
            vectors[f"{text} {at}"] = answer.vectors[0]

    threads = [
        threading.Thread(target=anyio.run, args=[embed, text], kwargs={"backend": backend})
        for text in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(vectors) == 6
    assert all(np.array_equal(row, vector_of(text, WIDTH)) for text, row in vectors.items())
    assert 2 <= upstream.connections <= (2 * AT_MOST if backend == "asyncio" else 6)


def test_one_gateway_serves_consecutive_event_loops(upstream):
    gateway = make(upstream.url)

    for at in range(2):
        answer = asyncio.run(gateway.embed(f"t{at}", model="far"))
        assert np.array_equal(answer.vectors[0], vector_of(f"t{at}", WIDTH))
        assert (upstream.connections, open_at(upstream)) == (at + 1, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gateway_made_before_a_fork_serves_parent_and_child(upstream, backend):
    """Constructing a gateway opens nothing and starts no thread, so that servers may preload it."""
    ran = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-W", "error", "-m", "tests.hosts.forking", backend],
        cwd=ROOT,
        env={**os.environ, "TEST_UPSTREAM": upstream.url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    actual = [json.loads(line) for line in ran.stdout.splitlines()]

    assert (ran.returncode, ran.stderr) == (0, "")
    assert [(row["who"], row["opened"], row["threads"]) for row in actual] == [
        ("child", 0, 1),
        ("parent", 0, 1),
    ]
    for row in actual:
        assert row["vectors"] == [
            vector_of(f"{row['who']} {at}", WIDTH).tolist() for at in range(2)
        ]


class Exotic(BaseException):
    pass


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UpstreamUnavailable("reset"), 502),
        (ValueError("v"), 502),
        (KeyError("k"), 502),
        (RecursionError(), 502),
        (MemoryError(), 502),
        (StopIteration(), 502),
        (StopAsyncIteration(), 502),
        (TimeoutError(), 504),
        (OSError(5, "disk"), 502),
        (ExceptionGroup("g", [ValueError("v"), OSError()]), 502),
        (asyncio.CancelledError(), 502),
        (GeneratorExit(), 502),
        pytest.param(SystemExit(3), 502),
        pytest.param(Exotic(), 502),
        pytest.param(BaseExceptionGroup("g", [Exotic(), ValueError()]), 502),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
@pytest.mark.parametrize("inputs", [["one"], [f"t{at}" for at in range(5)]], ids=["one", "split"])
async def test_exceptions_of_a_backend_do_not_reach_the_host(error, status, inputs):
    app = scripted(error)
    async with in_process(app) as client:
        reply = await client.post("/v1/embeddings", json={"model": "m", "input": inputs})

    assert reply.status_code == status
    assert reply.json()["error"]["type"] in {"upstream_error", "timeout_error"}


@pytest.mark.anyio
@pytest.mark.parametrize("scope", [{"type": "websocket", "path": "/v1/embeddings", "headers": []}])
async def test_a_websocket_is_closed(scope):
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    await embeddings_app(make())(scope, receive, send)

    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("app", "answers"),
    [
        (unaware, ["lifespan.startup.complete", "lifespan.shutdown.complete"]),
        (silent, ["lifespan.startup.complete", "lifespan.shutdown.complete"]),
        (refusing_start, ["lifespan.startup.failed"]),
        (Starlette(), ["lifespan.startup.complete", "lifespan.shutdown.complete"]),
    ],
)
async def test_the_middleware_runs_the_lifespan_for_a_host_without_one(upstream, app, answers):
    """The host reports its own startup failures."""
    gateway, sent, closed = make(upstream.url), [], []
    asked_for = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive():
        kind = next(asked_for)
        if kind == "lifespan.shutdown":
            await gateway.embed("t", model="far")
        return {"type": kind}

    async def send(message):
        sent.append(message["type"])
        if message["type"] == "lifespan.shutdown.complete":
            closed.append(open_at(upstream))

    await EmbeddingsMiddleware(app, gateway)({"type": "lifespan", "state": {}}, receive, send)

    assert sent == answers
    # Closed before the last message, on which uvicorn stops the event loop.
    assert closed == [0] * (len(answers) - 1)


@pytest.mark.anyio
async def test_an_exception_of_the_host_during_startup_is_propagated():
    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        raise AssertionError(message)

    with pytest.raises(LookupError, match="no database"):
        await EmbeddingsMiddleware(failing_start, make())({"type": "lifespan"}, receive, send)


def test_lifespans_may_be_nested(upstream):
    """The same gateway as router, as middleware and as lifespan; the second close has no effect."""

    async def serve():
        gateway = make(upstream.url)
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(gateway.lifespan())
            answer = await gateway.embed("t", model="far")
        return answer.vectors[0]

    assert np.array_equal(asyncio.run(serve()), vector_of("t", WIDTH))
    assert upstream.connections == 1


@pytest.mark.anyio
async def test_the_hashed_backend_needs_no_network():
    async with in_process(embeddings_app(make())) as client:
        reply = await client.post("/v1/embeddings", json={"model": "hash", "input": "one"})

    assert np.array_equal(vector(reply), expected_vector("one", WIDTH))
