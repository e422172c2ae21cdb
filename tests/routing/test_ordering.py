"""The order of endpoints.

The draw by price, the client's list, sorts, stages and preferred speeds.
"""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute.protocol import NO_PREFERENCES
from embedroute.routing import draw_weights, order_endpoints
from tests.routing.factories import (
    candidate,
    chosen,
    context_for,
    failed,
    make_preferences,
    measured,
)

A, B, C = candidate("a", 1), candidate("b", 2), candidate("c", 3)
DRAWS = 4000


def firsts(candidates, **context):
    """Return how often each candidate is first, and the sequences that occurred."""
    seeded = random.Random(7)
    drawn = context_for(candidates, random=seeded.random, **context)
    sequences = [
        tuple(item.provider for item in order_endpoints(candidates, NO_PREFERENCES, None, drawn))
        for _ in range(DRAWS)
    ]
    return Counter(sequence[0] for sequence in sequences), set(sequences)


@pytest.mark.parametrize(
    ("prices", "weights"),
    [
        ([1, 2, 3], [1, 1 / 4, 1 / 9]),
        (["0.02", "0.02"], [1, 1]),
        ([1, None], [1, 1]),
        ([1, 2, None], [1, 1 / 4, 1 / 4]),
        ([0, 1, None], [1, 0, 0]),
        ([0, 0, 1], [1, 1, 0]),
        ([0, None], [1, 1]),
        ([5], [1]),
        ([{"image": 3}, 2, 4], [1 / 4, 1, 1 / 4]),
    ],
)
def test_weights_fall_with_the_square_of_the_price(prices, weights):
    """An unknown price counts as the highest known one.

    Beside a free endpoint the others have no weight.
    """
    found = draw_weights([candidate(str(at), price) for at, price in enumerate(prices)])

    assert pytest.approx(weights) == found


def test_without_any_price_the_configured_weights_count():
    some = [candidate("a", weight=3.0), candidate("b"), candidate("c", weight=0.5)]

    assert draw_weights(some) == [3.0, 1.0, 0.5]


def test_draws_follow_the_weights():
    """Five standard deviations around 1/price²."""
    found, sequences = firsts([A, B, C])

    for name, share in (("a", 36 / 49), ("b", 9 / 49), ("c", 4 / 49)):
        assert abs(found[name] - DRAWS * share) < 5 * (DRAWS * share * (1 - share)) ** 0.5
    assert len(sequences) == 6


def test_the_documented_example_is_correct():
    """Prices 1, 2, 3 with the second in outage.

    The first is 9 times as likely as the third to be tried first.
    """
    found, sequences = firsts([A, B, C], healths={"b": failed(10)})

    assert {("a", "c", "b"), ("c", "a", "b")} == sequences
    assert abs(found["c"] - DRAWS / 10) < 5 * (DRAWS * 0.09) ** 0.5


def test_the_remaining_endpoints_are_drawn_by_the_same_rule():
    """With the first fixed, the second of b and c is drawn 9 : 4."""
    seeded = random.Random(11)
    drawn = context_for([A, B, C], random=seeded.random)
    second = Counter(
        found[1].provider
        for _ in range(DRAWS)
        if (found := order_endpoints([A, B, C], NO_PREFERENCES, None, drawn))[0] is A
    )

    share = 9 / 13
    assert (
        abs(second["b"] - second.total() * share)
        < 5 * (second.total() * share * (1 - share)) ** 0.5
    )


@pytest.mark.parametrize(
    ("ago", "behind"), [(0.0, True), (10.0, True), (29.0, True), (31.0, False), (32.0, False)]
)
def test_a_failed_endpoint_is_tried_last_for_thirty_seconds(ago, behind):
    names = chosen([A, C], context=context_for([A, C], healths={"a": failed(ago)}))

    assert (["c", "a"] if behind else ["a", "c"]) == names


@pytest.mark.parametrize(
    "preferences", [{"order": ["a"]}, {"sort": "price"}, {"sort": {"by": "exacto"}}]
)
def test_an_order_or_a_sort_ignores_recent_failures(preferences):
    context = context_for([A, B], healths={"a": failed(1)}, random=lambda: 0.99)

    assert ["a", "b"] == chosen([A, B], context=context, **preferences)


