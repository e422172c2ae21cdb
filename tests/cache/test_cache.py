"""The cache: mixes of hits and misses, sharing between callers, expiry and size."""

# Anyio's plugin reads `anyio_backend`.
# ruff: noqa: ARG001

import gc
import itertools
import os
import tracemalloc
from functools import partial

import numpy as np
import pytest

from embedroute import Caller, Config, Gateway, Provider
from embedroute.backend import Batch, Source, Vectors
from embedroute.cache import MOST_OWNERS, OVERHEAD, OWNER, CachePolicy, MemoryCache
from embedroute.execution import split_result
from embedroute.routing import EmbeddedInput, cut, pair_with_keys
from embedroute.runtime import tasks
from embedroute.testing import ScriptedBackend, expected_vector
from tests.support.slow import slow_unless, thorough_unless

pytestmark = pytest.mark.anyio

WIDTH = 8
LETTERS = "abcdef"


def gateway_of(backend=None, *, size=1 << 20, **model):
    """One model at two endpoints of one backend; the second has zero data retention."""
    backend = backend or ScriptedBackend(width=WIDTH)
    providers = {
        "a": Provider(backend=backend),
        "b": Provider(backend=backend, zdr=True, data_collection="deny"),
    }
    facts = {
        "dimensions": WIDTH,
        "matryoshka": True,
        "endpoints": [{"provider": "a"}, {"provider": "b"}],
        **model,
    }
    return backend, Gateway(
        Config(
            gateway={"auth": "open"},
            cache={"bytes": size},
            providers=providers,
            models={"m": facts, "n": facts},
        )
    )


def texts_sent(backend):
    """Return the texts of every call, in order, and clear them."""
    texts = ["".join(batch.texts) for batch in backend.batches]
    backend.batches.clear()
    return texts


def right(texts, width=WIDTH):
    return [expected_vector(text, width).tolist() for text in texts]


RIGHT = {text: expected_vector(text, WIDTH).tolist() for text in LETTERS}
# Every request of up to three letters of "abcd", in any order and with repeats, and some longer
# ones.
REQUESTS = [
    *("".join(texts) for n in range(1, 4) for texts in itertools.product("abcd", repeat=n)),
    "abba",
    "fedcb",
    "abcdef",
    "faceab",
    "fcffca",
]


def test_entries_of_an_unreliable_source_are_not_returned():
    """Only entries of that source; a new entry under the same key is returned."""
    cache, sources = MemoryCache(1 << 20, 60.0, lambda: 0.0), [Source(), Source(), None]
    vector = np.ones(WIDTH, "f4")
    stored = {
        bytes([at]): EmbeddedInput(vector, 1, source=source) for at, source in enumerate(sources)
    }
    cache.store(stored)
    assert stored.keys() == cache.look_up(stored).keys()
    sources[0].unreliable = True

    assert {b"\1", b"\2"} == cache.look_up(stored).keys()
    assert 2 == len(cache)
    cache.store({b"\0": EmbeddedInput(vector, 1, source=sources[1])})
    assert stored.keys() == cache.look_up(stored).keys()


def test_vectors_of_merged_and_truncated_answers_keep_their_source():
    source = Source()
    batches = [Batch(model="m", texts=[text]) for text in "ab"]
    parts = split_result(Vectors(np.ones((2, WIDTH), "f4"), source=source), batches)
    results = [pair_with_keys({b"k": "a"}, part, 1)[b"k"] for part in parts]
    cut_down = cut({b"narrow": b"k"}, {b"k": results[0]}, 2)[b"narrow"]

    assert [source] * 5 == [item.source for item in (*parts, *results, cut_down)]


