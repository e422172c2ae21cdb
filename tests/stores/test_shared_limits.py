"""Limits of keys, models and the gateway that hold for all processes of a store."""

import math
import time
from collections import Counter
from functools import partial

import anyio
import httpx2
import pytest

from embedroute import Caller, Config, Gateway, Provider, RateLimits, embeddings_app
from embedroute.auth import ANYONE
from embedroute.errors import EmbedrouteError, Overloaded, RateLimitExceeded
from embedroute.runtime import tasks
from embedroute.testing import ScriptedBackend
from tests.stores.test_processes import is_ready, serve
from tests.support.stores import StoreServer

pytestmark = pytest.mark.anyio
CALLER = Caller(name="user", limits=RateLimits(requests_per_minute=20))
KEY = "sk-team-a-0123456789"
WIDTH = 8
LONG = 30.0


@pytest.fixture(params=["asyncio", pytest.param("trio", marks=pytest.mark.thorough)])
def anyio_backend(request):
    return request.param


def gateway_of(url, *, key=None, gateway=None, model=None, backend=None, timeout=LONG, **tables):
    return Gateway(
        Config(
            gateway={"auth": "keys", "limits": gateway},
            keys={"a": {"key": KEY, "limits": key}},
            store={"url": url, "timeout": timeout, "cache": False},
            providers={"p": Provider(backend=backend or ScriptedBackend(width=WIDTH))},
            models={"m": {"dimensions": WIDTH, "endpoints": [{"provider": "p"}], "limits": model}},
            **tables,
        ),
        environ={},
    )