def test_free_endpoints_always_come_first():
    some = [candidate("dear", 5), candidate("free", 0), candidate("unknown"), candidate("gift", 0)]

    for chance in (0.0, 0.3, 0.6, 0.999999):
        names = chosen(some, context=context_for(some, random=lambda chance=chance: chance))
        assert {"free", "gift"} == set(names[:2])


VARIANTS = [
    candidate("v/x", 9, vendor="V"),
    candidate("v/y", 8, vendor="V"),
    candidate("w", 1),
    candidate("x", 2),
]


@pytest.mark.parametrize(
    ("preferences", "names"),
    [
        ({"order": ["x", "w"]}, ["x", "w", "v/y", "v/x"]),
        ({"order": ["x"]}, ["x", "w", "v/y", "v/x"]),
        ({"order": ["v/x"]}, ["v/x", "w", "x", "v/y"]),
        ({"order": ["v"]}, ["v/y", "v/x", "w", "x"]),
        ({"order": ["x", "v"]}, ["x", "v/y", "v/x", "w"]),
        ({"order": ["openai", "x", "deepinfra"]}, ["x", "w", "v/y", "v/x"]),
        ({"order": ["openai"]}, ["w", "x", "v/y", "v/x"]),
        ({"order": ["x", "w"], "allow_fallbacks": False}, ["x", "w"]),
        ({"order": ["openai", "x"], "allow_fallbacks": False}, ["x"]),
        ({"order": ["v"], "allow_fallbacks": False}, ["v/y", "v/x"]),
        ({"order": ["x"], "sort": "exacto"}, ["x", "w", "v/y", "v/x"]),
        ({"order": ["v/x", "v"]}, ["v/x", "v/y", "w", "x"]),
        ({"order": [], "allow_fallbacks": True, "sort": "price"}, ["w", "x", "v/y", "v/x"]),
        ({"sort": "price", "allow_fallbacks": False}, ["w"]),
        ({"order": ["x", "w"], "only": ["w", "v"]}, ["w", "v/y", "v/x"]),
        ({"order": ["x", "w"], "ignore": ["x"]}, ["w", "v/y", "v/x"]),
    ],
)
def test_listed_names_come_first_in_their_order(preferences, names):
    """A provider that does not serve the model is skipped.

    The others follow, cheapest first, unless fallbacks are off.
    """
    assert names == chosen(VARIANTS, **preferences)


def test_without_fallbacks_only_the_first_choice_remains():
    picks = [
        chosen([A, B], allow_fallbacks=False, context=context_for([A, B], random=lambda at=at: at))
        for at in (0.0, 0.79, 0.81)
    ]

    assert [["a"], ["a"], ["b"]] == picks


FAST, SLOW, NEW = (
    candidate("fast", 3, quality=2),
    candidate("slow", 1, quality=3),
    candidate("new", None, quality=3),
)
SPEEDS = {"fast": measured(0.1), "slow": measured(2.0)}


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("price", ["slow", "fast", "new"]),
        ("latency", ["fast", "slow", "new"]),
        ("throughput", ["fast", "slow", "new"]),
        ("exacto", ["slow", "new", "fast"]),
    ],
)
@pytest.mark.parametrize("form", ["short", "by", "model", "none", "suffix"])
def test_a_sort_is_a_fixed_order(sort, names, form):
    """In either form; a partition has no effect for a single model; unknown values come last."""
    some = [NEW, FAST, SLOW]
    forms = {"short": sort, "by": {"by": sort}, "model": {"by": sort, "partition": "model"}}
    forms["none"] = {"by": sort, "partition": "none"}
    preferences = {} if form == "suffix" else {"sort": forms[form]}
    suffix = sort if form == "suffix" else None

    for chance in (0.0, 0.99):
        context = context_for(some, healths=SPEEDS, random=lambda chance=chance: chance)
        assert names == chosen(some, context=context, suffix=suffix, **preferences)


def test_an_explicit_sort_overrides_the_suffix():
    some = [FAST, SLOW]

    assert ["fast", "slow"] == chosen(
        some, suffix="price", sort="latency", context=context_for(some, healths=SPEEDS)
    )
    assert ["slow", "fast"] == chosen(
        some, suffix="price", sort={}, context=context_for(some, healths=SPEEDS)
    )


