"""API keys that are made at run time: in every store, and how soon every gateway knows them."""

import time
from decimal import Decimal

import anyio
import httpx2
import pytest

from embedroute import Budget, Config, Gateway, Provider, RateLimits, StoreSettings, embeddings_app
from embedroute.backend import Secret
from embedroute.cli import main
from embedroute.errors import Overloaded
from embedroute.stores import (
    StoredKey,
    StoredKeys,
    StoreWorker,
    decode_keys,
    digest_key,
    make_key,
    make_store,
)
from embedroute.testing import ScriptedBackend
from tests.support.stores import StoreServer

pytestmark = pytest.mark.anyio
WIDTH = 8
LONG = 30.0


@pytest.fixture(params=["asyncio", pytest.param("trio", marks=pytest.mark.thorough)])
def anyio_backend(request):
    return request.param


@pytest.fixture
def store(store_url):
    store = make_store(StoreSettings(url=Secret(store_url)))
    store.open()
    yield store
    store.close()


def key_of(name, text="text", **fields):
    return StoredKey(name=name, digest=digest_key(text.encode()), created=0.0, **fields)


def put(store, key):
    assert store.put_key(key.name, key.encode())


def gateway_of(url, *, timeout=LONG, **settings):
    return Gateway(
        Config(
            gateway={"auth": "keys", **settings},
            store={"url": url, "timeout": timeout},
            providers={"p": Provider(backend=ScriptedBackend(width=WIDTH))},
            models={
                name: {"dimensions": WIDTH, "endpoints": [{"provider": "p", "price": 1_000_000}]}
                for name in ("m", "other")
            },
        ),
        environ={},
    )


async def post(gateway, key, text="text", model="m", **headers):
    transport = httpx2.ASGITransport(embeddings_app(gateway, protocols=["openai", "azure"]))
    async with httpx2.AsyncClient(transport=transport, base_url="http://host") as client:
        return await client.post(
            "/v1/embeddings",
            json={"model": model, "input": text},
            headers={"authorization": f"Bearer {key}", **headers},
        )


async def status_within_a_second(gateway, key, status):
    """Send requests until one gets ``status``; fail a while after one second."""
    end = time.monotonic() + 1
    while (found := (await post(gateway, key)).status_code) != status:
        assert time.monotonic() < end, found
        await anyio.sleep(0.05)


# Every store.


def test_a_store_keeps_keys_by_name(store):
    first, second = key_of("b", "1"), key_of("a", "2", budget=Budget(usd=Decimal("1.5"), per="day"))
    put(store, first)
    put(store, second)
    assert not store.put_key("b", b"{}")
    version, values = store.read_keys("")

    assert [second, first] == decode_keys(values)
    assert (version, None) == store.read_keys(version)
    assert store.drop_key("b")
    assert not store.drop_key("b")
    changed, values = store.read_keys(version)
    assert changed != version
    assert [second] == decode_keys(values)


def test_an_empty_store_has_no_keys(store):
    assert [] == list(store.read_keys("")[1])


# Gateways.


async def test_every_gateway_knows_a_change_within_a_second(store_url, store):
    gateways = [gateway_of(store_url) for _ in range(2)]
    async with gateways[0].lifespan(), gateways[1].lifespan():
        for gateway in gateways:
            assert 401 == (await post(gateway, "text")).status_code
        put(store, key_of("a"))
        for gateway in gateways:
            await status_within_a_second(gateway, "text", 200)
        store.drop_key("a")
        for gateway in gateways:
            await status_within_a_second(gateway, "text", 401)
        put(store, key_of("a"))
        await status_within_a_second(gateways[0], "text", 200)
        store.drop_key("a")
        await anyio.sleep(1)
        assert 401 == (await post(gateways[0], "text")).status_code, "the first one after a pause"


async def test_an_expired_key_is_refused_at_once(store_url, store):
    put(store, key_of("a", expires=time.time() + 1.5))
    async with (gateway := gateway_of(store_url)).lifespan():
        assert 200 == (await post(gateway, "text")).status_code
        await anyio.sleep(1.5)
        assert 401 == (await post(gateway, "text")).status_code


