"""Planning: however inputs are split, cached or repeated, row i is the vector of input i."""

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute.backend import Accepts, UpstreamRequest, Vectors
from embedroute.config import Model
from embedroute.inputs import ImagePart, ImageURL, TextPart, estimate_size
from embedroute.protocol import Preferences
from embedroute.routing import (
    ENVELOPE,
    PIECE,
    EmbeddedInput,
    Parameters,
    Route,
    assemble,
    cut,
    encode_fields,
    halves,
    make_key_prefix,
    make_plan,
    make_plan_in_steps,
    pair_with_keys,
    rekeyed,
    rekeyed_in_steps,
    share_out,
    split,
    text_before,
)
from embedroute.runtime import finished
from embedroute.testing import expected_vector
from tests.routing.factories import candidate, make_preferences

ROUTE = Route(name="m", public_name="m", model=Model(), candidates=[])
FIELDS = st.lists(st.text(max_size=4) | st.binary(max_size=4), max_size=4)
TEXTS = st.text(alphabet="ab1\x00t,", min_size=1, max_size=4)
IDS = st.lists(st.integers(0, 12), min_size=1, max_size=4).map(tuple)
PARTS = st.lists(
    TEXTS.map(TextPart) | TEXTS.map(lambda url: ImagePart(ImageURL(url))), min_size=1, max_size=3
).map(tuple)
INPUTS = TEXTS | IDS | PARTS


def of_one_kind(**how):
    return st.one_of(st.lists(kind, min_size=1, **how) for kind in (TEXTS, IDS, PARTS))


def raw(fields):
    return [item.encode() if isinstance(item, str) else item for item in fields]


@given(FIELDS, FIELDS)
def test_prefixes_of_different_fields_differ(one, other):
    assert (raw(one) == raw(other)) == (encode_fields(*one) == encode_fields(*other))


@given(INPUTS, INPUTS)
def test_no_two_inputs_share_a_key(one, other):
    """Of any kind: "1", [1], "t1" and a text part "1" are four different inputs."""
    keys = make_plan([one, other], b"shared").keys

    assert (one == other) == (keys[0] == keys[1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5", (5,)),
        ((1, 23), (12, 3)),
        ((1, 2, 3), (123,)),
        ("a", (TextPart("a"),)),
        ((TextPart("ab"),), (TextPart("a"), TextPart("b"))),
        ((TextPart("https://x"),), (ImagePart(ImageURL("https://x")),)),
        ((TextPart("a"), TextPart("b")), (TextPart("b"), TextPart("a"))),
        ("é", "e\u0301"),
        ("a", "a "),
        ("a", "A"),
        ("l\x01\x00\x00\x005", (5,)),
    ],
)
def test_similar_inputs_have_different_keys(one, other):
    assert 2 == len(make_plan([one, other], b"").work)


BASE = {
    "route": ROUTE,
    "parameters": Parameters(width=8, input_type="query"),
    "preferences": Preferences(),
    "scope": ("gateway", ""),
}
OTHERS = {
    "another model": {"route": msgspec.structs.replace(ROUTE, vector_space="n")},
    "another width": {"parameters": Parameters(width=9, input_type="query")},
    "no width": {"parameters": Parameters(input_type="query")},
    "another type": {"parameters": Parameters(width=8, input_type="document")},
    "no type": {"parameters": Parameters(width=8)},
    "another dtype": {"parameters": Parameters(width=8, input_type="query", dtype="int8")},
    "a title": {"parameters": Parameters(width=8, input_type="query", title="t")},
    "title for type": {"parameters": Parameters(width=8, title="query")},
    "deny": {"preferences": make_preferences(data_collection="deny")},
    "zdr": {"preferences": make_preferences(zdr=True)},
    "deny and zdr": {"preferences": make_preferences(data_collection="deny", zdr=True)},
    "a namespace": {"scope": ("namespace", "team")},
    "a namespace that is a model": {"scope": ("namespace", "m")},
    "a caller named like a namespace": {"scope": ("caller", "team")},
}


