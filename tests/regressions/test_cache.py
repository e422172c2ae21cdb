"""Cache errors of other gateways: vectors of other texts, wrong order, paid hits."""

import itertools

import numpy as np
import pytest

from embedroute.testing import ScriptedBackend
from tests.regressions.requesting import (
    WIDTH,
    ask,
    at,
    gateway_of,
    inputs_of,
    numbers_in,
    right,
    scripted,
    table,
)

pytestmark = pytest.mark.anyio


@table(
    "first then sent",
    {
        "litellm-41799-second-of-three": (["a"], ["b", "a", "c"], ["b", "c"]),
        "litellm-29284-primed-position": (
            ["e5"],
            [f"e{n}" for n in range(25)],
            [f"e{n}" for n in range(25) if n != 5],
        ),
        "litellm-41002-hit-at-the-end": (["c"], ["a", "b", "c"], ["a", "b"]),
        "litellm-29288-two-hits-apart": (
            ["foo", "bar"],
            ["1", "foo", "2", "3", "bar", "4"],
            ["1", "2", "3", "4"],
        ),
        "litellm-41005-all-but-one": (["a", "b", "c"], ["a", "x", "b", "c"], ["x"]),
        "litellm-41020-hit-twice": (["a"], ["a", "b", "a"], ["b"]),
        "litellm-22659-hits-at-both-ends": (["a", "d"], ["a", "b", "c", "d"], ["b", "c"]),
        "litellm-2990-other-order": (["a", "b", "c"], ["c", "a", "b"], None),
        "llama-index-19537-merge-keeps-order": (["b", "d"], ["d", "c", "b", "a"], ["c", "a"]),
        "litellm-cache-one-text-of-a-list": (["a", "b"], "b", None),
        "litellm-cache-a-list-of-one-text": ("a", ["a"], None),
        "litellm-cache-flat-ids-are-one-input": ([1, 2, 3], [[1, 2, 3], [1]], [(1,)]),
        "litellm-cache-equal-items-once": (["z"], ["a", "a", "b", "a"], ["a", "b"]),
        "rust-self-learning-memory-964-equal-misses": (["z"], ["a"] * 9, ["a"]),
        "tensorzero-2183-more-than-one-input": (["a", "b"], ["a", "b"], None),
    },
)
async def test_sends_only_misses_and_keeps_the_order_of_rows(first, then, sent):
    backend = ScriptedBackend(width=WIDTH)
    gateway = gateway_of({"p": backend})
    await ask(gateway, input=first)
    backend.batches.clear()
    answer = await ask(gateway, input=then)

    distinct_inputs = (
        [tuple(item) if isinstance(item, list) else item for item in then]
        if isinstance(then, list)
        else [then]
    )
    assert ([sent] if sent else []) == inputs_of(backend)
    assert scripted(distinct_inputs) == numbers_in(answer)
    misses = sum(item in (sent or []) for item in distinct_inputs)
    assert f"hits={len(distinct_inputs) - misses} misses={misses}" == answer.header(
        "x-embedroute-cache"
    )


@table("size", {f"litellm-41799-every-mask-of-{n}": (n,) for n in range(1, 7)})
async def test_combines_every_pattern_of_hits_and_misses(size):
    backend = ScriptedBackend(width=WIDTH)
    gateway = gateway_of({"p": backend})
    for mask in itertools.product([True, False], repeat=size):
        texts = [f"{mask} {at}" for at in range(size)]
        cached = [text for text, hit in zip(texts, mask, strict=True) if hit]
        await ask(gateway, input=[*cached, f"{mask}"])
        backend.batches.clear()
        answer = await ask(gateway, input=texts)

        missing = [text for text in texts if text not in cached]
        assert scripted(texts) == numbers_in(answer)
        assert ([missing] if missing else []) == inputs_of(backend)


@table(
    "mode",
    {
        "litellm-20949-shuffled-upstream": ("shuffled",),
        "litellm-20456-shuffled-upstream": (["shuffled", "honest"],),
        "litellm-2990-wrong-then-right": (["duplicated_index", "honest"],),
        "tensorzero-3737-base64-of-a-list": ("mixed_encodings",),
        "xberg-1302-dropped-then-right": (["missing_middle_row", "honest"],),
    },
)
async def test_caches_each_vector_under_its_own_text(upstreams, mode):
    """A wrong vector in the cache would be returned until it expires."""
    upstreams[0].tell(mode)
    gateway = gateway_of({"a": at(upstreams[0])})
    async with gateway.lifespan():
        await ask(gateway, input=list("abcde"))
        calls = len(upstreams[0].requests)
        answers = {text: await ask(gateway, input=text) for text in "edcba"}

    assert {text: right([text]) for text in "edcba"} == {
        text: numbers_in(answer) for text, answer in answers.items()
    }
    assert calls == len(upstreams[0].requests)


