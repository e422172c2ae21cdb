"""A reload of the config: new requests use the new one, and what is the same is kept."""

import os
import re
import signal
import sys

import anyio
import httpx2
import pytest

from embedroute import Config, ConfigError, Gateway, Provider, embeddings_app
from embedroute.backend import LocalBackend, Vectors
from embedroute.errors import UpstreamUnavailable
from embedroute.testing import ScriptedBackend
from tests.fault_upstream import Upstream
from tests.support.commands import serving
from tests.support.wait import until, until_on_loop

pytestmark = pytest.mark.anyio
WIDTH = 8
KEY = "sk-team-a-0123456789"


def config_of(
    backend, *, keys=("a",), models=("m",), price=1_000_000, width=WIDTH, store=None, **settings
):
    endpoint = {"provider": "p", "price": price}
    return Config(
        gateway={"auth": "keys", **settings},
        keys={name: {"key": f"{KEY}-{name}"} for name in keys},
        providers={"p": Provider(backend=backend)},
        models={name: {"dimensions": width, "endpoints": [endpoint]} for name in models},
        store={} if store is None else {"url": f"sqlite:///{store}"},
    )


async def send(gateway, text="text", *, key="a", model="m"):
    transport = httpx2.ASGITransport(embeddings_app(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://host") as client:
        return await client.post(
            "/v1/embeddings",
            json={"model": model, "input": text},
            headers={"authorization": f"Bearer {KEY}-{key}"},
        )


async def status_of(gateway, text="text", *, key="a", model="m"):
    return (await send(gateway, text, key=key, model=model)).status_code


async def test_keys_and_models_are_those_of_the_new_config():
    backend = ScriptedBackend(width=WIDTH)
    gateway = Gateway(config_of(backend), environ={})
    assert [200, 401] == [await status_of(gateway, key=key) for key in "ab"]
    assert 404 == await status_of(gateway, model="n")

    await gateway.reload(config_of(backend, keys=("b",), models=("n",)))

    assert [401, 200] == [await status_of(gateway, key=key, model="n") for key in "ab"]
    assert 404 == await status_of(gateway, key="b")


@pytest.mark.parametrize("store", [None, "store"])
async def test_rate_limits_change_and_what_was_used_remains_used(store, tmp_path):
    backend = ScriptedBackend(width=WIDTH)

    def config(limits):
        return config_of(backend, limits=limits, store=store and tmp_path / store)

    gateway = Gateway(config(None), environ={})
    async with gateway.lifespan():
        assert 200 == await status_of(gateway)
        await gateway.reload(config({"requests_per_minute": 1}))
        assert [200, 429] == [await status_of(gateway) for _ in range(2)]
        await gateway.reload(config({"requests_per_minute": 2}))
        assert [200, 429] == [await status_of(gateway) for _ in range(2)], "one remains used"
        await gateway.reload(config(None))
        assert [200, 200] == [await status_of(gateway) for _ in range(2)]


async def test_budgets_and_prices_change_and_what_was_spent_remains_spent():
    backend = ScriptedBackend(width=WIDTH)
    gateway = Gateway(config_of(backend), environ={})
    budget = {"usd": "21", "per": "total"}
    assert 200 == await status_of(gateway, "without a budget")

    await gateway.reload(config_of(backend, budget=budget))
    answer = await send(gateway, "text1")
    assert 200 == answer.status_code
    assert 429 == await status_of(gateway, "a longer text, which may cost more than is left")

    await gateway.reload(config_of(backend, budget=budget, price=0.1))
    assert 200 == await status_of(gateway, "a longer text, which may cost more than is left")
    await gateway.reload(config_of(backend, budget=budget))
    assert 429 == await status_of(gateway, "a longer text of which some is spent")
    await gateway.reload(config_of(backend))
    assert 200 == await status_of(gateway, "a longer text of which some is spent")


async def test_usage_is_recorded_from_the_reload_on_that_says_so():
    backend = ScriptedBackend(width=WIDTH)
    gateway = Gateway(config_of(backend), environ={})
    await status_of(gateway, "before")
    await gateway.reload(config_of(backend, usage=True))
    await status_of(gateway, "after")

    sums = [each for _, each in await gateway.active.ledger.sum("", None)]
    assert 1 == sum(each.inputs for each in sums)

    await gateway.reload(config_of(backend))
    assert gateway.active.ledger is None


async def test_a_request_in_progress_ends_with_the_config_it_began_with():
    old = ScriptedBackend(script=[1.0], width=WIDTH)
    new = ScriptedBackend(width=WIDTH)
    gateway = Gateway(config_of(old, limits={"concurrent_requests": 1}), environ={})
    statuses = []

    async def send_one():
        statuses.append(await status_of(gateway))

    async with anyio.create_task_group() as group:
        group.start_soon(send_one)
        await until_on_loop(lambda: old.batches)
        await gateway.reload(config_of(new, models=("n",), keys=("b",)))
        assert 200 == await status_of(gateway, key="b", model="n")
        assert [] == statuses

    assert [200] == statuses
    assert 1 == len(old.batches) == len(new.batches)


async def test_a_request_whose_body_arrives_after_the_reload_uses_the_config_it_began_with():
    """Its key is checked before its body is read, so its model may be gone by then."""
    backend = ScriptedBackend(width=WIDTH)
    gateway = Gateway(config_of(backend), environ={})
    app = embeddings_app(gateway)
    reads = 0
    sent = []

    async def receive():
        nonlocal reads
        reads += 1
        if reads > 1:
            await anyio.sleep_forever()
        await gateway.reload(config_of(backend, models=("n",), keys=("b",)))
        return {"type": "http.request", "body": b'{"model":"m","input":"a"}', "more_body": False}

    async def keep(message):
        sent.append(message)

    headers = [
        (b"authorization", f"Bearer {KEY}-a".encode()),
        (b"content-type", b"application/json"),
    ]
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": headers}
    with anyio.move_on_after(30):
        await app({**scope, "query_string": b""}, receive, keep)

    assert 200 == sent[0]["status"]


async def test_the_cache_the_connections_and_the_health_of_the_same_endpoint_are_kept():
    backend = ScriptedBackend(then=UpstreamUnavailable("down"), width=WIDTH)
    gateway = Gateway(config_of(backend), environ={})
    await open_breaker(gateway)
    runtime = await gateway.runtime.get()

    await gateway.reload(config_of(backend, keys=("a", "b"), price=0.5))
    assert "open" == breaker_of(gateway)
    assert runtime is await gateway.runtime.get()


def breaker_of(gateway):
    (state,) = gateway.read_state().endpoints
    return state.breaker


async def open_breaker(gateway):
    number = 0
    while breaker_of(gateway) != "open":
        number += 1
        await status_of(gateway, f"{number}")


async def test_a_changed_endpoint_starts_without_the_health_of_the_one_before():
    broken = ScriptedBackend(then=UpstreamUnavailable("down"), width=WIDTH)
    gateway = Gateway(config_of(broken), environ={})
    await open_breaker(gateway)

    await gateway.reload(config_of(ScriptedBackend(width=WIDTH)))
    assert "closed" == breaker_of(gateway)
    assert 200 == await status_of(gateway)

    await gateway.reload(config_of(broken))
    assert "closed" == breaker_of(gateway), "it is another endpoint than the first, which is gone"
    assert 200 == await status_of(gateway), "the cache is kept"


async def test_failures_of_an_endpoint_that_was_replaced_do_not_count_for_the_new_one():
    slow = ScriptedBackend(script=[1.0], then=UpstreamUnavailable("down"), width=WIDTH)
    fine = ScriptedBackend(width=WIDTH)
    gateway = Gateway(config_of(slow), environ={})

    async with anyio.create_task_group() as group:
        for number in range(30):
            group.start_soon(status_of, gateway, f"{number}")
        await until_on_loop(lambda: slow.batches)
        await gateway.reload(config_of(fine))

    assert "closed" == breaker_of(gateway)
    (state,) = gateway.read_state().endpoints
    assert state.last_error is None


async def test_the_width_of_a_model_may_change():
    gateway = Gateway(config_of(ScriptedBackend(width=8), width=None), environ={})
    first = await send(gateway, "one")
    await gateway.reload(config_of(ScriptedBackend(width=16), width=None))
    second = await send(gateway, "two")

    widths = [len(answer.json()["data"][0]["embedding"]) for answer in (first, second)]
    assert [8, 16] == widths


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"transport": "http1"}, "[gateway] transport has changed, which needs a restart"),
        ({"dashboard": "key"}, "[gateway] dashboard has changed, which needs a restart"),
        ({"only": ["typo"]}, "typo"),
    ],
)
async def test_a_config_that_cannot_be_used_changes_nothing(change, words):
    backend = ScriptedBackend(width=WIDTH)
    gateway = Gateway(config_of(backend), environ={})
    active = gateway.active

    with pytest.raises(ConfigError) as caught:
        await gateway.reload(config_of(backend, keys=("b",), **change))

    assert words in caught.value.message
    assert active is gateway.active
    assert [200, 401] == [await status_of(gateway, key=key) for key in "ab"]


