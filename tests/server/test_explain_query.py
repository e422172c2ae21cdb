"""Tests of the query parameter ``explain``: a forecast is never a billed call, and is complete."""

import json

import pytest

from embedroute import Config, Gateway, Provider, embeddings_app
from embedroute.testing import ScriptedBackend
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

WIDTH = 8


def app_of():
    backend = ScriptedBackend(width=WIDTH)
    config = Config(
        gateway={"auth": "open", "debug": True},
        providers={"p": Provider(backend=backend)},
        models={
            "m": {"dimensions": WIDTH, "fallback": "spare", "endpoints": [{"provider": "p"}]},
            "spare": {"dimensions": WIDTH, "endpoints": [{"provider": "p", "model": "other"}]},
        },
    )
    return embeddings_app(Gateway(config, environ={})), backend


async def post(app, query, **fields):
    body = json.dumps({"model": "m", "input": "text", **fields}).encode()
    headers = [("content-type", "application/json")]
    return await call(app, "POST", f"/v1/embeddings{query}", headers, [body])


@pytest.mark.parametrize(
    "query",
    [
        "?explain=1",
        "?explain=true",
        "?explain=True",
        "?explain=yes",
        "?explain=on",
        "?explain=",
        "?explain",
        "?api-version=2024&explain=1",
        "?%65xplain=true",
        "?explain=0&explain=1",
    ],
)
async def test_every_form_of_a_wish_for_a_forecast_makes_no_call(query):
    app, backend = app_of()

    answer = await post(app, query)

    assert (200, "plan") == (answer.status, answer.json["object"])
    assert [] == backend.batches


@pytest.mark.parametrize(
    "query", ["", "?explain=0", "?explain=false", "?explain=No", "?explain=off", "?explained=1"]
)
async def test_without_that_wish_the_request_is_served(query):
    app, backend = app_of()

    answer = await post(app, query)

    assert (200, "list") == (answer.status, answer.json["object"])
    assert 1 == len(backend.batches)


@pytest.mark.parametrize("query", ["?explain=2", "?explain=plan", "?explain=1%3B", "?explain=nein"])
async def test_an_unknown_value_is_refused_without_a_call(query):
    app, backend = app_of()

    answer = await post(app, query)

    assert (400, "explain") == (answer.status, answer.error["param"])
    assert "1" in answer.error["message"]
    assert [] == backend.batches


@pytest.mark.parametrize(
    ("fields", "fallback"),
    [
        ({}, "spare"),
        ({"model": "spare"}, None),
        ({"provider": {"allow_fallbacks": False}}, None),
        ({"provider": "p"}, None),
    ],
)
async def test_a_forecast_names_the_model_to_fall_back_to(fields, fallback):
    app, _ = app_of()

    assert fallback == (await post(app, "?explain=1", **fields)).json["fallback"]


async def test_openapi_describes_explain_as_a_boolean():
    app, _ = app_of()
    document = (await call(app, "GET", "/openapi.json")).json
    (parameter,) = document["paths"]["/v1/embeddings"]["post"]["parameters"]

    assert "boolean" == parameter["schema"]["type"]
    for value in ("true", "false"):
        assert 200 == (await post(app, f"?explain={value}")).status
