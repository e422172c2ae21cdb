"""What was computed before: every mask of hits and misses, who may share, how long, and how many bytes."""

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

pytestmark = pytest.mark.anyio

WIDTH = 8
LETTERS = "abcdef"


def gateway_of(backend=None, *, size=1 << 20, **model):
    """One model at two endpoints of one backend, of which the second promises to keep nothing."""
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


def asked(backend):
    """The texts of every call, in order, and forget them."""
    texts = ["".join(batch.texts) for batch in backend.batches]
    backend.batches.clear()
    return texts


def right(texts, width=WIDTH):
    return [expected_vector(text, width).tolist() for text in texts]


RIGHT = {text: expected_vector(text, WIDTH).tolist() for text in LETTERS}
# Every request of up to three letters of "abcd", in any order and with repeats, and some longer ones.
REQUESTS = [
    *("".join(texts) for n in range(1, 4) for texts in itertools.product("abcd", repeat=n)),
    "abba",
    "fedcb",
    "abcdef",
    "faceab",
    "fcffca",
]


def test_an_entry_whose_source_was_caught_is_not_found_again():
    """Only those of that source; a new entry under the same key is found."""
    cache, sources = MemoryCache(1 << 20, 60.0, lambda: 0.0), [Source(), Source(), None]
    vector = np.ones(WIDTH, "f4")
    landed = {
        bytes([at]): EmbeddedInput(vector, 1, source=source) for at, source in enumerate(sources)
    }
    cache.store(landed)
    assert landed.keys() == cache.look_up(landed).keys()
    sources[0].caught = True

    assert {b"\1", b"\2"} == cache.look_up(landed).keys()
    assert 2 == len(cache)
    cache.store({b"\0": EmbeddedInput(vector, 1, source=sources[1])})
    assert landed.keys() == cache.look_up(landed).keys()


def test_the_vectors_of_a_merged_and_of_a_cut_answer_keep_their_source():
    source = Source()
    batches = [Batch(model="m", texts=[text]) for text in "ab"]
    parts = split_result(Vectors(np.ones((2, WIDTH), "f4"), source=source), batches)
    landed = [pair_with_keys({b"k": "a"}, part, 1)[b"k"] for part in parts]
    cut_down = cut({b"narrow": b"k"}, {b"k": landed[0]}, 2)[b"narrow"]

    assert [source] * 5 == [it.source for it in (*parts, *landed, cut_down)]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    "held",
    [
        "".join(text for text, on in zip(LETTERS, mask, strict=True) if on)
        for mask in itertools.product([0, 1], repeat=6)
    ],
)
async def test_only_misses_go_upstream_and_every_row_belongs_to_its_input(anyio_backend, held):
    """LiteLLM's cache has handed out wrong vectors here since 2024 (BerriAI/litellm #2990 to #41799)."""
    backend, gateway = gateway_of()
    for texts in REQUESTS:
        caller = Caller(name="c", namespace=texts)
        if held:
            await gateway.embed(list(held), model="m", caller=caller)
            asked(backend)

        answer = await gateway.embed(list(texts), model="m", caller=caller)

        misses = "".join(dict.fromkeys(text for text in texts if text not in held))
        assert answer.vectors.tolist() == [RIGHT[text] for text in texts]
        assert asked(backend) == ([misses] if misses else [])
        hits = sum(text in held for text in texts)
        assert (answer.trace.hits, answer.trace.misses) == (hits, len(texts) - hits)
        assert answer.prompt_tokens == len(texts)