async def post(gateway, text="text"):
    transport = httpx2.ASGITransport(embeddings_app(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://host") as client:
        return await client.post(
            "/v1/embeddings",
            json={"model": "m", "input": text},
            headers={"authorization": f"Bearer {KEY}"},
        )


async def statuses_of(gateways, requests, caller=ANYONE):
    """Send requests to the gateways in turn, 64 at a time; return how many got which status."""
    found = Counter()

    async def ask(number):
        try:
            await gateways[number % len(gateways)].embed(f"text {number}", model="m", caller=caller)
        except EmbedrouteError as error:
            found[error.status] += 1
        else:
            found[200] += 1

    await tasks.gather([partial(ask, number) for number in range(requests)], 64)
    return found


@pytest.mark.parametrize(
    "scope",
    ["caller", *(pytest.param(s, marks=pytest.mark.thorough) for s in ("model", "gateway"))],
)
async def test_several_gateways_never_serve_more_than_a_limit(store_url, scope):
    """Of 256 concurrent requests as many are served as the limit and what refills meanwhile."""
    limits = RateLimits(requests_per_minute=100)
    caller = Caller(name="user", limits=limits) if scope == "caller" else ANYONE
    tables = {} if scope == "caller" else {scope: limits}
    gateways = [gateway_of(store_url, **tables) for _ in range(2)]
    async with gateways[0].lifespan(), gateways[1].lifespan():
        began = time.monotonic()
        found = await statuses_of(gateways, 256, caller)
        refilled = (time.monotonic() - began) * 100 / 60

    assert {200, 429} == found.keys()
    assert found[200] <= 100 + refilled + 1e-3
    assert found[200] >= 95, "hardly anything is left in leases"


async def test_tokens_are_counted_for_all_and_as_they_are_billed(store_url):
    """A text of 400 letters is 100 tokens by the estimate and by the bill."""
    gateways = [gateway_of(store_url, key={"tokens_per_minute": 1000}) for _ in range(2)]
    async with gateways[0].lifespan(), gateways[1].lifespan():
        began = time.monotonic()
        answers = [await post(gateways[n % 2], f"{n:04}" * 100) for n in range(14)]
        refilled = (time.monotonic() - began) * 1000 / 60
    served = [each.status_code for each in answers].count(200)
    assert 9 <= served <= 10 + refilled / 100
    assert "1000" == answers[0].headers["x-ratelimit-limit-tokens"]
    assert 900 <= int(answers[0].headers["x-ratelimit-remaining-tokens"]) <= 900 + refilled


async def test_a_cached_request_gives_its_tokens_back(store_url):
    limits = {"tokens_per_minute": 220}
    async with (gateway := gateway_of(store_url, key=limits)).lifespan():
        for _ in range(4):
            assert 200 == (await post(gateway, "x" * 400)).status_code
        assert [200, 429] == [(await post(gateway, c * 400)).status_code for c in "yz"]


async def test_concurrent_requests_are_counted_for_all(store_url):
    """Of 64 requests at two gateways at most 6 are in progress at once; places are free again."""
    most = running = 0

    class Slow(ScriptedBackend):
        async def embed(self, batch):
            nonlocal most, running
            running += 1
            most = max(most, running)
            await anyio.sleep(0.05)
            running -= 1
            return await super().embed(batch)

    gateways = [
        gateway_of(store_url, gateway={"concurrent_requests": 6}, backend=Slow(width=WIDTH))
        for _ in range(2)
    ]
    async with gateways[0].lifespan(), gateways[1].lifespan():
        found = await statuses_of(gateways, 64)
        assert {200, 429} == found.keys()
        assert 1 < most <= 6
        # Each request ends before its response, so the next one never finds the place taken.
        for number in range(6):
            assert 200 == (await post(gateways[number % 2], f"next {number}")).status_code


async def test_an_idle_gateway_gives_its_lease_back(store_url):
    """The first holds 1/32 of the requests besides that of its own, and the second gets them."""
    gateways = [gateway_of(store_url, key={"requests_per_minute": 320}) for _ in range(2)]
    async with gateways[0].lifespan(), gateways[1].lifespan():
        began = time.monotonic()
        assert 200 == (await post(gateways[0])).status_code
        assert 200 == (await post(gateways[1])).status_code
        await anyio.sleep(0.9)
        remaining = (await post(gateways[1])).headers["x-ratelimit-remaining-requests"]
    expected = 317 + min((time.monotonic() - began) * 320 / 60, 3)
    assert 317 <= int(remaining) <= math.ceil(expected)


async def test_most_requests_ask_no_store(tmp_path):
    """A dead store is not noticed as long as the lease lasts."""
    with StoreServer("valkey", tmp_path) as server:
        tables = {"limits": {"on_store_failure": "closed"}}
        gateway = gateway_of(server.url, key={"requests_per_minute": 3200}, timeout=0.2, **tables)
        async with gateway.lifespan():
            assert 200 == (await post(gateway)).status_code
            server.kill()
            answers = [(await post(gateway, f"{n}")).status_code for n in range(101)]
    assert [200] * 100 + [503] == answers


@pytest.mark.parametrize(("on_failure", "status"), [(None, 200), ("open", 200), ("closed", 503)])
async def test_without_its_store_a_limit_is_open_or_closed(tmp_path, on_failure, status):
    """Where it is open, the limits of the process hold."""
    with StoreServer("valkey", tmp_path) as server:
        pass
    gateway = gateway_of(
        server.url, key={"requests_per_minute": 2}, limits={"on_store_failure": on_failure}
    )

    answers = [await post(gateway, f"{number}") for number in range(3)]

    assert [status, status] == [each.status_code for each in answers[:2]]
    assert (429 if status == 200 else 503) == answers[2].status_code


async def test_a_store_that_hangs_costs_a_limited_request_little(tmp_path):
    with StoreServer("valkey", tmp_path) as server:
        gateway = gateway_of(server.url, timeout=0.1)
        await gateway.embed("text", model="m", caller=CALLER)
        server.stop()
        began = time.monotonic()
        await gateway.embed("text", model="m", caller=CALLER)
        taken = time.monotonic() - began
        server.go_on()
    assert taken < 0.9, "and not a second"


async def test_a_cancelled_request_leaves_its_place(store_url):
    backend = ScriptedBackend(script=[LONG], width=WIDTH)
    gateway = gateway_of(store_url, key={"concurrent_requests": 1}, backend=backend)
    async with gateway.lifespan():
        with anyio.move_on_after(0.3):
            await post(gateway)
        for _ in range(100):
            status = (await post(gateway)).status_code
            if status == 200:
                break
            await anyio.sleep(0.05)
        assert 200 == status


async def test_a_request_that_is_cancelled_while_it_waits_for_the_store_takes_nothing(tmp_path):
    with StoreServer("valkey", tmp_path) as server:
        gateway = gateway_of(server.url, gateway={"concurrent_requests": 1})
        async with gateway.lifespan():
            await gateway.embed("text", model="m")
            server.stop()
            ask = partial(gateway.embed, "text", model="m")
            with anyio.move_on_after(0.2):
                await tasks.gather([ask, ask, ask], 3)
            server.go_on()
            for number in range(3):
                await gateway.embed(f"text {number}", model="m")


async def test_callers_of_the_host_share_their_limit_by_name(store_url):
    limits = RateLimits(requests_per_minute=1)
    gateways = [gateway_of(store_url) for _ in range(2)]
    async with gateways[0].lifespan(), gateways[1].lifespan():
        await gateways[0].embed("text", model="m", caller=Caller(name="\udcff", limits=limits))
        await gateways[1].embed("text", model="m", caller=Caller(name="other", limits=limits))
        with pytest.raises(RateLimitExceeded) as caught:
            await gateways[1].embed("text", model="m", caller=Caller(name="\udcff", limits=limits))
    assert caught.value.retry_after == pytest.approx(60, rel=0.2)


async def test_a_closed_gateway_has_given_all_back(store_url):
    for _ in range(2):
        async with (gateway := gateway_of(store_url, key={"concurrent_requests": 64})).lifespan():
            assert 200 == (await post(gateway)).status_code
    gateway = gateway_of(store_url, key={"requests_per_minute": 3200})
    async with gateway.lifespan():
        assert 200 == (await post(gateway)).status_code
    async with (gateway := gateway_of(store_url, key={"requests_per_minute": 3200})).lifespan():
        remaining = int((await post(gateway)).headers["x-ratelimit-remaining-requests"])
    assert remaining >= 3198


async def test_a_dead_store_and_closed_limits_are_an_error_of_embed(tmp_path):
    with StoreServer("valkey", tmp_path) as server:
        pass
    gateway = gateway_of(
        server.url, gateway={"requests_per_minute": 1}, limits={"on_store_failure": "closed"}
    )
    with pytest.raises(Overloaded, match="limits cannot be checked"):
        await gateway.embed("text", model="m")


CONFIG = """
[gateway]
auth = "open"
limits = {{ requests_per_minute = 100 }}
[store]
url = "{url}"
timeout = 30
[providers.hashed]
[models.m]
dimensions = 64
endpoints = [{{ provider = "hashed" }}]
"""


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_workers_never_serve_more_than_a_limit(store_url, tmp_path):
    """256 concurrent requests at two servers of two workers each."""
    config = tmp_path / "my.toml"
    config.write_text(CONFIG.format(url=store_url))
    found = Counter()

    async def ask(client, url, number):
        body = {"model": "m", "input": f"text {number}"}
        answer = await client.post(f"{url}/v1/embeddings", json=body, timeout=60)
        found[answer.status_code] += 1

    with serve(config, "--workers", "2") as first, serve(config, "--workers", "2") as second:
        urls = [first, second]
        end = time.monotonic() + 120
        while not all(map(is_ready, urls)):
            assert time.monotonic() < end
        began = time.monotonic()
        async with httpx2.AsyncClient(limits=httpx2.Limits(max_keepalive_connections=0)) as client:
            jobs = [partial(ask, client, urls[n % 2], n) for n in range(256)]
            await tasks.gather(jobs, 256)
        refilled = (time.monotonic() - began) * 100 / 60

    assert {200, 429} == found.keys()
    assert 90 <= found[200] <= 100 + refilled + 1e-3
