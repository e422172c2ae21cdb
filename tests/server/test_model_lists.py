"""Tests that a model list shows only what the caller can call, and no price that is unknown."""

import json

import pytest

from embedroute import Config, Gateway, Provider, embeddings_app
from embedroute.backend import Accepts
from embedroute.testing import ScriptedBackend
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

WIDTH = 8
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlhAQABAAAAACw="}}
ASKED = {
    "text": "text",
    "image": [{"content": [IMAGE]}],
}


class TextOnly(ScriptedBackend, frozen=True, kw_only=True):
    accepts = Accepts()


class ImageOnly(ScriptedBackend, frozen=True, kw_only=True):
    accepts = Accepts(texts=False, modalities=("image", "audio"))


class Multimodal(ScriptedBackend, frozen=True, kw_only=True):
    accepts = Accepts(modalities=("text", "image"))


def app_of(backends, *, keys=None, models=None, price=None, dialect="openai", **gateway):
    endpoints = [
        {"provider": slug, **({} if price is None else {"price": price})} for slug in backends
    ]
    config = Config(
        gateway={"auth": "keys" if keys else "open", "dialect": dialect, **gateway},
        keys=keys or {},
        providers={
            slug: Provider(backend=backend(width=WIDTH)) for slug, backend in backends.items()
        },
        models={
            name: {"dimensions": WIDTH, "endpoints": endpoints, **facts}
            for name, facts in (models or {"m": {}}).items()
        },
    )
    return embeddings_app(Gateway(config, environ={}))


async def get(app, path, key=""):
    return await call(app, "GET", path, [("authorization", f"Bearer {key}")])


async def post(app, key="", **fields):
    body = json.dumps({"model": "m", "input": "text", **fields}).encode()
    headers = [("content-type", "application/json"), ("authorization", f"Bearer {key}")]
    return await call(app, "POST", "/v1/embeddings", headers, [body])


@pytest.mark.parametrize(
    ("backends", "modalities", "expected"),
    [
        ({"a": TextOnly}, None, ["text"]),
        ({"a": TextOnly}, ["text", "image"], ["text"]),
        ({"a": Multimodal}, ["text", "image"], ["text", "image"]),
        ({"a": Multimodal}, ["text"], ["text"]),
        ({"a": TextOnly, "b": Multimodal}, ["text", "image", "video"], ["text", "image"]),
        ({"a": ImageOnly}, ["image", "audio"], ["image"]),
    ],
)
async def test_lists_the_modalities_that_a_request_may_hold(backends, modalities, expected):
    app = app_of(backends, models={"m": {"modalities": modalities}})

    (card,) = (await get(app, "/v1/models")).json["data"]
    (row,) = (await get(app, "/v1/embeddings/models")).json["data"]
    works = [name for name, value in ASKED.items() if (await post(app, input=value)).status == 200]

    assert expected == card["modalities"] == row["architecture"]["input_modalities"] == works


KEYS = {
    "all": {"key": "k-all"},
    "a": {"key": "k-a", "only": ["a"]},
    "not-a": {"key": "k-not-a", "ignore": ["a"]},
}


@pytest.mark.parametrize(
    ("key", "gateway", "names", "providers"),
    [
        ("k-all", {}, ["m", "n"], ["a", "b"]),
        ("k-a", {}, ["m"], ["a"]),
        ("k-not-a", {}, ["m", "n"], ["b"]),
        ("k-all", {"only": ["b"]}, ["m", "n"], ["b"]),
        ("k-a", {"only": ["b"]}, [], None),
        ("k-all", {"ignore": ["b"]}, ["m"], ["a"]),
    ],
)
async def test_lists_the_models_that_the_lists_of_providers_permit(key, gateway, names, providers):
    at_b = {"endpoints": [{"provider": "b"}]}
    backends = {"a": TextOnly, "b": TextOnly}
    app = app_of(backends, keys=KEYS, models={"m": {}, "n": at_b}, **gateway)

    for path in ("/v1/models", "/v1/embeddings/models"):
        assert names == [card["id"] for card in (await get(app, path, key)).json["data"]]
    for name in ("m", "n"):
        found = await get(app, f"/v1/models/{name}", key)
        called = await post(app, key, model=name)
        assert (200 if name in names else 404) == found.status == called.status
        if name == "m" and providers:
            assert providers == found.json["providers"]


@pytest.mark.parametrize(
    ("price", "pricing", "cost"),
    [
        (None, {}, None),
        ({"request": "0.5"}, {}, None),
        (0, {"prompt": "0", "completion": "0", "request": "0", "image": "0"}, 0),
        (
            {"prompt": 2, "request": "0.5"},
            {"prompt": "0.000002", "completion": "0", "request": "0.5", "image": "0"},
            0.500002,
        ),
    ],
)
async def test_an_unknown_price_is_left_out_and_a_free_one_is_zero(price, pricing, cost):
    app = app_of({"a": TextOnly}, price=price, dialect="openrouter")

    (row,) = (await get(app, "/v1/embeddings/models")).json["data"]
    first = (await post(app)).json["usage"]
    again = (await post(app)).json["usage"]

    assert pricing == row["pricing"]
    assert cost == first.get("cost")
    assert ("cost" in first) == (cost is not None)
    assert 0 == again["cost"]