class Question:
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
        (Question(), Question(), 1),
        (Question(), Question(encoding_format="base64"), 1),
        (Question(), Question(user="u"), 1),
        (Question(), Question(input=["text", "text"]), 1),
        (Question(), Question(provider={"order": ["b"]}), 1),
        (Question(), Question(model="n"), 2),
        (Question(), Question(input="other"), 2),
        (Question(), Question(namespace="t"), 2),
        (Question(namespace="t"), Question(namespace="t"), 1),
        (Question(), Question(provider=ZDR), 2),
        (Question(provider=ZDR), Question(), 2),
        (Question(provider=ZDR), Question(provider=DENY), 2),
        (Question(provider=ZDR), Question(provider=ZDR), 1),
        (Question(input=[[1, 2]]), Question(input=[[1, 2]]), 1),
        (Question(input=[[12]]), Question(input=[[1, 2]]), 2),
        (Question(input=[[1, 2]]), Question(input="12"), 2),
        (Question(input_type="query"), Question(input_type="document"), 2),
        (Question(input_type="query"), Question(input_type="search_query"), 1),
        # A full vector serves every smaller width, and a smaller one nobody else.
        (Question(), Question(dimensions=4), 1),
        (Question(dimensions=WIDTH), Question(dimensions=4), 1),
        (Question(dimensions=4), Question(dimensions=4), 1),
        (Question(dimensions=4), Question(), 2),
        (Question(dimensions=6), Question(dimensions=4), 2),
        (Question(provider=ZDR), Question(provider=ZDR, dimensions=4), 1),
        (Question(provider=ZDR), Question(dimensions=4), 2),
        (Question(), Question(cached=NO_CACHE), 2),
        (Question(cached=NO_CACHE), Question(), 1),
        (Question(cached=NO_STORE), Question(), 2),
        (Question(), Question(cached=NO_STORE), 1),
    ],
)
async def test_requests_share_an_entry_only_where_all_that_matters_is_equal(first, second, calls):
    backend, gateway = gateway_of(
        input_types=["query", "document"], prefixes={"query": "q: ", "document": "d: "}
    )

    before = await first.ask(gateway)
    after = await second.ask(gateway)

    assert calls == len(backend.batches)
    whole = await gateway_of(backend)[1].embed(**second.fields)
    assert np.allclose(after.vectors, whole.vectors, atol=1e-6)
    assert before.prompt_tokens


async def test_a_hit_costs_nothing_and_tells_the_tokens_it_once_cost():
    backend, gateway = gateway_of()
    first = await gateway.embed(["one two three four", "five"], model="m")

    second = await gateway.embed(["five"], model="m")

    assert second.trace.cost == 0
    assert second.providers == ()
    assert 0 < second.prompt_tokens < first.prompt_tokens
    assert len(backend.batches) == 1


async def test_shuffled_upstream_rows_are_stored_under_their_own_text():
    """The rows of an answer are put in order before anybody sees them; see tests/execution/test_lies.py for the wire."""
    backend, gateway = gateway_of()
    await gateway.embed(list("abc"), model="m")
    backend.batches.clear()

    for text in "cab":
        assert (await gateway.embed(text, model="m")).vectors.tolist() == right(text)
    assert backend.batches == []


async def test_a_row_that_cannot_be_cut_is_asked_for_anew_and_no_other():
    """Its first numbers are all zero: of it, and of nothing else in the request, the cache knows nothing."""
    whole = np.stack([expected_vector("a", WIDTH), np.eye(WIDTH, dtype="<f4")[-1]])
    backend, gateway = gateway_of(ScriptedBackend(script=[Vectors(whole)], width=WIDTH))
    await gateway.embed(["a", "b"], model="m")

    answer = await gateway.embed(["a", "b"], model="m", dimensions=4)

    assert ["ab", "b"] == asked(backend)
    assert (answer.trace.hits, answer.trace.misses) == (1, 1)
    assert np.allclose(answer.vectors[1], expected_vector("b", 4))


async def test_an_answer_may_be_written_to_without_harm_to_the_next():
    _, gateway = gateway_of()
    for _ in range(3):
        answer = await gateway.embed("a", model="m")
        assert answer.vectors.tolist() == right("a")
        answer.vectors[:] = 0


async def test_a_cache_of_no_bytes_keeps_nothing():
    backend, gateway = gateway_of(size=0)
    for _ in range(2):
        await gateway.embed(["a", "a"], model="m")
    assert ["a", "a"] == asked(backend)


async def test_a_failure_is_not_cached():
    backend = ScriptedBackend(script=[Vectors(np.zeros((1, WIDTH), "<f4"))] * 2, width=WIDTH)
    _, gateway = gateway_of(backend, endpoints=[{"provider": "a"}])
    with pytest.raises(Exception, match="zero"):
        await gateway.embed("a", model="m")
    assert (await gateway.embed("a", model="m")).vectors.tolist() == right("a")


# Callers of one namespace.

A, B = Caller(name="a"), Caller(name="b")