async def test_a_key_has_models_limits_and_a_budget(store_url, store):
    """A word of four letters costs 1 dollar, and at most 4 for its bytes and 16 for the rest."""
    put(store, key_of("a", models=["m"]))
    put(store, key_of("b", "limited", limits=RateLimits(requests_per_minute=1)))
    put(store, key_of("c", "poor", budget=Budget(usd=Decimal(21), per="total")))
    async with (gateway := gateway_of(store_url)).lifespan():
        statuses = [
            (await post(gateway, *words)).status_code
            for words in (
                ("text", "word"),
                ("text", "word", "other"),
                ("limited", "word"),
                ("limited", "word"),
                ("poor", "more"),
                ("poor", "last"),
                ("poor", "none"),
            )
        ]
    assert [200, 403, 200, 429, 200, 200, 429] == statuses


async def test_a_key_has_providers_and_debug(store_url, store):
    put(store, key_of("a", only=["p"]))
    put(store, key_of("b", "elsewhere", only=["openai"]))
    put(store, key_of("c", "never", ignore=["p"]))
    put(store, key_of("d", "debugs", debug=True))
    async with (gateway := gateway_of(store_url)).lifespan():
        statuses = [
            (await post(gateway, key, f"{key} text")).status_code
            for key in ("text", "elsewhere", "never")
        ]
        explained = [(await explain(gateway, key)).status_code for key in ("text", "debugs")]
    assert [200, 404, 404] == statuses
    assert [403, 200] == explained


