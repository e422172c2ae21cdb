"""Tests that listed prices can be sent back, and that listed parameters are supported."""

import json

import pytest

from embedroute import Config, Gateway, Provider, embeddings_app
from embedroute.backend import Accepts
from embedroute.testing import ScriptedBackend
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

WIDTH = 8


class Plain(ScriptedBackend, frozen=True, kw_only=True):
    accepts = Accepts()


def app_of(endpoints=({},), **facts):
    """Serve the model "m" at one provider per element of ``endpoints``.

    ``facts`` are fields of the model.
    """
    entries = [{"provider": f"p{at}", **endpoint} for at, endpoint in enumerate(endpoints)]
    return embeddings_app(
        Gateway(
            Config(
                gateway={"auth": "open"},
                providers={
                    row["provider"]: Provider(backend=Plain(width=WIDTH)) for row in entries
                },
                models={"m": {"dimensions": WIDTH, "endpoints": entries, **facts}},
            )
        )
    )


async def get_model(app, path):
    return (await call(app, "GET", path)).json["data"][0]


async def status_of(app, **fields):
    body = json.dumps({"model": "m", "input": "text", **fields}).encode()
    return (
        await call(app, "POST", "/v1/embeddings", [("content-type", "application/json")], [body])
    ).status


@pytest.mark.parametrize(
    ("prices", "a_million", "a_token"),
    [
        (["0.02"], "0.02", "0.00000002"),
        (["0.020"], "0.02", "0.00000002"),
        ([1e-7], "0.0000001", "0.0000000000001"),
        ([1e-05], "0.00001", "0.00000000001"),
        ([1e16], "10000000000000000", "10000000000"),
        ([2, 1, None], "1", "0.000001"),
        ([0], "0", "0"),
        ([{"prompt": 3, "request": "0.1"}, {"prompt": 5}], "3", "0.000003"),
        ([None], None, None),
    ],
)
async def test_prices_are_formatted_without_exponents(prices, a_million, a_token):
    """OpenRouter lists "0.00000002", not "2E-8", and ``max_price`` accepts the listed form."""
    app = app_of([{} if price is None else {"price": price} for price in prices])
    card, row = await get_model(app, "/v1/models"), await get_model(app, "/v1/embeddings/models")

    assert (a_million, a_token) == (card["pricing"].get("prompt"), row["pricing"].get("prompt"))
    for price in filter(None, (a_million, a_token)):
        assert await status_of(app, provider={"max_price": {"prompt": price}}) in (200, 404)


@pytest.mark.parametrize(
    ("prices", "pricing"),
    [
        (
            {"prompt": 3, "request": "0.1", "image": 1e-7},
            {"request": "0.1", "image": "0.0000001", "completion": "0"},
        ),
        ({"prompt": 3, "completion": 2}, {"request": "0", "image": "0", "completion": "0.000002"}),
        ({"prompt": 3}, {"request": "0", "image": "0", "completion": "0"}),
    ],
)
async def test_prices_of_other_kinds_are_those_of_the_cheapest_endpoint(prices, pricing):
    row = await get_model(
        app_of([{"price": {"prompt": 9, "request": 7}}, {"price": prices}]),
        "/v1/embeddings/models",
    )

    assert pricing == {kind: row["pricing"][kind] for kind in pricing}


CUT = {"matryoshka": True}
FIXED = {"matryoshka": False}
NATIVE = {"accepts": {"dimensions": True}}


@pytest.mark.parametrize(
    ("endpoints", "facts", "taken"),
    [
        ([{}], CUT, {"dimensions"}),
        ([{}], {**CUT, "dimensions_allowed": [4, 8]}, {"dimensions"}),
        ([{}], {**CUT, "dimensions_allowed": [8]}, set()),
        ([{}], {**CUT, "dimensions_min": 8}, set()),
        ([{}], FIXED, set()),
        ([NATIVE], FIXED, set()),
        ([NATIVE], CUT, {"dimensions"}),
        ([{}, NATIVE], {**FIXED, "dimensions_allowed": [4]}, set()),
        ([{}], {**FIXED, "dimensions_allowed": [4]}, set()),
        ([NATIVE], {"dimensions": None}, {"dimensions"}),
        ([{}], {"dimensions": None}, set()),
        ([{}], {"input_types": []}, {"input_type"}),
        ([{}], {"prefixes": {"query": "q: "}}, {"input_type"}),
        ([{}, {"accepts": {"input_types": ["query"]}}], {}, {"input_type"}),
        ([{}, {"accepts": {"user": True}}], {}, {"user"}),
        (
            [{"accepts": {"user": True, "input_types": ["query"]}}],
            CUT,
            {"dimensions", "input_type", "user"},
        ),
    ],
)
async def test_a_parameter_is_listed_if_it_is_supported(endpoints, facts, taken):
    """speakr#352: listing ``dimensions`` for a model with one size sends clients into a 400."""
    app = app_of(endpoints, **facts)
    actual = (await get_model(app, "/v1/embeddings/models"))["supported_parameters"]
    sent_request = {"dimensions": 4, "input_type": "query", "user": "u"}
    strictly = {"provider": {"require_parameters": True}}
    works = {
        name
        for name, value in sent_request.items()
        if await status_of(app, **{name: value}, **strictly) == 200
    }

    assert (taken, {*taken, "encoding_format"}) == (works, set(actual))


@pytest.mark.parametrize(
    ("name", "advice"), [("mm", '; did you mean "m"?'), ("other", "; see GET /v1/models.")]
)
async def test_an_unknown_model_gets_the_same_message_from_both_paths(name, advice):
    app = app_of()
    body = json.dumps({"model": name, "input": "text"}).encode()

    described = await call(app, "GET", f"/v1/models/{name}")
    embedded = await call(
        app, "POST", "/v1/embeddings", [("content-type", "application/json")], [body]
    )

    assert described.status == embedded.status == 404
    assert described.json == embedded.json
    assert described.json["error"]["message"] == f"The model '{name}' does not exist{advice}"