def test_the_key_depends_on_everything_that_changes_the_vector_or_its_visibility():
    keys = {
        name: make_key_prefix(**{**BASE, **change})
        for name, change in {"base": {}, **OTHERS}.items()
    }

    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize(
    "change",
    [
        {"preferences": make_preferences(data_collection="allow", zdr=False)},
        {"preferences": make_preferences(sort="price", order=["a"], only=["b"])},
        {"parameters": Parameters(width=8, dimensions=8, input_type="query")},
        {"route": msgspec.structs.replace(ROUTE, public_name="p", sort="price")},
    ],
)
def test_the_key_ignores_what_does_not_change_the_vector(change):
    """The cache key does not depend on endpoints, orders or encodings."""
    assert make_key_prefix(**BASE) == make_key_prefix(**{**BASE, **change})


def test_equal_inputs_are_planned_once():
    plan = make_plan(["a", "b", "a", "a"], b"")

    assert (4, ["a", "b"]) == (len(plan.keys), list(plan.work.values()))
    assert plan.keys[0] == plan.keys[2] == plan.keys[3] != plan.keys[1]


def results_for(work, prompt_tokens=None, **changes):
    rows = np.stack([expected_vector(item, 8) for item in work.values()])
    return pair_with_keys(
        work, Vectors(rows, prompt_tokens), tokens=changes.get("tokens", 10 * len(work))
    )


def patterns(longest):
    """Every pattern of equal inputs up to length ``longest``, such as abaca."""
    found = ["a"]
    for pattern in found:
        if len(pattern) < longest:
            found += [pattern + "abcdef"[at] for at in range(len(set(pattern)) + 1)]
    return found


@pytest.mark.parametrize("inputs", patterns(6))
def test_any_mix_of_hits_and_misses_gives_each_input_its_own_vector(inputs):
    """litellm#41799 and its kin: a partial hit must not shift, double or drop a row."""
    plan, expected = make_plan(inputs, b""), np.stack([expected_vector(item, 8) for item in inputs])
    for mask in itertools.product([True, False], repeat=len(plan.work)):
        hits = {key: item for (key, item), hit in zip(plan.work.items(), mask, strict=True) if hit}
        misses = {key: item for key, item in plan.work.items() if key not in hits}
        found = (results_for(hits) if hits else {}) | (
            results_for(dict(reversed(misses.items())), prompt_tokens=7) if misses else {}
        )

        array, tokens, estimated = assemble(plan, found)

        assert (10 * len(inputs), bool(hits)) == (tokens, estimated)
        assert np.array_equal(array, expected)


CAPS = st.fixed_dictionaries(
    {},
    optional={
        "max_inputs": st.integers(1, 5),
        "max_tokens": st.integers(1, 20),
        "max_bytes": st.integers(1, 90) | st.integers(ENVELOPE, ENVELOPE + 90),
    },
)


@given(of_one_kind(max_size=20), CAPS)
def test_chunks_keep_the_limits_the_order_and_every_input(inputs, caps):
    """An input that exceeds a limit by itself is a chunk of its own.

    Any other chunk is within all limits.
    """
    work = make_plan(inputs, b"").work
    accepts = Accepts(**caps)

    chunks = split(work, accepts)

    assert list(work.items()) == [pair for chunk in chunks for pair in chunk.items()]
    for chunk in chunks:
        assert 1 <= len(chunk) <= (accepts.max_inputs or 99)
        assert len(chunk) == 1 or sum(map(estimate_size, chunk.values())) <= (
            accepts.max_tokens or 9999
        )
        texts = [item for item in chunk.values() if isinstance(item, str)]
        assert len(chunk) == 1 or sum(len(text.encode()) for text in texts) <= (
            accepts.max_bytes or 9999
        )