async def explain(gateway, key):
    transport = httpx2.ASGITransport(embeddings_app(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://host") as client:
        return await client.post(
            "/v1/embeddings?explain=1",
            json={"model": "m", "input": "text"},
            headers={"authorization": f"Bearer {key}"},
        )


async def test_limits_of_a_key_that_is_made_again_are_the_new_ones(store_url, store):
    async with (gateway := gateway_of(store_url)).lifespan():
        put(store, key_of("a", limits=RateLimits(requests_per_minute=1)))
        assert [200, 429] == [(await post(gateway, "text")).status_code for _ in range(2)]
        store.drop_key("a")
        put(store, key_of("a", "new", limits=RateLimits(requests_per_minute=600)))
        await status_within_a_second(gateway, "new", 200)
        answers = [await post(gateway, "new") for _ in range(5)]
    assert [200] * 5 == [each.status_code for each in answers]
    assert {"600"} == {each.headers["x-ratelimit-limit-requests"] for each in answers}


async def test_a_stored_key_is_found_in_the_header_of_another_api(store_url, store):
    put(store, key_of("a"))
    transport_app = embeddings_app(gateway_of(store_url), protocols=["openai", "azure"])
    transport = httpx2.ASGITransport(transport_app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://host") as client:
        statuses = [
            (
                await client.post(
                    "/openai/deployments/m/embeddings?api-version=2024-10-21",
                    json={"input": "text"},
                    headers={"api-key": key},
                )
            ).status_code
            for key in ("text", "wrong")
        ]
    assert [200, 401] == statuses


class CountingStore:
    """A store that counts how often its keys are read."""

    def __init__(self):
        self.reads = 0

    def open(self):
        pass

    def close(self):
        pass

    def read_keys(self, version):
        self.reads += 1
        return "1", None if version == "1" else [key_of("a").encode()]


async def test_random_keys_read_the_store_at_most_every_few_tenths_of_a_second():
    counting = CountingStore()
    keys = StoredKeys(StoreWorker(counting, "here", LONG))
    began = time.monotonic()

    found = [await keys.find(b"%d" % number) for number in range(2000)]

    assert {None} == {*found}
    assert counting.reads <= 2 + (time.monotonic() - began) / 0.4
    assert "a" == (await keys.find(b"text")).name


async def test_a_dead_store_locks_out_no_key_that_is_known(tmp_path):
    with StoreServer("valkey", tmp_path) as server:
        store = make_store(StoreSettings(url=Secret(server.url)))
        put(store, key_of("a"))
        store.close()
        async with (gateway := gateway_of(server.url, timeout=0.2)).lifespan():
            assert 200 == (await post(gateway, "text")).status_code
            assert 401 == (await post(gateway, "wrong")).status_code
            server.kill()
            for _ in range(4):
                await anyio.sleep(0.5)
                assert 200 == (await post(gateway, "text")).status_code
            refused = await post(gateway, "wrong")
    assert 503 == refused.status_code
    assert "The API key cannot be checked" in refused.json()["error"]["message"]


async def test_an_unknown_key_is_no_mistake_of_the_client_while_the_store_fails(tmp_path):
    with StoreServer("valkey", tmp_path) as server:
        pass
    worker = StoreWorker(make_store(StoreSettings(url=Secret(server.url))), "here", 0.2)
    with pytest.raises(Overloaded):
        await StoredKeys(worker).find(b"text")


# The command.

CONFIG = """
[gateway]
auth = "keys"
[store]
url = "{url}"
[keys.fixed]
key = "a-key-of-the-config"
[providers.hashed]
"""


@pytest.fixture
def command(tmp_path, capsys):
    config = tmp_path / "my.toml"
    config.write_text(CONFIG.format(url=f"sqlite:///{tmp_path / 'store.db'}"))

    def run(*words):
        status = main(["keys", *words, "--config", str(config)])
        return status, *capsys.readouterr()

    run.config = config
    return run


async def test_a_key_is_made_shown_once_listed_and_revoked(command, tmp_path):
    limits = ["--rpm", "10", "--tpm", "2000", "--concurrent", "3"]
    providers = ["--only", "hashed", "--ignore", "openai", "--debug"]
    models = ["--models", "hashed", *providers]
    options = [*models, "--budget", "25.00/month", "--expires", "30d", *limits]
    status, text, note = command("create", "team", *options)
    assert (0, 1) == (status, text.count("\n"))
    assert "not shown again" in note
    _, table, _ = command("list")
    assert text.strip() not in table
    for words in (
        "team",
        "hashed",
        "only hashed not openai",
        "true",
        "25.00/month",
        "requests_per_minute=10",
        "concurrent",
    ):
        assert words in table
    assert text.strip().encode() not in b"".join(
        each.read_bytes() for each in tmp_path.glob("store.db*")
    )

    async with (gateway := Gateway.from_file(command.config)).lifespan():
        assert 200 == (await post(gateway, text.strip(), model="hashed")).status_code
        assert (0, "revoked: team\n", "") == command("revoke", "team")
        await anyio.sleep(1)
        assert 401 == (await post(gateway, text.strip(), model="hashed")).status_code
        assert 200 == (await post(gateway, "a-key-of-the-config", model="hashed")).status_code


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["create", "fixed"], "[keys.fixed] is in the config"),
        (["create", "twice"], "There is a key twice already"),
        (["create"], "Write a NAME"),
        (["create", "two words"], "Write a NAME"),
        (["create", "x", "--models", "hashde"], "hashde"),
        (["create", "x", "--ignore", "hashde"], "unknown provider 'hashde'"),
        (["create", "x", "--only", "nowhere"], "unknown provider 'nowhere'"),
        (["revoke", "absent"], "The store has no key absent."),
        (["revoke", "fixed"], "It is a table of the config"),
    ],
)
def test_a_mistake_is_one_line(command, words, message):
    command("create", "twice")
    status, _, errors = command(*words)
    assert (1, 1) == (status, errors.count("\n"))
    assert message in errors


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--budget", "25"], "is not USD/PER"),
        (["--budget", "x/day"], "is not USD/PER"),
        (["--rpm", "0"], "is not a positive number"),
        (["--expires", "soon"], "neither a period"),
        (["--expires", "2020-01-01"], "is in the past"),
    ],
)
def test_an_invalid_option_is_a_usage_error(command, capsys, option, message):
    with pytest.raises(SystemExit) as caught:
        command("create", "x", *option)
    assert 2 == caught.value.code
    assert message in capsys.readouterr().err


def test_a_time_without_a_zone_is_utc(command):
    command("create", "x", "--expires", "2099-01-31T12:00")
    assert "2099-01-31T12:00Z" in command("list")[1]


def test_keys_need_a_store(tmp_path, capsys):
    config = tmp_path / "my.toml"
    config.write_text('[gateway]\nauth = "open"\n[providers.hashed]\n')
    assert 1 == main(["keys", "list", "--config", str(config)])
    assert "[store] url is not set" in capsys.readouterr().err


def test_keys_are_long_and_differ():
    assert make_key() != make_key()
    assert len(make_key()) > 40
