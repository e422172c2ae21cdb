"""Vectors in a store: gateways share them, and no failure of the store becomes one of a request."""

import logging
import time
from functools import partial

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute import Caller, Config, ConfigError, Gateway, Provider, StoreSettings
from embedroute.auth import ANYONE
from embedroute.backend import Secret, Source
from embedroute.cache import CachePolicy, decode, encode
from embedroute.protocol import make_request
from embedroute.routing import EmbeddedInput, make_plan
from embedroute.runtime import tasks
from embedroute.stores import StoreKey, make_store
from embedroute.testing import ScriptedBackend, expected_vector
from embedroute.trace import RequestTrace
from tests.support.stores import StoreServer

pytestmark = pytest.mark.anyio
WIDTH = 8
HANGING = 0.5
"""Seconds that a request waits for a store that hangs; one on a busy machine takes less."""
LONG = 30.0
"""Seconds that a request waits for the store where the test is not about that time."""
WRITTEN = 0.3
"""Seconds after which a write was tried, on a machine that is not busy."""


def gateway_of(url, backend=None, *, cache=None, store=None, **model):
    backend = backend or ScriptedBackend(width=WIDTH)
    return backend, Gateway(
        Config(
            gateway={"auth": "open"},
            cache=cache or {},
            store={"url": url, "timeout": LONG, **(store or {})},
            providers={"p": Provider(backend=backend)},
            models={
                "m": {
                    "dimensions": WIDTH,
                    "matryoshka": True,
                    "endpoints": [{"provider": "p"}],
                    **model,
                }
            },
        ),
        environ={},
    )


async def embed(gateway, texts, **options):
    answer = await gateway.embed(texts, model="m", **options)
    trace = answer.trace
    return answer.vectors, (trace.hits, trace.misses, trace.shared_hits)


async def embed_elsewhere(url, texts, **options):
    """Embed with a gateway that has an empty memory; return its vectors, counts and calls."""
    backend, gateway = gateway_of(url)
    async with gateway.lifespan():
        vectors, counts = await embed(gateway, texts, **options)
    return vectors.tolist(), counts, sum(len(batch.texts) for batch in backend.batches)


async def store_vectors(url, texts, **options):
    """Embed with a gateway that then ends, so that its vectors are in the store."""
    async with (gateway := gateway_of(url)[1]).lifespan():
        await embed(gateway, texts, **options)


async def until_written(url, texts):
    """Wait until the store has the vectors of texts."""
    store = make_store(StoreSettings(url=Secret(url)))
    keys = keys_of(texts)
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        store.open()
        try:
            if None not in store.get_vectors(keys):
                return
        finally:
            store.close()
        await anyio.sleep(0.02)
    raise TimeoutError


def right(texts, width=WIDTH):
    return [expected_vector(text, width).tolist() for text in texts]


async def test_a_text_embedded_by_one_gateway_is_a_hit_of_another(store_url):
    _, first = gateway_of(store_url)
    backend, second = gateway_of(store_url)
    async with first.lifespan(), second.lifespan():
        await embed(first, ["a", "b"])
        await until_written(store_url, "ab")
        vectors, counts = await embed(second, ["c", "b", "a", "b"])
        assert (right("cbab"), (3, 1, 0)) == (vectors.tolist(), counts)
        assert [["c"]] == [batch.texts for batch in backend.batches]
        assert (4, 0, 0) == (await embed(second, ["c", "b", "a", "b"]))[1], "now it is in memory"


async def test_vectors_are_kept_when_the_gateway_ends(store_url):
    await store_vectors(store_url, ["a"])

    assert (right("a"), (1, 0, 0), 0) == await embed_elsewhere(store_url, "a")


async def test_a_vector_of_full_width_in_the_store_serves_smaller_widths(store_url):
    await store_vectors(store_url, ["a", "b"])

    vectors, counts, calls = await embed_elsewhere(store_url, ["b", "c"], dimensions=4)

    assert ((1, 1, 0), 1) == (counts, calls)
    assert np.allclose(right("bc", 4), vectors)


@pytest.mark.parametrize(
    ("stored", "looked_up", "calls"),
    [
        ({}, {"cache_policy": CachePolicy(read=False)}, 1),
        ({"cache_policy": CachePolicy(store=False)}, {}, 1),
        ({"caller": Caller(name="a", namespace="x")}, {"caller": Caller(name="b")}, 1),
        ({"provider": {"data_collection": "allow"}}, {}, 0),
    ],
)
async def test_the_rules_of_the_cache_hold_for_the_store(tmp_path, stored, looked_up, calls):
    url = f"sqlite:///{tmp_path / 'store.db'}"
    await store_vectors(url, ["a"], **stored)

    assert calls == (await embed_elsewhere(url, "a", **looked_up))[2]


