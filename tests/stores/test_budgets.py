"""Budgets of keys and of the gateway: nothing is spent beyond them."""

from decimal import Decimal
from functools import partial

import anyio
import httpx2
import pytest

from embedroute import Config, ConfigError, Gateway, Provider, embeddings_app
from embedroute.backend import Vectors
from embedroute.errors import UpstreamUnavailable
from embedroute.execution import Window, find_window, to_units
from embedroute.runtime import tasks
from embedroute.testing import ScriptedBackend
from tests.support.stores import StoreServer

pytestmark = pytest.mark.anyio
KEY = "sk-team-a-0123456789"
WIDTH = 8
LONG = 30.0


def gateway_of(url=None, *, key=None, gateway=None, backend=None, price=1_000_000, **settings):
    """A token costs one dollar, unless there is another ``price`` per million."""
    return Gateway(
        Config(
            gateway={"auth": "keys", "budget": gateway, "deadline": LONG, **settings},
            keys={"a": {"key": KEY, "budget": key}, "b": {"key": f"{KEY}-b"}},
            store={"url": url, "timeout": LONG},
            providers={"p": Provider(backend=backend or ScriptedBackend(width=WIDTH))},
            models={
                "m": {"dimensions": WIDTH, "endpoints": [{"provider": "p", "price": price}]},
                "unpriced": {"dimensions": WIDTH, "endpoints": [{"provider": "p"}]},
            },
        ),
        environ={},
    )


def total(usd):
    return {"usd": usd, "per": "total"}


async def post(gateway, text, *, key=KEY, dialect=None, model="m", cache=None):
    app = embeddings_app(gateway, dialect=dialect)
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://host") as client:
        return await client.post(
            "/v1/embeddings",
            json={"model": model, "input": text},
            headers={
                "authorization": f"Bearer {key}",
                **({"cache-control": cache} if cache else {}),
            },
        )


async def test_a_request_over_the_budget_is_refused_as_openai_refuses_it():
    """A word of four letters costs 1 dollar, and at most 4 for its bytes and 16 for the rest."""
    gateway = gateway_of(key=total("21"))

    assert [200, 200] == [(await post(gateway, text)).status_code for text in ("word", "word")]
    refused = await post(gateway, "other")

    assert 429 == refused.status_code
    assert "false" == refused.headers["x-should-retry"]
    assert "retry-after" not in refused.headers
    assert {
        "message": "This request may cost more than is left of the budget of this caller: "
        "20 of 21 USD in total. Ask the operator to raise it.",
        "type": "insufficient_quota",
        "param": None,
        "code": "insufficient_quota",
    } == refused.json()["error"]
    assert 200 == (await post(gateway, "word")).status_code, "a hit costs nothing"
    assert 200 == (await post(gateway, "other", key=f"{KEY}-b")).status_code


async def test_only_if_cached_needs_no_budget_and_calls_no_provider():
    backend = ScriptedBackend(width=WIDTH)
    gateway = gateway_of(key=total("21"), backend=backend)
    await post(gateway, "word")

    hit = await post(gateway, ["word", "word"], cache="only-if-cached")
    miss = await post(gateway, ["word", "other"], cache="max-age=60, Only-If-Cached")

    assert (200, "hits=2 misses=0") == (hit.status_code, hit.headers["x-embedroute-cache"])
    assert (504, "not_cached") == (miss.status_code, miss.json()["error"]["code"])
    assert "false" == miss.headers["x-should-retry"]
    assert miss.json()["error"]["message"].startswith("1 of 2 different inputs are not in the")
    assert 1 == len(backend.batches)


async def test_only_if_cached_does_not_reveal_what_others_have_requested():
    gateway = gateway_of()
    for key in (KEY, f"{KEY}-b"):
        assert 504 == (await post(gateway, "word", key=key, cache="only-if-cached")).status_code
        assert 504 == (await post(gateway, "word", key=key, cache="only-if-cached")).status_code
        await post(gateway, "word", key=key)
        assert 200 == (await post(gateway, "word", key=key, cache="only-if-cached")).status_code
        no_read = await post(gateway, "word", key=key, cache="no-cache, only-if-cached")
        assert 504 == no_read.status_code


@pytest.mark.parametrize("dialect", ["openrouter", "gomodel", "phaseo", "spice"])
async def test_in_other_dialects_it_is_a_402(dialect):
    assert 402 == (await post(gateway_of(key=total("1")), "word", dialect=dialect)).status_code


async def test_the_budget_of_the_gateway_holds_for_all_callers():
    gateway = gateway_of(key=total("1000"), gateway={"usd": "42", "per": "month"})
    texts = [("one", KEY), ("two", f"{KEY}-b"), ("six", KEY), ("ten", f"{KEY}-b")]

    statuses = [(await post(gateway, text, key=key)).status_code for text, key in texts]
    refused = await post(gateway, "a text of thirty letters or so", key=KEY)

    assert [200] * 4 == statuses
    message = refused.json()["error"]["message"]
    assert "budget of the gateway: 38 of 42 USD per month. It resets at 20" in message


