"""Tests that a forecast matches the request: chunks, cost, cache hits and excluded endpoints."""

import json

import numpy as np
import pytest

from embedroute import Config, Gateway, Provider, embeddings_app
from embedroute.backend import Accepts, Vectors
from embedroute.errors import BatchTooLarge, RateLimited, UpstreamAuthError, UpstreamUnavailable
from embedroute.routing import BreakerPolicy, RetryPolicy
from embedroute.testing import ScriptedBackend, expected_vector
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

WIDTH = 8


class Plain(ScriptedBackend, frozen=True, kw_only=True):
    accepts = Accepts()


def app_of(*steps, endpoint=None):
    """Serve "m" at the providers "p0", "p1", …, each with a scripted backend."""
    backends = [Plain(width=WIDTH, **({} if step is None else {"then": step})) for step in steps]
    slugs = [f"p{at}" for at in range(len(steps))]
    config = Config(
        gateway={"auth": "open", "debug": True, "dialect": "openrouter"},
        providers={
            slug: Provider(backend=item) for slug, item in zip(slugs, backends, strict=True)
        },
        models={
            "m": {
                "dimensions": WIDTH,
                "modalities": ["text", "image"],
                "prefixes": {"query": "a prefix as long as that: "},
                "endpoints": [{"provider": item, **(endpoint or {})} for item in slugs],
            }
        },
    )
    once, soon = (
        RetryPolicy(repeats=0, attempts=1),
        BreakerPolicy(
            failures=1, minimum_calls=1, slow_start=1, initial_cooldown=5.0, longest_cooldown=5.0
        ),
    )
    return embeddings_app(Gateway(config, retries=once, breaker=soon)), backends


async def post(app, query="", headers=(), **fields):
    body = json.dumps(
        {"model": "m", "provider": {"order": ["p0", "p1"][: fields.pop("named", 2)]}, **fields}
    )
    headers = [("content-type", "application/json"), *headers]
    return (await call(app, "POST", f"/v1/embeddings{query}", headers, [body.encode()])).json


def no_more_than(most):
    def answer(batch):
        if len(batch) > most:
            raise BatchTooLarge("too many inputs")
        return Vectors(np.stack([expected_vector(item, WIDTH) for item in batch.inputs]))

    return answer


EIGHT = [f"text {at}" for at in range(8)]
MANY = [f"text {at}" for at in range(64)]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlhAQABAAAAACw="}}


@pytest.mark.parametrize(
    ("inputs", "step", "accepts", "chunks"),
    [
        (EIGHT, None, {}, [8]),
        (EIGHT, None, {"max_inputs": 3}, [3, 3, 2]),
        (MANY, no_more_than(20), {}, [16, 16, 16, 16]),
        (MANY, no_more_than(32), {"max_inputs": 40}, None),
        (EIGHT, None, {"max_tokens": 4}, [4, 4]),
        (EIGHT, None, {"max_tokens": 18}, [2, 2, 2, 2]),
    ],
)
async def test_explain_forecasts_the_chunks_that_are_sent(inputs, step, accepts, chunks):
    """A batch limit learned from an upstream applies to the forecast and to the call."""
    app, (backend,) = app_of(step, endpoint={"accepts": accepts})
    typed = {"input_type": "query"} if accepts.get("max_tokens") == 18 else {}
    again = [text.replace("text", "other") for text in inputs]
    await post(app, input=inputs, named=1, **typed)
    backend.batches.clear()

    (actual,) = (await post(app, "?explain=1", input=again, named=1, **typed))["order"]
    assert [] == backend.batches
    await post(app, input=again, named=1, **typed)

    assert actual["chunks"] == sorted((len(batch) for batch in backend.batches), reverse=True)
    assert chunks is None or chunks == actual["chunks"]


@pytest.mark.parametrize(
    ("step", "least", "most"),
    [
        (None, 0, 0),
        (RateLimited("slow down", retry_after=40.0), 39, 40),
        (UpstreamUnavailable("reset"), 4, 5),
        (UpstreamAuthError("bad key"), 29, 30),
    ],
)
async def test_explain_reports_the_cool_down_of_an_endpoint(step, least, most):
    app, _ = app_of(step, None)
    await post(app, input="text")

    first, second = (await post(app, "?explain=1", input="text"))["order"]

    assert ("p0", "p1", 0) == (first["provider"], second["provider"], second["rests_for"])
    assert least <= first["rests_for"] <= most