async def test_a_hit_on_another_callers_entry_is_reported_as_a_miss_at_first(store_url):
    a, b = Caller(name="a"), Caller(name="b")
    await store_vectors(store_url, ["text"], caller=a)

    assert (0, 1, 1) == (await embed_elsewhere(store_url, "text", caller=b))[1]
    assert (1, 0, 0) == (await embed_elsewhere(store_url, "text", caller=b))[1]
    assert (1, 0, 0) == (await embed_elsewhere(store_url, "text", caller=a))[1]


async def test_vectors_stay_out_of_the_store_if_the_config_says_so(store_url):
    _, gateway = gateway_of(store_url, store={"cache": False})
    async with gateway.lifespan():
        await embed(gateway, ["a"])

    assert 1 == (await embed_elsewhere(store_url, "a"))[2]


async def test_the_store_is_used_without_a_cache_in_memory(store_url):
    backend, gateway = gateway_of(store_url, cache={"bytes": 0})
    async with gateway.lifespan():
        await embed(gateway, ["a"])
        await until_written(store_url, "a")
        assert (1, 0, 0) == (await embed(gateway, ["a"]))[1]
    assert 1 == len(backend.batches)


async def test_a_large_request_is_stored_and_found(store_url):
    texts = [f"text {number}" for number in range(2048)]
    await store_vectors(store_url, texts)

    vectors, counts, calls = await embed_elsewhere(store_url, texts)

    assert right(texts) == vectors
    assert 2048 == sum(counts)
    assert calls == counts[1], "what the store did not return in time is computed"


def flipped(value, at):
    return value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda values: values[1], id="the entry of another text"),
        pytest.param(lambda values: flipped(values[0], 2), id="another version"),
        pytest.param(lambda values: flipped(values[0], -20), id="a wrong bit in the numbers"),
        pytest.param(lambda values: values[0][:-8], id="cut off"),
        pytest.param(lambda values: values[0] + b"1234", id="too long"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"\0" * 100, id="something else"),
    ],
)
async def test_an_entry_that_cannot_be_verified_is_a_miss_and_is_removed(store_url, damage):
    await store_vectors(store_url, ["a", "b"])
    store = make_store(StoreSettings(url=Secret(store_url)))
    store.open()
    keys = keys_of("ab")
    values = store.get_vectors(keys)
    store.put_vectors([(keys[0], damage(values))], 3600.0)
    policy = CachePolicy(store=False)

    found = await embed_elsewhere(store_url, ["a", "b"], cache_policy=policy)

    assert (right("ab"), (1, 1, 0), 1) == found
    assert [None, values[1]] == list(store.get_vectors(keys))
    store.close()


def keys_of(texts):
    """Return the keys of texts in the store."""
    _, gateway = gateway_of(None)
    request = make_request({"input": list(texts), "model": "m"}, gateway.active.limits)
    prepared = gateway.active.selections.prepare(request, ANYONE, RequestTrace("id"))
    plan = make_plan(request.inputs, prepared.key_prefix)
    return [StoreKey("m", key) for key in plan.keys]


SINGLE = st.floats(width=32, allow_nan=False)


@given(
    key=st.binary(min_size=1, max_size=64),
    numbers=st.lists(SINGLE, min_size=1, max_size=20),
    tokens=st.integers(0, 2**32 - 1),
    estimated=st.booleans(),
    owners=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=16).map(tuple),
    modalities=st.none() | st.dictionaries(st.text(max_size=8), st.integers(0, 10**6), min_size=1),
)
def test_an_entry_is_decoded_as_it_was_encoded(key, numbers, tokens, estimated, owners, modalities):
    item = EmbeddedInput(np.array(numbers, "<f4"), tokens, estimated, None, modalities)

    value = encode(key, item, owners, 1000.0)
    entry = decode(key, value, 999.0, -900.0)

    assert item.vector.tolist() == entry.vector.tolist()
    assert (tokens, estimated, modalities) == (entry.tokens, entry.estimated, entry.modality_tokens)
    assert (owners, 100.0) == (entry.owners, entry.expires)
    assert decode(key, value, 1000.0, 0.0) is None, "it has expired"
    assert decode(key + b"x", value, 999.0, 0.0) is None
    for at in range(0, len(value), 7):
        assert decode(key, flipped(value, at), 999.0, 0.0) is None


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_quantised_vectors_keep_their_type(dtype):
    item = EmbeddedInput(np.array([1, 2, 127], dtype), 1)

    entry = decode(b"k", encode(b"k", item, (), 2.0), 1.0, 0.0)

    assert (dtype, [1, 2, 127]) == (entry.vector.dtype.name, entry.vector.tolist())


# The store fails.


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "embedroute.store"]


async def test_a_store_that_cannot_be_reached_fails_the_start_with_one_line(tmp_path):
    with StoreServer("valkey", tmp_path) as server:
        url = server.url.replace("valkey://", "valkey://:secret@")
    _, gateway = gateway_of(url)

    with pytest.raises(ConfigError) as caught:
        async with gateway.lifespan():
            raise AssertionError

    assert caught.value.message.startswith(f"[store] url: {server.url}: ")
    assert "\n" not in caught.value.message
    assert "secret" not in caught.value.message