@pytest.mark.uncounted
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    "cached",
    thorough_unless(
        lambda cached: len(cached) % 5 < 2,
        (
            "".join(text for text, on in zip(LETTERS, mask, strict=True) if on)
            for mask in itertools.product([0, 1], repeat=6)
        ),
    ),
)
async def test_only_misses_go_upstream_and_every_row_belongs_to_its_input(anyio_backend, cached):
    """LiteLLM's cache has handed out wrong vectors here since 2024 (BerriAI/litellm #2990 to #41799)."""
    backend, gateway = gateway_of()
    for texts in REQUESTS:
        caller = Caller(name="c", namespace=texts)
        if cached:
            await gateway.embed(list(cached), model="m", caller=caller)
            texts_sent(backend)

        answer = await gateway.embed(list(texts), model="m", caller=caller)

        misses = "".join(dict.fromkeys(text for text in texts if text not in cached))
        assert answer.vectors.tolist() == [RIGHT[text] for text in texts]
        assert texts_sent(backend) == ([misses] if misses else [])
        hits = sum(text in cached for text in texts)
        assert (answer.trace.hits, answer.trace.misses) == (hits, len(texts) - hits)
        assert answer.prompt_tokens == len(texts)


class CacheRequest:
    """A request of "text" at the model "m", unless ``fields`` say otherwise."""

    def __init__(self, namespace="", cached=None, **fields):
        self.caller = Caller(name="c", namespace=namespace)
        self.cached = cached or CachePolicy()
        self.fields = {"input": "text", "model": "m", **fields}

    async def ask(self, gateway):
        return await gateway.embed(**self.fields, caller=self.caller, cache_policy=self.cached)


NO_CACHE, NO_STORE = CachePolicy(read=False), CachePolicy(store=False)
ZDR, DENY = {"zdr": True}, {"data_collection": "deny"}


@pytest.mark.parametrize(
    ("first", "second", "calls"),
    [
        (CacheRequest(), CacheRequest(), 1),
        (CacheRequest(), CacheRequest(encoding_format="base64"), 1),
        (CacheRequest(), CacheRequest(user="u"), 1),
        (CacheRequest(), CacheRequest(input=["text", "text"]), 1),
        (CacheRequest(), CacheRequest(provider={"order": ["b"]}), 1),
        (CacheRequest(), CacheRequest(model="n"), 2),
        (CacheRequest(), CacheRequest(input="other"), 2),
        (CacheRequest(), CacheRequest(namespace="t"), 2),
        (CacheRequest(namespace="t"), CacheRequest(namespace="t"), 1),
        (CacheRequest(), CacheRequest(provider=ZDR), 2),
        (CacheRequest(provider=ZDR), CacheRequest(), 2),
        (CacheRequest(provider=ZDR), CacheRequest(provider=DENY), 2),
        (CacheRequest(provider=ZDR), CacheRequest(provider=ZDR), 1),
        (CacheRequest(input=[[1, 2]]), CacheRequest(input=[[1, 2]]), 1),
        (CacheRequest(input=[[12]]), CacheRequest(input=[[1, 2]]), 2),
        (CacheRequest(input=[[1, 2]]), CacheRequest(input="12"), 2),
        (CacheRequest(input_type="query"), CacheRequest(input_type="document"), 2),
        (CacheRequest(input_type="query"), CacheRequest(input_type="search_query"), 1),
        # A vector of full width serves every smaller width; a smaller one serves only its own.
        (CacheRequest(), CacheRequest(dimensions=4), 1),
        (CacheRequest(dimensions=WIDTH), CacheRequest(dimensions=4), 1),
        (CacheRequest(dimensions=4), CacheRequest(dimensions=4), 1),
        (CacheRequest(dimensions=4), CacheRequest(), 2),
        (CacheRequest(dimensions=6), CacheRequest(dimensions=4), 2),
        (CacheRequest(provider=ZDR), CacheRequest(provider=ZDR, dimensions=4), 1),
        (CacheRequest(provider=ZDR), CacheRequest(dimensions=4), 2),
        (CacheRequest(), CacheRequest(cached=NO_CACHE), 2),
        (CacheRequest(cached=NO_CACHE), CacheRequest(), 1),
        (CacheRequest(cached=NO_STORE), CacheRequest(), 2),
        (CacheRequest(), CacheRequest(cached=NO_STORE), 1),
    ],
)
async def test_requests_share_an_entry_only_if_all_vector_parameters_are_equal(
    first, second, calls
):
    backend, gateway = gateway_of(
        input_types=["query", "document"], prefixes={"query": "q: ", "document": "d: "}
    )

    before = await first.ask(gateway)
    after = await second.ask(gateway)

    assert calls == len(backend.batches)
    whole = await gateway_of(backend)[1].embed(**second.fields)
    assert np.allclose(after.vectors, whole.vectors, atol=1e-6)
    assert before.prompt_tokens