@pytest.mark.parametrize(
    ("inputs", "caps", "counts"),
    [
        (list("abcdef"), {}, [6]),
        (list("abcdef"), {"max_inputs": 6}, [6]),
        (list("abcdef"), {"max_inputs": 4}, [4, 2]),
        (list("abcdef"), {"max_inputs": 1}, [1] * 6),
        (["x" * 40, "y" * 40, "z" * 40], {"max_tokens": 20}, [2, 1]),
        (["x" * 400, "y", "z"], {"max_tokens": 20}, [1, 2]),
        (["y", "x" * 400, "z"], {"max_tokens": 20}, [1, 1, 1]),
        ([(1,) * 5, (2,) * 5, (3,)], {"max_tokens": 6}, [1, 2]),
        (["x" * 40, "y" * 40, "z" * 40], {"max_bytes": ENVELOPE + 86}, [2, 1]),
        (["x" * 40, "y" * 40, "z" * 40], {"max_bytes": ENVELOPE + 85}, [1, 1, 1]),
        (["x" * 40, "y" * 40, "z" * 40], {"max_bytes": 43}, [1, 1, 1]),
        (["é" * 20, "à" * 20, "z" * 40], {"max_bytes": ENVELOPE + 86}, [2, 1]),
        (['"' * 20, "\\" * 20, "\n" * 20, "z" * 40], {"max_bytes": ENVELOPE + 86}, [2, 2]),
        (["\x01" * 6 + "zzzz", "\x1f" * 6 + "zzzz", "z"], {"max_bytes": ENVELOPE + 86}, [2, 1]),
        (["\x7f" * 40, "🙂" * 10, "z"], {"max_bytes": ENVELOPE + 86}, [2, 1]),
        ([(2**31 - 1,) * 3, (2**31 - 2,) * 3, (1,)], {"max_bytes": ENVELOPE + 70}, [2, 1]),
        ([(2**31 - 1,) * 3, (2**31 - 2,) * 3, (1,)], {"max_bytes": ENVELOPE + 69}, [1, 2]),
        ([(TextPart("語" * 12),), (TextPart("文" * 12),)], {"max_bytes": ENVELOPE + 267}, [1, 1]),
        ([(TextPart("語" * 12),), (TextPart("文" * 12),)], {"max_bytes": ENVELOPE + 268}, [2]),
        ([], {"max_inputs": 4}, []),
        ([], {}, []),
    ],
)
def test_work_is_split_by_each_limit(inputs, caps, counts):
    chunks = split(make_plan(inputs, b"").work, Accepts(**caps))

    assert counts == [len(chunk) for chunk in chunks]


SENT = {
    "model": "m" * 60,
    "user": "u" * 512,
    "encoding_format": "base64",
    "dimensions": 2**31,
    "input_type": "classification",
}
WILD = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=30)
WIDE = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9).map(tuple)
SEEN = st.lists(WILD.map(TextPart), min_size=1, max_size=2).map(tuple)


SEVERAL = st.one_of(st.lists(kind, min_size=2, max_size=9) for kind in (WILD, WIDE, SEEN))


@given(SEVERAL, st.integers(ENVELOPE, ENVELOPE + 900), WILD | st.just(""))
def test_no_chunk_of_several_inputs_exceeds_the_limit_in_bytes(inputs, cap, before):
    """Measured on the encoded body.

    Escapes, prefixes, brackets and the fields around the inputs.
    """
    for chunk in split(make_plan(inputs, b"").work, Accepts(max_bytes=cap), before=before):
        sent = [before + item if isinstance(item, str) else item for item in chunk.values()]
        body = UpstreamRequest.json("http://host", {**SENT, "input": sent}).content
        assert len(chunk) == 1 or len(body) <= cap


@pytest.mark.parametrize(
    ("caps", "before", "counts"),
    [
        ({"max_bytes": ENVELOPE + 86}, "", [2, 1]),
        ({"max_bytes": ENVELOPE + 86}, "q: ", [1, 1, 1]),
        ({"max_bytes": ENVELOPE + 92}, "q: ", [2, 1]),
        ({"max_tokens": 20}, "", [2, 1]),
        ({"max_tokens": 20}, "query: ", [1, 1, 1]),
        ({"max_tokens": 22}, "query: ", [2, 1]),
    ],
)
def test_a_prefix_counts_towards_the_limits(caps, before, counts):
    work = make_plan(["x" * 40, "y" * 40, "z" * 40], b"").work

    assert counts == [len(chunk) for chunk in split(work, Accepts(**caps), before=before)]