@pytest.mark.thorough
async def test_no_request_fails_during_a_hundred_reloads():
    """Every other reload replaces the endpoint, the limits, the budget and a second key."""
    backends = [ScriptedBackend(width=WIDTH) for _ in range(2)]
    budget = {"usd": "1000000", "per": "day"}
    configs = [
        config_of(backends[0], keys=("a", "b"), limits={"requests_per_minute": 1_000_000}),
        config_of(backends[1], keys=("a",), models=("m", "n"), budget=budget, usage=True),
    ]
    gateway = Gateway(configs[0], environ={})
    statuses = []
    is_done = False

    async def load(caller):
        number = 0
        while not is_done:
            number += 1
            statuses.append(await status_of(gateway, f"{caller} {number}"))

    async with anyio.create_task_group() as group:
        for caller in range(8):
            group.start_soon(load, caller)
        for number in range(100):
            before = len(statuses)
            await gateway.reload(configs[number % 2 - 1])
            await until_on_loop(lambda before=before: len(statuses) > before)
        is_done = True

    assert {200} == set(statuses)
    assert 0 == gateway.in_flight == gateway.bodies.total
    assert all(backend.batches for backend in backends)


class Loaded(LocalBackend):
    """A local model that counts how often it is loaded."""

    seed: int = 0

    def load(self):
        LOADS.append(self.seed)
        return self.seed

    def run(self, model, batch):
        del model
        return Vectors.from_lists([[1.0] * WIDTH for _ in batch.inputs])