async def counts(gateway, caller, texts="text", **fields):
    trace = (await gateway.embed(texts, model="m", caller=caller, **fields)).trace
    return trace.hits, trace.misses, trace.shared_hits


async def test_a_hit_on_what_another_caller_embedded_is_counted_as_a_miss_until_it_is_ones_own():
    backend, gateway = gateway_of()

    assert (0, 1, 0) == await counts(gateway, A)
    assert (0, 1, 1) == await counts(gateway, B)
    assert (1, 0, 0) == await counts(gateway, B)
    assert (1, 0, 0) == await counts(gateway, A)
    assert (0, 3, 1) == await counts(
        gateway, Caller(name="c"), ["new", "new", "text"], dimensions=4
    )
    assert ["text", "new"] == asked(backend)


async def test_the_application_itself_is_told_every_hit():
    _, gateway = gateway_of()
    await gateway.embed("text", model="m", caller=A)

    assert 1 == (await gateway.embed("text", model="m")).trace.hits
    assert (0, 1, 1) == await counts(gateway, B)


async def test_who_waits_for_anothers_call_has_asked_as_well():
    backend, gateway = gateway_of(ScriptedBackend(script=[0.2], width=WIDTH))
    first = []

    async def ask(caller):
        first.append(await counts(gateway, caller))

    await tasks.gather([partial(ask, A), partial(ask, B)], at_once=2)

    assert [(0, 1, 0), (0, 1, 0)] == first
    assert [(1, 0, 0), (1, 0, 0)] == [await counts(gateway, caller) for caller in (A, B)]
    assert 1 == len(backend.batches)


# The memory cache itself.


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def entries(names, width=WIDTH):
    return {name.encode(): EmbeddedInput(np.ones(width, "<f4"), 1) for name in names}


def test_an_entry_lives_for_its_time_and_no_longer():
    clock = Clock()
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
def test_the_least_recently_used_goes_first(steps, left):
    probe = MemoryCache(1 << 20, 10.0, Clock())
    probe.store(entries("a"))
    cache = MemoryCache(3 * probe.size, 10.0, Clock())
    for step in steps:
        if step[0] == "+":
            cache.store(entries(step[1:]))
        else:
            cache.look_up([step[1:].encode()])

    assert left == "".join(
        sorted(key.decode() for key in cache.look_up([name.encode() for name in "abcdx"]))
    )
    assert cache.size == 3 * probe.size


def test_a_claim_adds_an_owner_and_no_time():
    clock = Clock()
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
def test_an_entry_that_is_computed_anew_keeps_its_owners_while_it_was_good(now, owners):
    """Otherwise one caller's ``no-cache`` would show in the counts of the others."""
    clock = Clock()
    cache = MemoryCache(1 << 20, 10.0, clock)
    cache.store(entries("a"), owner=1)
    clock.now = now

    cache.store(entries("a"), owner=2)

    assert owners == cache.look_up([b"a"])[b"a"].owners


def test_an_entry_remembers_its_latest_owners_and_no_more():
    cache = MemoryCache(1 << 20, 10.0, Clock())
    cache.store(entries("a"), owner=0)
    for owner in range(1, 50):
        cache.claim({b"a": owner})

    assert tuple(range(50 - MOST_OWNERS, 50)) == cache.look_up([b"a"])[b"a"].owners
    assert cache.size == WIDTH * 4 + OVERHEAD + MOST_OWNERS * OWNER


def test_owners_count_towards_the_bound():
    cache = MemoryCache(2 * (WIDTH * 4 + OVERHEAD + OWNER), 10.0, Clock())
    cache.store(entries("ab"), owner=1)

    cache.claim({b"b": 2})

    assert (1, False) == (len(cache), cache.size > cache.limit)


@pytest.mark.parametrize("owners", [0, 1, MOST_OWNERS])
@pytest.mark.parametrize("width", [8, 256, 1536])
def test_the_bound_is_on_real_bytes(width, owners):
    """What is counted is at least what is used, and not twice that."""
    cache = MemoryCache(1 << 30, 10.0, Clock())
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


def test_what_is_found_cannot_be_written_to():
    cache = MemoryCache(1 << 20, 10.0, Clock())
    cache.store(entries("a"))

    assert not cache.look_up([b"a"])[b"a"].vector.flags.writeable