async def test_a_hit_costs_nothing_and_reports_its_original_tokens():
    backend, gateway = gateway_of()
    first = await gateway.embed(["one two three four", "five"], model="m")

    second = await gateway.embed(["five"], model="m")

    assert second.trace.cost == 0
    assert second.providers == ()
    assert 0 < second.prompt_tokens < first.prompt_tokens
    assert len(backend.batches) == 1


async def test_shuffled_upstream_rows_are_stored_under_their_own_text():
    """Rows are sorted before they are used.

    See tests/execution/test_lies.py for the wire format.
    """
    backend, gateway = gateway_of()
    await gateway.embed(list("abc"), model="m")
    backend.batches.clear()

    for text in "cab":
        assert (await gateway.embed(text, model="m")).vectors.tolist() == right(text)
    assert backend.batches == []


async def test_only_a_row_that_cannot_be_truncated_is_requested_again():
    """Its first numbers are all zero, so only this input is a miss."""
    whole = np.stack([expected_vector("a", WIDTH), np.eye(WIDTH, dtype="<f4")[-1]])
    backend, gateway = gateway_of(ScriptedBackend(script=[Vectors(whole)], width=WIDTH))
    await gateway.embed(["a", "b"], model="m")

    answer = await gateway.embed(["a", "b"], model="m", dimensions=4)

    assert ["ab", "b"] == texts_sent(backend)
    assert (answer.trace.hits, answer.trace.misses) == (1, 1)
    assert np.allclose(answer.vectors[1], expected_vector("b", 4))


async def test_writing_to_a_result_does_not_change_the_cache():
    _, gateway = gateway_of()
    for _ in range(3):
        answer = await gateway.embed("a", model="m")
        assert answer.vectors.tolist() == right("a")
        answer.vectors[:] = 0


async def test_a_cache_of_zero_bytes_stores_nothing():
    backend, gateway = gateway_of(size=0)
    for _ in range(2):
        await gateway.embed(["a", "a"], model="m")
    assert ["a", "a"] == texts_sent(backend)


async def test_a_failure_is_not_cached():
    backend = ScriptedBackend(script=[Vectors(np.zeros((1, WIDTH), "<f4"))] * 6, width=WIDTH)
    _, gateway = gateway_of(backend, endpoints=[{"provider": "a"}])
    with pytest.raises(Exception, match="zero"):
        await gateway.embed("a", model="m")
    assert (await gateway.embed("a", model="m")).vectors.tolist() == right("a")


# Callers of one namespace.

A, B = Caller(name="a"), Caller(name="b")


async def counts(gateway, caller, texts="text", **fields):
    trace = (await gateway.embed(texts, model="m", caller=caller, **fields)).trace
    return trace.hits, trace.misses, trace.shared_hits


async def test_a_hit_on_another_callers_entry_is_reported_as_a_miss_at_first():
    backend, gateway = gateway_of()

    assert (0, 1, 0) == await counts(gateway, A)
    assert (0, 1, 1) == await counts(gateway, B)
    assert (1, 0, 0) == await counts(gateway, B)
    assert (1, 0, 0) == await counts(gateway, A)
    assert (0, 3, 1) == await counts(
        gateway, Caller(name="c"), ["new", "new", "text"], dimensions=4
    )
    assert ["text", "new"] == texts_sent(backend)


