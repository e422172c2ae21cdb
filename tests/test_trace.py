"""Tests of the record of a request: counts, costs and debug output."""

from decimal import Decimal

import pytest

from embedroute.trace import RequestTrace


def opened(**what):
    trace = RequestTrace("r")
    trace.open(**{"trace": False, "sent": False, "received": False, "full": False, **what})
    return trace


@pytest.mark.parametrize(
    ("what", "keeps", "notes"),
    [
        ({}, False, []),
        ({"trace": True}, False, [{"stage": "s", "action": "a", "fact": 1}]),
        (
            {"trace": True, "full": True},
            False,
            [{"stage": "s", "action": "a", "fact": 1, "value": 2}],
        ),
        ({"sent": True}, True, []),
        ({"received": True}, True, []),
    ],
)
def test_records_only_what_debug_enables(what, keeps, notes):
    trace = opened(**what)

    trace.add_event("s", "a", {"value": 2}, fact=1)

    assert trace.captures_bodies == keeps
    assert trace.debug_fields() == ({"trace": notes} if notes else {})


def test_one_body_is_an_object_and_several_are_a_list():
    trace = opened(sent=True, received=True)
    trace.sent.append({"n": 1})
    assert trace.debug_fields() == {"upstream_request": {"n": 1}}

    trace.sent.append({"n": 2})
    assert trace.debug_fields() == {"upstream_request": [{"n": 1}, {"n": 2}]}


def test_adds_up_costs_and_tokens_of_calls():
    trace = RequestTrace("r")
    trace.record_usage("a", {"prompt": Decimal(2)}, 3, {"text": 1})
    trace.record_usage(
        "b", {"prompt": Decimal(4), "request": Decimal("0.5")}, 5, {"text": 2, "image": 3}
    )
    trace.record_usage("a", {"prompt": Decimal(0)}, 7, {})

    assert (list(trace.providers), trace.cost) == (["a", "b"], Decimal("0.500026"))
    assert trace.modality_tokens == {"text": 3, "image": 3}


ALL = {
    "prompt": Decimal(2),
    "completion": Decimal(50),
    "request": Decimal("0.5"),
    "image": Decimal("0.01"),
    "audio": Decimal(9),
}


@pytest.mark.parametrize(
    ("prices", "tokens", "split", "images", "cost"),
    [
        ({}, 1000, {}, 0, None),
        ({}, 1000, {"image": 516}, 2, None),
        ({"prompt": Decimal(2)}, 1000, {}, 0, "0.002"),
        ({"prompt": Decimal(2)}, 1000, {"text": 484, "image": 516}, 2, "0.002"),
        (ALL, 1000, {}, 0, "0.502"),
        (ALL, 1000, {}, 3, "0.532"),
        (ALL, 1000, {"text": 484, "image": 516}, 2, "0.520968"),
        (ALL, 1000, {"image": 2000}, 2, "0.52"),
        ({"image": Decimal("0.01")}, 1000, {}, 2, None),
        ({"request": Decimal(0), "prompt": Decimal(0), "image": Decimal(0)}, 1000, {}, 2, "0"),
    ],
)
def test_bills_a_call_by_tokens_images_and_call(prices, tokens, split, images, cost):
    """Tokens of images are not billed if there is a price per image."""
    trace = RequestTrace("r")
    trace.record_usage("a", prices, tokens, split, images=images)

    assert (None if cost is None else Decimal(cost)) == trace.cost


@pytest.mark.parametrize(
    ("keys", "found", "counts"),
    [
        ("abc", "", (0, 3)),
        ("abc", "b", (1, 2)),
        ("abc", "abc", (3, 0)),
        ("aab", "a", (2, 1)),
        ("ccd", "", (0, 3)),
        ("", "", (0, 0)),
    ],
)
def test_counts_hits_and_misses_by_input(keys, found, counts):
    """Equal inputs are counted separately, although they are computed once."""
    trace = RequestTrace("r")
    trace.record_cache(list(keys), found)

    assert counts == (trace.hits, trace.misses)


def test_repr_shows_only_the_request_id():
    """Error trackers print the local variables of a frame."""
    trace = RequestTrace("req_1")
    trace.open(trace=True, sent=True, received=True, full=True)
    trace.sent.append({"input": "private"})

    assert "RequestTrace('req_1')" == repr(trace)