def request_of(input, *headers, **fields):
    return headers, {"input": input, **fields}


TYPED = {"input_types": ["query", "document"], "prefixes": {"query": "q: ", "document": ""}}
NO_CACHE, NO_STORE = ("cache-control", "no-cache"), ("cache-control", "no-store")
DENY = {"data_collection": "deny"}


@table(
    "first second calls",
    {
        # Equal requests share an entry with any encoding.
        "tensorzero-3633-base64-after-float": (
            request_of("a"),
            request_of("a", encoding_format="base64"),
            1,
        ),
        "tensorzero-3737-float-after-base64": (
            request_of("a", encoding_format="base64"),
            request_of("a"),
            1,
        ),
        "litellm-6010-items-of-a-list-are-kept": (request_of(["a", "b"]), request_of("b"), 1),
        "litellm-cache-encoding-is-null": (
            request_of("a", encoding_format=None),
            request_of("a"),
            1,
        ),
        "semantic-router-2183-whole-serves-narrow": (
            request_of("a"),
            request_of("a", dimensions=4),
            1,
        ),
        "gomodel-same-text-of-another-user": (request_of("a"), request_of("a", user="u"), 1),
        # Different requests have separate entries.
        "tensorzero-6715-two-texts-run-together": (
            request_of(["ab", "c"]),
            request_of(["a", "bc"]),
            2,
        ),
        "tensorzero-6715-ids-run-together": (request_of([[1, 23]]), request_of([[12, 3]]), 2),
        "tensorzero-6715-ids-or-their-text": (request_of([[1, 2]]), request_of("[1,2]"), 2),
        "tensorzero-6715-an-id-or-a-digit": (request_of([[1]]), request_of("1"), 2),
        "tensorzero-6715-a-field-in-the-text": (
            request_of("a", input_type="query"),
            request_of("querya"),
            2,
        ),
        "tensorzero-6715-nul-in-the-text": (request_of("a\0b"), request_of("a"), 2),
        "tensorzero-6715-forms-of-unicode": (request_of("\u00e9"), request_of("e\u0301"), 2),
        "litellm-cache-group-of-two-spaces": (request_of("a"), request_of("a", model="n"), 2),
        "litellm-cache-narrow-for-whole": (request_of("a", dimensions=4), request_of("a"), 2),
        "voyage-query-for-document": (
            request_of("a", input_type="query"),
            request_of("a", input_type="document"),
            2,
        ),
        "gomodel-cache-across-data-policies": (request_of("a"), request_of("a", provider=DENY), 2),
        # The cache directives of the client are followed.
        "litellm-cache-no-cache": (request_of("a"), request_of("a", NO_CACHE), 2),
        "gomodel-cache-no-store": (request_of("a", NO_STORE), request_of("a"), 2),
    },
)
async def test_requests_share_an_entry_only_for_equal_vectors(first, second, calls):
    backend = ScriptedBackend(width=WIDTH)
    alone, gateway = [
        gateway_of({"p": {"backend": backend, **DENY}}, models={"m": TYPED, "n": TYPED}, cache=size)
        for backend, size in ((ScriptedBackend(width=WIDTH), 0), (backend, 1 << 20))
    ]
    for headers, fields in (first, second):
        wanted, found = [await ask(each, *headers, **fields) for each in (alone, gateway)]
        assert 200 == found.status
        assert np.allclose(numbers_in(wanted), numbers_in(found), atol=1e-6)

    assert calls == len(backend.batches)


@table(
    "cache sent",
    {
        "litellm-6010-ttl-of-each-item": ({"ttl": 1e-9}, [["a", "b"], ["b"], ["a"]]),
        "litellm-6010-no-ttl-below-0": ({"ttl": 3600.0}, [["a", "b"]]),
        "litellm-cache-off": ({"bytes": 0}, [["a", "b"], ["b"], ["a"]]),
    },
)
async def test_inputs_of_a_list_have_the_same_ttl_as_others(cache, sent):
    backend = ScriptedBackend(width=WIDTH)
    gateway = gateway_of({"p": backend}, cache=cache)
    for inputs in (["a", "b"], "b", "a"):
        assert scripted(list(inputs)) == numbers_in(await ask(gateway, input=inputs))

    assert sent == inputs_of(backend)