LOADS = []


async def test_a_local_model_is_loaded_again_only_if_it_has_changed():
    LOADS.clear()
    first = Loaded(seed=1)
    gateway = Gateway(config_of(first), environ={})
    for number, backend in enumerate([first, first, Loaded(seed=2), first]):
        await gateway.reload(config_of(backend))
        assert 200 == await status_of(gateway, f"text {number}")

    assert [1, 2, 1] == LOADS


def served_by(*upstreams, key="key"):
    return Config(
        gateway={"auth": "open"},
        providers={
            f"p{number}": Provider(
                backend="openai", options={"api_key": key, "base_url": upstream.url}
            )
            for number, upstream in enumerate(upstreams)
        },
        models={
            "m": {
                "dimensions": WIDTH,
                "endpoints": [{"provider": f"p{number}"} for number in range(len(upstreams))],
            }
        },
    )


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_equal_providers_keep_their_backends_and_connections():
    with Upstream() as upstream:
        gateway = Gateway(served_by(upstream), environ={})
        async with gateway.lifespan():
            for number in range(5):
                await gateway.embed(f"text {number}", model="m")
                before = gateway.models.providers["p0"].backend
                await gateway.reload(served_by(upstream))
                assert before is gateway.models.providers["p0"].backend
                await anyio.sleep(0.1)
            await gateway.reload(served_by(upstream, key="another"))
            assert before is not gateway.models.providers["p0"].backend
            await gateway.embed("another key", model="m")

        assert 1 == upstream.connections
        keys = [ask.headers["authorization"] for ask in upstream.requests]
        assert ["Bearer key"] * 5 + ["Bearer another"] == keys


@pytest.mark.slow
async def test_connections_to_a_removed_endpoint_are_closed_when_they_have_been_idle():
    with Upstream() as removed, Upstream() as kept:
        gateway = Gateway(served_by(removed), environ={})
        async with gateway.lifespan():
            await gateway.embed("one", model="m")
            await gateway.reload(served_by(kept))
            await gateway.embed("two", model="m")
            await until_on_loop(lambda: not removed.open, longest=90.0)


SERVED = """
[gateway]
auth = "open"
[providers.hashed]
[models.{model}]
dimensions = 64
endpoints = [{{ provider = "hashed" }}]
"""


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_hangup_makes_serve_read_its_config_again(tmp_path, workers):
    config = tmp_path / "my.toml"
    errors = tmp_path / "errors.txt"
    config.write_text(SERVED.format(model="first"))
    words = [sys.executable, "-m", "embedroute", "serve", "--port", "0", "--config", config]
    with serving([*words, "--workers", str(workers)], tmp_path, errors=errors) as url:

        def ask(model):
            """Ask each worker, probably: every connection may reach another one."""
            body = {"model": model, "input": "a"}
            return {
                httpx2.post(f"{url}/v1/embeddings", json=body, timeout=60).status_code
                for _ in range(8)
            }

        def count(line):
            return errors.read_text().count(line)

        until(lambda: count("Application startup complete.") == workers)
        started = count("Started server process")
        pid = int(re.search(r"Started (?:parent|server) process \[(\d+)", errors.read_text())[1])
        assert {200} == ask("first")

        config.write_text(SERVED.format(model="second"))
        os.kill(pid, signal.SIGHUP)
        lines = workers if workers == 1 else workers + 1
        until(lambda: count("config reloaded") == lines)
        assert {200} == ask("second")
        assert {404} == ask("first")

        config.write_text("[gateway]\nauth = 1\n")
        os.kill(pid, signal.SIGHUP)
        until(lambda: count("config not reloaded") == 1)
        assert {200} == ask("second")
        assert started == count("Started server process"), "no process was replaced"