@pytest.mark.parametrize(
    ("price", "accepts", "cost"),
    [
        (None, {}, None),
        ("0.02", {}, "0.00000016"),
        ({"prompt": "0.02", "request": "1"}, {}, "1.00000016"),
        ({"prompt": "0.02", "request": "1"}, {"max_inputs": 3}, "3.00000016"),
        ({"request": "1"}, {}, None),
        ({"prompt": "0", "image": "0.001"}, {"modalities": ["text", "image"]}, "0.002"),
    ],
)
async def test_explain_forecasts_the_actual_cost(price, accepts, cost):
    app, _ = app_of(
        None, endpoint={"accepts": accepts, **({} if price is None else {"price": price})}
    )

    sent_request = [{"content": [IMAGE, IMAGE]}] if "modalities" in accepts else EIGHT

    (actual,) = (await post(app, "?explain=1", input=sent_request, named=1))["order"]

    assert cost == actual["cost"]
    if cost is not None:
        assert float(cost) == (await post(app, input=sent_request, named=1))["usage"]["cost"]


@pytest.mark.parametrize(
    ("cached", "sent_request", "use", "cache"),
    [
        ([], ["c", "c", "d"], "", (0, 3)),
        (["c"], ["c", "c", "d"], "", (2, 1)),
        (["c", "d"], ["c", "c", "d"], "", (3, 0)),
        (["c", "d"], ["c", "c", "d"], "no-store", (3, 0)),
        (["c", "d"], ["c", "c", "d"], "no-cache", (0, 3)),
    ],
)
async def test_hits_are_counted_in_inputs(cached, sent_request, use, cache):
    """The errors are those of the request itself."""
    app, _ = app_of(None)
    if cached:
        await post(app, input=cached, named=1)

    actual = (
        await post(
            app, "?explain=1", [("cache-control", use)] if use else [], input=sent_request, named=1
        )
    )["cache"]

    assert cache == (actual["hits"], actual["misses"])


PICK = "not the first choice, and allow_fallbacks is false"
NAMED = "not the requested provider"


@pytest.mark.parametrize(
    ("fields", "left", "filtered"),
    [
        ({"provider": {}}, 3, {}),
        ({"provider": {"allow_fallbacks": False}}, 1, {"allow_fallbacks": PICK}),
        ({"provider": {"allow_fallbacks": False, "sort": "price"}}, 1, {"allow_fallbacks": PICK}),
        (
            {"provider": {"allow_fallbacks": False, "order": ["p1"]}},
            1,
            {"order": "not in the list, and allow_fallbacks is false"},
        ),
        (
            {"provider": {"allow_fallbacks": False, "ignore": ["p1"]}},
            1,
            {"ignore": "in the list", "allow_fallbacks": PICK},
        ),
        ({"provider": "p1"}, 1, {"provider": NAMED}),
        ({"provider": "p1", "model": "m:floor"}, 1, {"provider": NAMED}),
        ({"provider": None, "model": "p1/m"}, 1, {"provider": NAMED}),
        ({"provider": "p1", "model": "undeclared"}, 1, None),
    ],
)
async def test_explain_lists_excluded_endpoints_with_the_reason(fields, left, filtered):
    """A list, a preference or a missing fallback may exclude an endpoint."""
    app, _ = app_of(None, None, None)

    actual = await post(app, "?explain=1", input="text", **fields)
    traced = (await post(app, input="text", debug={"trace": True}, **fields))["trace"]

    assert left == len(actual["order"])
    assert (filtered or {}) == {item["filter"]: item["reason"] for item in actual["filtered"]}
    assert (1 if filtered is None else 3) == len(
        {item["provider"] for item in (*actual["order"], *actual["filtered"])}
    )
    assert len(actual["filtered"]) == sum(event["action"] == "filtered" for event in traced)


async def test_an_error_names_endpoints_that_a_preference_excluded():
    """Otherwise a trace of three endpoints would mention only one."""
    app, _ = app_of(None, None, None)

    actual = await post(app, input=[1], provider="p1", debug={"trace": True})

    assert {("p0:m", "provider"), ("p2:m", "provider"), ("p1:m", "input")} == {
        (event["endpoint"], event["filter"]) for event in actual["trace"]
    }