async def test_the_application_itself_sees_every_hit():
    _, gateway = gateway_of()
    await gateway.embed("text", model="m", caller=A)

    assert 1 == (await gateway.embed("text", model="m")).trace.hits
    assert (0, 1, 1) == await counts(gateway, B)


async def test_a_waiter_also_becomes_an_owner_of_the_entry():
    backend, gateway = gateway_of(ScriptedBackend(script=[0.2], width=WIDTH))
    first = []

    async def ask(caller):
        first.append(await counts(gateway, caller))

    await tasks.gather([partial(ask, A), partial(ask, B)], at_once=2)

    assert [(0, 1, 0), (0, 1, 0)] == first
    assert [(1, 0, 0), (1, 0, 0)] == [await counts(gateway, caller) for caller in (A, B)]
    assert 1 == len(backend.batches)


# The memory cache itself.


class ManualClock:
    now = 0.0

    def __call__(self):
        return self.now


def entries(names, width=WIDTH):
    return {name.encode(): EmbeddedInput(np.ones(width, "<f4"), 1) for name in names}


def test_an_entry_expires_after_its_ttl():
    clock = ManualClock()
    cache = MemoryCache(1 << 20, 10.0, clock)
    cache.store(entries("a"))
    clock.now = 5.0
    cache.store(entries("b"))

    for clock.now, found in [(9.9, "ab"), (10.0, "b"), (14.9, "b"), (15.0, "")]:
        assert found == "".join(sorted(key.decode() for key in cache.look_up([b"a", b"b"])))
    assert (len(cache), cache.size) == (0, 0)


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        (["+a", "+b", "+c", "+d"], "bcd"),
        (["+a", "+b", "+c", "?a", "+d"], "acd"),
        (["+a", "+b", "+c", "+a", "+d"], "acd"),
        (["+abcd"], "bcd"),
        (["+abc", "?x", "+x"], "bcx"),
    ],
)
def test_the_least_recently_used_entry_is_evicted_first(steps, left):
    probe = MemoryCache(1 << 20, 10.0, ManualClock())
    probe.store(entries("a"))
    cache = MemoryCache(3 * probe.size, 10.0, ManualClock())
    for step in steps:
        if step[0] == "+":
            cache.store(entries(step[1:]))
        else:
            cache.look_up([step[1:].encode()])

    assert left == "".join(
        sorted(key.decode() for key in cache.look_up([name.encode() for name in "abcdx"]))
    )
    assert cache.size == 3 * probe.size


def test_a_claim_adds_an_owner_and_does_not_extend_the_ttl():
    clock = ManualClock()
    cache = MemoryCache(1 << 20, 10.0, clock)
    cache.store(entries("a"), owner=1)
    size, clock.now = cache.size, 5.0

    cache.claim({b"a": 2, b"b": 2})
    cache.claim({b"a": 2})

    assert (1, 2) == cache.look_up([b"a"])[b"a"].owners
    assert (1, size + OWNER) == (len(cache), cache.size)
    clock.now = 10.0
    assert {} == cache.look_up([b"a"])
    assert 0 == cache.size


@pytest.mark.parametrize(("now", "owners"), [(9.9, (1, 2)), (10.0, (2,))])
def test_a_recomputed_entry_keeps_its_owners_unless_it_had_expired(now, owners):
    """Otherwise one caller's ``no-cache`` would show in the counts of the others."""
    clock = ManualClock()
    cache = MemoryCache(1 << 20, 10.0, clock)
    cache.store(entries("a"), owner=1)
    clock.now = now

    cache.store(entries("a"), owner=2)

    assert owners == cache.look_up([b"a"])[b"a"].owners