@pytest.mark.parametrize(
    ("preferences", "names"),
    [
        ({"sort": "price"}, ["stable", "beta"]),
        ({"sort": "price", "include_alpha": True}, ["stable", "alpha", "beta"]),
        ({}, ["stable", "beta"]),
        ({"order": ["beta"]}, ["beta", "stable"]),
        ({"order": ["alpha"]}, ["stable", "beta"]),
        ({"order": ["alpha"], "include_alpha": True}, ["alpha", "stable", "beta"]),
    ],
)
def test_stable_endpoints_come_first(preferences, names):
    """Unless the client lists them; alpha endpoints are candidates only with include_alpha."""
    some = [
        candidate("alpha", 1, stage="alpha"),
        candidate("beta", 2, stage="beta"),
        candidate("stable", 9),
    ]

    assert names == chosen(some, **preferences)


HUNDRED = measured(*(at / 100 for at in range(1, 101)))


@pytest.mark.parametrize(
    ("wish", "holds"),
    [
        ({"preferred_max_latency": 0.5}, True),
        ({"preferred_max_latency": 0.49}, False),
        ({"preferred_max_latency": {"p50": 0.5}}, True),
        ({"preferred_max_latency": {"p90": 0.9}}, True),
        ({"preferred_max_latency": {"p90": 0.89}}, False),
        ({"preferred_max_latency": {"p99": 0.99}}, True),
        ({"preferred_max_latency": {"p50": 0.5, "p75": 0.74}}, False),
        ({"preferred_max_latency": {"p50": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99}}, True),
        ({"preferred_max_latency": {"p50": 0.5, "p75": None}}, True),
        ({"preferred_min_throughput": 199}, True),
        ({"preferred_min_throughput": 201}, False),
        ({"preferred_min_throughput": {"p90": 111}}, True),
        ({"preferred_min_throughput": {"p90": 112}}, False),
        ({"preferred_min_throughput": {"p50": 100, "p99": 102}}, False),
        ({"preferred_max_latency": 0.5, "preferred_min_throughput": 201}, False),
        ({"preferred_max_latency": 0.5, "preferred_min_throughput": 100}, True),
    ],
)
def test_preferred_speeds_move_slow_endpoints_back_but_exclude_none(wish, holds):
    """A number means the median, every percentile must be met, and missing data counts as met."""
    some = [candidate("measured", 1), candidate("unknown", 2)]
    context = context_for(some, healths={"measured": HUNDRED})

    names = chosen(some, context=context, sort="price", **wish)

    assert (["measured", "unknown"] if holds else ["unknown", "measured"]) == names


def test_preferred_speeds_keep_the_order_within_both_groups():
    some = [candidate(name, price) for name, price in (("s1", 1), ("f1", 2), ("s2", 3), ("f2", 4))]
    healths = {"s1": measured(5), "s2": measured(4), "f1": measured(0.1), "f2": measured(0.1)}

    names = chosen(
        some, context=context_for(some, healths=healths), sort="price", preferred_max_latency=1
    )

    assert ["f1", "f2", "s1", "s2"] == names


@given(
    st.lists(
        st.tuples(
            st.none() | st.integers(0, 3), st.sampled_from(["stable", "beta"]), st.integers(0, 60)
        ),
        max_size=7,
    ),
    st.sampled_from([None, "price", "latency", "throughput", "exacto"]),
    st.lists(st.integers(0, 6).map(lambda at: f"p{at}"), unique=True, max_size=3),
    st.randoms(use_true_random=False),
)
def test_ordering_neither_loses_nor_duplicates_endpoints(rows, sort, order, chance):
    some = [candidate(f"p{at}", price, stage=stage) for at, (price, stage, _) in enumerate(rows)]
    healths = {f"p{at}": failed(ago) for at, (_, _, ago) in enumerate(rows)}
    context = context_for(some, random=chance.random, healths=healths)
    fields = {name: value for name, value in (("sort", sort), ("order", order)) if value}

    found = order_endpoints(some, make_preferences(**fields), None, context)

    assert sorted(item.provider for item in found) == sorted(item.provider for item in some)