async def test_a_wrong_password_fails_the_start(servers):
    url = servers("valkey").url.replace("valkey://", "valkey://:a-wrong-password@")
    _, gateway = gateway_of(url)

    with pytest.raises(ConfigError) as caught:
        async with gateway.lifespan():
            raise AssertionError
    assert "a-wrong-password" not in caught.value.message


async def test_requests_are_served_without_the_store_and_the_log_says_so_once(tmp_path, caplog):
    with StoreServer("valkey", tmp_path) as server:
        pass
    backend, gateway = gateway_of(server.url)
    caplog.set_level(logging.INFO)

    for number in range(20):
        await embed(gateway, f"text {number}")
        await anyio.sleep(0.01)

    assert 20 == len(backend.batches)
    (line,) = warnings_in(caplog)
    assert line.startswith("store unavailable; requests are served without it: store=valkey://127")


async def wait_for_hit(url, text, seconds=10.0):
    """Wait until another gateway finds a text in the store."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not (await embed_elsewhere(url, text, cache_policy=CachePolicy(store=False)))[2]:
            return
        await anyio.sleep(0.05)
    raise TimeoutError


@pytest.mark.parametrize("name", ["redis", "valkey"])
async def test_a_store_that_is_killed_and_started_again_is_used_again(name, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with StoreServer(name, tmp_path) as server:
        backend, gateway = gateway_of(server.url)
        async with gateway.lifespan():
            await embed(gateway, "a")
            await until_written(server.url, "a")
            server.kill()
            # Without a read, the first command that fails is the one that writes.
            await embed(gateway, "b", cache_policy=CachePolicy(read=False))
            await anyio.sleep(WRITTEN)
            for text in "cde":
                assert right(text) == (await embed(gateway, text))[0].tolist()
            await anyio.sleep(WRITTEN)
            server.start()
            # What could not be written is written later.
            await wait_for_hit(server.url, "e")
            await wait_for_hit(server.url, "b")
        assert 5 == len(backend.batches)
    assert "store available again" in warnings_in(caplog)[-1]


async def test_a_store_that_hangs_delays_few_requests_and_those_by_its_patience(tmp_path):
    with StoreServer("valkey", tmp_path) as server:
        _, gateway = gateway_of(server.url, store={"timeout": HANGING})
        async with gateway.lifespan():
            await embed(gateway, "a")
            await until_written(server.url, "a")
            server.stop()
            delayed = 0
            for number in range(100):
                start = time.monotonic()
                await embed(gateway, f"text {number}")
                delayed += time.monotonic() - start >= HANGING
            server.go_on()
            assert delayed <= 10, "a few more than two on a busy machine"
            await wait_for_hit(server.url, "text 99")


async def test_a_sqlite_file_that_becomes_read_only_costs_no_request(tmp_path):
    path = tmp_path / "store.db"
    backend, gateway = gateway_of(f"sqlite:///{path}")
    async with gateway.lifespan():
        await embed(gateway, "a")
        await until_written(f"sqlite:///{path}", "a")
        for file in tmp_path.iterdir():
            file.unlink()
        path.mkdir()
        for text in "bcd":
            assert right(text) == (await embed(gateway, text))[0].tolist()
            await anyio.sleep(0.1)
    assert 4 == len(backend.batches)


@pytest.mark.uncounted
@pytest.mark.parametrize("count", [200, pytest.param(30_000, marks=pytest.mark.slow)])
async def test_a_cancelled_read_never_becomes_the_answer_of_another(store_url, count):
    """OpenAI's ChatGPT showed users the data of others in March 2023 because of this."""
    texts = [f"text {number}" for number in range(64)]
    await store_vectors(store_url, texts)
    _, gateway = gateway_of(store_url, cache={"bytes": 0})
    mismatches = []

    async def ask(number):
        text = texts[number % 64]
        with anyio.move_on_after((number % 17) * 0.0002):
            vectors, _ = await embed(gateway, text)
            if vectors.tolist() != right([text]):
                mismatches.append(text)

    async with gateway.lifespan():
        await tasks.gather([partial(ask, number) for number in range(count)], 16)
        assert right(texts) == (await embed(gateway, texts))[0].tolist()
    assert [] == mismatches


async def test_vectors_of_a_source_that_proves_unreliable_leave_the_store(tmp_path):
    """The source may be caught after its vectors were written."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    _, gateway = gateway_of(url)
    source = Source()
    keys = keys_of("ab")
    row = np.ones(WIDTH, "f4")
    async with gateway.lifespan():
        cache = gateway.shared_cache
        cache.store({keys[0].digest: EmbeddedInput(row, 1, source=source)}, None, "m")
        await until_written(url, "a")
        source.unreliable = True
        cache.store({keys[1].digest: EmbeddedInput(row, 1)}, None, "m")
    store = make_store(StoreSettings(url=Secret(url)))
    store.open()
    first, second = store.get_vectors(keys)
    store.close()

    assert first is None
    assert second is not None