@pytest.mark.parametrize(
    ("facts", "accepts", "input_type", "before"),
    [
        ({"prefixes": {"query": "q: "}}, {}, "query", "q: "),
        ({"prefixes": {"query": "q: "}}, {}, "document", ""),
        ({"prefixes": {"query": "q: "}}, {}, None, ""),
        ({"prefixes": {"query": "q: "}}, {"input_types": ["query"]}, "query", ""),
        ({}, {}, "query", ""),
    ],
)
def test_a_models_prefix_is_used_if_the_api_has_no_input_types(facts, accepts, input_type, before):
    assert before == text_before(candidate(accepts=accepts), Model(**facts), input_type)


@pytest.mark.parametrize(("size", "left", "right"), [(2, 1, 1), (3, 1, 2), (7, 3, 4), (8, 4, 4)])
def test_a_chunk_that_is_too_large_is_halved(size, left, right):
    work = make_plan([str(at) for at in range(size)], b"").work
    first, second = halves(work)

    assert (left, right) == (len(first), len(second))
    assert list(work) == [*first, *second]


@given(st.integers(0, 2**31), st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
def test_shares_are_integers_and_add_up_exactly(total, sizes):
    """Each is within one token of its exact proportion."""
    shares = share_out(total, sizes)

    assert (total, len(sizes)) == (sum(shares), len(shares))
    for share, size in zip(shares, sizes, strict=True):
        assert abs(share - total * size / sum(sizes)) < 1 + 1e-6 * total


@given(of_one_kind(max_size=9, unique=True), st.integers(0, 10**6))
def test_results_pair_each_key_with_its_row_and_tokens(inputs, tokens):
    work = make_plan(inputs, b"").work

    found = results_for(work, tokens=tokens)

    assert list(work) == list(found)
    assert tokens == sum(result.tokens for result in found.values())
    assert all(
        np.array_equal(found[key].vector, expected_vector(item, 8)) for key, item in work.items()
    )


def test_whole_vectors_are_truncated_for_the_requested_keys():
    """Vectors of full width serve a smaller width.

    Missing ones, and those that would be zero, are left out.
    """
    whole, narrow = (
        make_key_prefix(**BASE),
        make_key_prefix(**{**BASE, "parameters": Parameters(width=4)}),
    )
    plan = make_plan(["a", "b", "c"], narrow)
    wider = rekeyed(plan.work, whole)
    row = np.array([3, 0, 0, 4, 5, 6, 7, 8], dtype=np.float32)
    b, c = make_plan(["b", "c"], whole).keys
    stored = {
        c: EmbeddedInput(np.where(row < 5, 0, row), 7),
        b: EmbeddedInput(row, 7, estimated=True),
    }

    found = cut(wider, stored, 4)

    assert [plan.keys[1]] == list(found)
    assert (7, True) == (found[plan.keys[1]].tokens, found[plan.keys[1]].estimated)
    assert np.allclose(found[plan.keys[1]].vector, [0.6, 0, 0, 0.8])
    assert set(wider.values()) == set(make_plan(["a", "b", "c"], whole).keys)


@pytest.mark.parametrize(
    "inputs",
    [
        ["a", "é" * (PIECE + 1), "a", "\U0001f600" * (2 * PIECE)],
        [(1, 2), (1, 2, 3), (2**31 - 1,)],
        [
            (TextPart("a" * (PIECE + 1)), ImagePart(ImageURL("data:" + "b" * PIECE))),
            (TextPart("a"),),
        ],
    ],
)
def test_a_plan_made_in_steps_has_the_same_keys(inputs):
    """A large request finds the entries of a small one in the cache."""
    plan = make_plan(inputs, b"shared")

    assert plan == finished(make_plan_in_steps(inputs, b"shared"))
    assert rekeyed(plan.work, b"other") == finished(rekeyed_in_steps(plan.work, b"other"))
    assert plan.keys != make_plan(inputs, b"other").keys