def test_an_entry_keeps_only_its_latest_owners():
    cache = MemoryCache(1 << 20, 10.0, ManualClock())
    cache.store(entries("a"), owner=0)
    for owner in range(1, 50):
        cache.claim({b"a": owner})

    assert tuple(range(50 - MOST_OWNERS, 50)) == cache.look_up([b"a"])[b"a"].owners
    assert cache.size == WIDTH * 4 + OVERHEAD + MOST_OWNERS * OWNER


def test_owners_count_towards_the_size_limit():
    cache = MemoryCache(2 * (WIDTH * 4 + OVERHEAD + OWNER), 10.0, ManualClock())
    cache.store(entries("ab"), owner=1)

    cache.claim({b"b": 2})

    assert (1, False) == (len(cache), cache.size > cache.limit)


@pytest.mark.parametrize("owners", [0, 1, MOST_OWNERS])
@pytest.mark.parametrize("width", slow_unless((8).__eq__, [8, 256, 1536]))
def test_the_size_limit_is_on_real_bytes(width, owners):
    """The counted size is at least the used size, and less than twice that."""
    cache = MemoryCache(1 << 30, 10.0, ManualClock())
    batch = np.ones((500, width), "<f4")
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10):
            keys = [os.urandom(24) for _ in batch]
            cache.store({key: EmbeddedInput(row, 1) for key, row in zip(keys, batch, strict=True)})
            for key in keys:
                for owner in range(owners):
                    cache.claim({key: (1 << 62) + owner})
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert used <= cache.size < 2 * used


def test_tokens_by_modality_count_towards_the_size_limit():
    cache = MemoryCache(1 << 30, 10.0, ManualClock())
    keys = [os.urandom(24) for _ in range(5000)]
    row = np.ones(8, "<f4")
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for at, key in enumerate(keys):
            split = {"text": 1000 + at, "image": 9000 + at}
            cache.store({key: EmbeddedInput(row, 1, modality_tokens=split)})
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert used <= cache.size < 2 * used


def test_cached_vectors_are_read_only():
    cache = MemoryCache(1 << 20, 10.0, ManualClock())
    cache.store(entries("a"))

    assert not cache.look_up([b"a"])[b"a"].vector.flags.writeable


class PlainLRU:
    """What the cache would be without TinyLFU."""

    def __init__(self, count):
        self._count = count
        self._keys = {}

    def look_up(self, keys):
        (key,) = keys
        if key not in self._keys:
            return {}
        self._keys[key] = self._keys.pop(key)
        return {key: None}

    def store(self, results):
        self._keys.update(dict.fromkeys(results))
        if len(self._keys) > self._count:
            del self._keys[next(iter(self._keys))]


def interactive_and_bulk_requests():
    """Half of the requests follow Zipf's law; the other half are bulk runs over new texts."""
    random = np.random.default_rng(16)
    texts = [text for text in random.zipf(1.1, 60_000) if text <= 20_000]
    for start in range(0, 20_000, 5_000):
        yield from ((True, b"z%d" % text) for text in texts[start : start + 5_000])
        yield from ((False, b"s%d" % text) for text in range(start, start + 5_000))


def hit_rate_of_interactive_requests(cache):
    item = EmbeddedInput(np.ones(WIDTH, "<f4"), 1)
    hits = []
    for is_interactive, key in interactive_and_bulk_requests():
        found = cache.look_up([key])
        if is_interactive:
            hits.append(bool(found))
        if not found:
            cache.store({key: item})
    return sum(hits) / len(hits)


@pytest.mark.uncounted
@pytest.mark.parametrize(("count", "gain"), [(300, 0.01), (2500, 0.02)])
def test_a_bulk_run_does_not_replace_what_is_requested_again_and_again(count, gain):
    size = count * (WIDTH * 4 + OVERHEAD)

    rate = hit_rate_of_interactive_requests(MemoryCache(size, 60.0, lambda: 0.0))

    assert rate >= hit_rate_of_interactive_requests(PlainLRU(count)) + gain
