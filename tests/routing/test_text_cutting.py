"""Inputs that are longer than a model's context: where they are cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedroute.auth import Caller
from embedroute.errors import InvalidRequest
from embedroute.routing import (
    CAUTIOUS,
    LIKELY,
    OverLength,
    estimate_tokens,
    find_overlong,
    select_endpoints,
    split_overlong,
)
from tests.routing.factories import candidate, context_for, job, route


def pieces_of(item, limit):
    return split_overlong([item], {0: limit}, pool=True).inputs


@pytest.mark.parametrize(
    ("text", "limit", "pieces"),
    [
        pytest.param("short", 5, ["short"], id="short"),
        pytest.param("abcdefghijkl", 2, ["abcdef", "ghijkl"], id="neither words nor sentences"),
        pytest.param("The first sentence is long. The second", 10, ["The first sentence is long. ", "The second"], id="sentence"),
        pytest.param("aaaaaaaa bbbbbbbb cccccccc dddddd", 10, ["aaaaaaaa bbbbbbbb cccccccc ", "dddddd"], id="word"),
        pytest.param("a. bcdefghijkl", 4, ["a. bcdefghij", "kl"], id="end of a sentence too far back"),
        pytest.param("äöüäöü", 2, ["äöü", "äöü"], id="two bytes each"),
        pytest.param("日本語。日本語", 4, ["日本語。", "日本語"], id="ideographic full stop"),
        pytest.param("a\N{GRINNING FACE}b", 1, ["a", "\N{GRINNING FACE}", "b"], id="longer than a piece"),
        pytest.param("a" * 6 + " " * 6, 2, ["a" * 6], id="a piece of spaces"),
        pytest.param((1, 2, 3, 4, 5), 2, [(1, 2), (3, 4), (5,)], id="token ids"),
    ],
)  # fmt: skip
def test_cuts_at_the_end_of_a_sentence_or_word(text, limit, pieces):
    assert pieces_of(text, limit) == pieces


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=200), st.integers(2, 40))
def test_pieces_are_short_and_hold_the_whole_text(text, limit):
    pieces = pieces_of(text, limit)

    assert all(pieces)
    assert all(estimate_tokens(piece) <= limit for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_knows_the_input_and_the_weight_of_each_piece():
    inputs = ["ab", "abcdefgh", "abcdefghij"]

    pooled = split_overlong(inputs, {1: 1, 2: 2}, pool=True)
    first = split_overlong(inputs, {1: 1, 2: 2}, pool=False)

    assert pooled.owners == [0, 1, 1, 1, 2, 2]
    assert pooled.weights == [1, 1, 1, 1, 2, 2]
    assert pooled.cut == first.cut == [1, 2]
    assert first.inputs == ["ab", "abc", "abcdef"]
    assert split_overlong(inputs, {0: 5}, pool=True).cut == []


@pytest.mark.parametrize(
    ("item", "cautious", "likely"), [("a" * 12, 4, 3), ("é" * 12, 8, 6), ((1,) * 12, 12, 12)]
)
def test_estimates_tokens_by_bytes(item, cautious, likely):
    assert (estimate_tokens(item), estimate_tokens(item, LIKELY)) == (cautious, likely)
    assert find_overlong([item], cautious) == frozenset()
    assert find_overlong([item], cautious - 1) == {0}


@given(st.text(max_size=50), st.integers(1, 20))
def test_never_overlooks_an_input(text, limit):
    rule = OverLength(limit=limit, pool=True, refuses=False)

    assert rule.may_apply([text]) or not find_overlong([text], limit, CAUTIOUS)


CUTS = {"truncate": ("none", "end")}


def select(over_length, *accepts, fields=None, **facts):
    candidates = [candidate(f"c{at}", accepts=each) for at, each in enumerate(accepts)]
    model = route(*candidates, over_length=over_length, max_input_tokens=10, **facts)
    return select_endpoints(model, job(**(fields or {})), Caller(name="c"), context_for(candidates))


@pytest.mark.parametrize(
    ("over_length", "accepts", "fields", "rule", "truncate"),
    [
        pytest.param(None, [CUTS], {}, None, None, id="not set"),
        pytest.param("refuse", [CUTS, {}], {}, None, "none", id="refuse"),
        pytest.param("pool", [CUTS], {}, (10, True, True), "none", id="pool"),
        pytest.param("truncate", [CUTS], {}, (10, False, True), "none", id="truncate"),
        pytest.param("pool", [CUTS, {}], {}, (10, True, False), None, id="one may cut by itself"),
        pytest.param("pool", [CUTS], {"truncate": "end"}, None, "end", id="the request decides"),
        pytest.param("pool", [CUTS], {"input": [1]}, (10, True, True), "none", id="token ids"),
    ],
)
def test_a_model_decides_what_happens_to_long_inputs(over_length, accepts, fields, rule, truncate):
    accepts = [{"tokens": True, **each} for each in accepts]
    selection = select(over_length, *accepts, fields=fields)

    expected = rule and OverLength(limit=rule[0], pool=rule[1], refuses=rule[2])
    assert (selection.over_length, selection.parameters.truncate) == (expected, truncate)
    assert len(selection.candidates) == (1 if over_length == "refuse" else len(accepts))


def test_a_prefix_leaves_less_room():
    prefixes = {"query": "a" * 9}
    found = select("pool", CUTS, fields={"input_type": "query"}, prefixes=prefixes)

    assert found.over_length.limit == 7


def test_a_model_that_refuses_needs_an_endpoint_that_refuses():
    with pytest.raises(InvalidRequest, match="refuses a text that is too long"):
        select("refuse", {})