@pytest.mark.parametrize("failure", ["error", "cancelled"])
async def test_a_request_that_fails_or_is_cancelled_releases_its_reservation(store_url, failure):
    script = [UpstreamUnavailable("down")] * 9 if failure == "error" else [LONG]
    backend = ScriptedBackend(script=script, width=WIDTH)
    gateway = gateway_of(store_url, key=total("25"), backend=backend)
    async with gateway.lifespan():
        if failure == "error":
            assert 502 == (await post(gateway, "word")).status_code
        else:
            with anyio.move_on_after(0.5):
                await post(gateway, "word")
        backend.script.clear()
        for _ in range(100):  # the reservation of a cancelled request is released by a thread
            status = (await post(gateway, "word")).status_code
            if status == 200:
                break
            await anyio.sleep(0.05)
        assert 200 == status


async def test_several_gateways_never_spend_more_than_the_budget(store_url):
    """256 concurrent requests of one dollar each, and 40 dollars."""
    backends = [ScriptedBackend(width=WIDTH) for _ in range(2)]
    gateways = [gateway_of(store_url, key=total("40"), backend=each) for each in backends]
    statuses = []

    async def ask(number):
        answer = await post(gateways[number % 2], f"t{number:03}")
        statuses.append(answer.status_code)

    async with gateways[0].lifespan(), gateways[1].lifespan():
        await tasks.gather([partial(ask, number) for number in range(256)], 64)
        assert {200, 429} == {*statuses}
        # A request fits only while 20 dollars are left, the most that it can cost.
        served = statuses.count(200)
        for number in range(21 - served):
            assert 200 == (await post(gateways[number % 2], f"u{number:03}")).status_code
        assert 429 == (await post(gateways[0], "next")).status_code

    assert served <= 21 == sum(len(batch.texts) for each in backends for batch in each.batches)


async def test_what_was_spent_is_known_after_a_restart(store_url):
    for status in (200, 200, 429):
        async with (gateway := gateway_of(store_url, key=total("21"))).lifespan():
            text = "word" if status == 200 else "other"
            assert status == (await post(gateway, text)).status_code


async def test_a_usage_beyond_the_bound_spends_the_budget():
    answer = Vectors.from_lists([[1.0] * WIDTH], prompt_tokens=10**6)
    gateway = gateway_of(key=total("30"), backend=ScriptedBackend(script=[answer], width=WIDTH))

    assert [200, 429] == [(await post(gateway, text)).status_code for text in ("one", "two")]


async def test_a_provider_without_a_price_is_not_used_for_a_caller_with_a_budget():
    gateway = gateway_of(key=total("1000"))

    refused = await post(gateway, "word", model="unpriced")
    assert (404, "no_eligible_provider") == (refused.status_code, refused.json()["error"]["code"])
    assert 200 == (await post(gateway, "word", model="unpriced", key=f"{KEY}-b")).status_code


@pytest.mark.parametrize(("on_failure", "status"), [(None, 503), ("closed", 503), ("open", 200)])
async def test_without_its_store_a_budget_is_closed_or_open(tmp_path, on_failure, status):
    with StoreServer("valkey", tmp_path) as server:
        pass
    gateway = Gateway(
        Config(
            gateway={"auth": "keys"},
            keys={"a": {"key": KEY, "budget": total("1000")}, "b": {"key": f"{KEY}-b"}},
            store={"url": server.url},
            limits={"on_store_failure": on_failure},
            providers={"p": Provider(backend=ScriptedBackend(width=WIDTH))},
            models={"m": {"dimensions": WIDTH, "endpoints": [{"provider": "p", "price": 1}]}},
        ),
        environ={},
    )

    assert status == (await post(gateway, "word")).status_code
    assert 200 == (await post(gateway, "word", key=f"{KEY}-b")).status_code


@pytest.mark.parametrize(
    ("per", "now", "window"),
    [
        ("month", 0.0, Window("1970-01", "1970-02-01T00:00:00Z")),
        ("month", 1798761599.0, Window("2026-12", "2027-01-01T00:00:00Z")),
        ("month", 1798761600.0, Window("2027-01", "2027-02-01T00:00:00Z")),
        ("day", 1709164800.0, Window("2024-02-29", "2024-03-01T00:00:00Z")),
        ("day", 1709251199.9, Window("2024-02-29", "2024-03-01T00:00:00Z")),
        ("total", 0.0, Window("total", "")),
    ],
)
def test_months_and_days_begin_in_utc(per, now, window):
    assert window == find_window(per, now)


@pytest.mark.parametrize(
    ("usd", "units"), [("25.00", 25 * 10**9), ("0.00000002", 20), ("0.0000000001", 1), ("0", 0)]
)
def test_amounts_are_rounded_up_to_a_billionth(usd, units):
    assert units == to_units(Decimal(usd))


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"usd": "-1", "per": "day"}, "usd must be a number from 0 to 1000000"),
        ({"usd": "NaN", "per": "day"}, "usd must be a number from 0 to 1000000"),
        ({"usd": "2000000", "per": "day"}, "usd must be a number from 0 to 1000000"),
        ({"usd": "1", "per": "week"}, "per must be"),
        ({"usd": "1"}, '"per" is missing'),
    ],
)
def test_an_invalid_budget_is_a_mistake(budget, words):
    with pytest.raises(ConfigError) as caught:
        gateway_of(key=budget)

    assert words in caught.value.message
