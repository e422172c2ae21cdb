"""Five dialects: each answer, good or bad, fits the schema of the dialect's document.

The schemas are those of the documents themselves, under ``tests/data/schemas``; what had to be corrected in them is
listed in each file under ``patched``.
"""

import json
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import jsonschema
import numpy as np
import pytest

from embedroute import Config, Gateway, Provider, embeddings_app
from embedroute.backend import Accepts, Vectors
from embedroute.errors import (
    RateLimited,
    UpstreamAuthError,
    UpstreamRejectedInput,
    UpstreamUnavailable,
)
from embedroute.routing import RetryPolicy
from embedroute.testing import ScriptedBackend, expected_vector
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

SCHEMAS = {
    path.stem: json.loads(path.read_text())
    for path in (Path(__file__).parents[1] / "data" / "schemas").glob("*.json")
}
DIALECTS = sorted(SCHEMAS)
WIDTH = 8
KEY = "sk-dialects"
dialects = pytest.mark.parametrize("dialect", DIALECTS)


def fits(body, dialect, status):
    """Validate a body by the documented schema of its status, or else by that of another error."""
    document = SCHEMAS[dialect]
    schema = (
        document["responses"].get(str(status))
        or document["responses"]["404" if dialect == "spice" else "400"]
    )
    jsonschema.Draft202012Validator({**schema, "$defs": document["$defs"]}).validate(body)


def gateway_of(backend=None, **settings):
    return Gateway(
        Config(
            gateway={"auth": "keys", "debug": True, **settings},
            keys={
                "team": {"key": KEY},
                "plain": {"key": "sk-plain", "debug": False},
                "few": {"key": "sk-few", "models": []},
            },
            providers={"p": Provider(backend=backend or ScriptedBackend(width=WIDTH))},
            models={
                "m": {
                    "dimensions": WIDTH,
                    "matryoshka": True,
                    "endpoints": [{"provider": "p", "price": 2}],
                }
            },
        ),
        retries=RetryPolicy(repeats=0, attempts=1),
    )


def failing(failure):
    """Make a gateway whose backend raises an error, or is slower than the deadline."""
    backend = ScriptedBackend(then=failure, width=WIDTH)
    return gateway_of(backend, deadline=0.5) if isinstance(failure, float) else gateway_of(backend)


async def ask(gateway, dialect, body, *, key=KEY, path="/v1/embeddings", method="POST"):
    headers = [
        ("content-type", "application/json"),
        *([("authorization", f"Bearer {key}")] if key else []),
    ]
    return await call(
        embeddings_app(gateway, dialect=dialect), method, path, headers, [json.dumps(body).encode()]
    )


class Plain(ScriptedBackend, frozen=True, kw_only=True):
    accepts = Accepts()


GOOD = [
    {"input": "text"},
    {"input": ["one", "two"], "encoding_format": "base64"},
    {"input": [[1, 2], [3]], "dimensions": 4},
    {"input": ["text"], "user": "u", "provider": {"order": ["p"]}},
]


@dialects
@pytest.mark.parametrize("body", GOOD)
async def test_a_success_matches_its_documented_schema(dialect, body):
    answer = await ask(gateway_of(), dialect, {"model": "m", **body})

    assert answer.status == 200
    fits(answer.json, dialect, 200)


ADDED = {
    "openai": (set(), set()),
    "spice": (set(), set()),
    "gomodel": ({"provider"}, set()),
    "phaseo": (set(), {"completion_tokens"}),
    "openrouter": ({"id"}, {"cost"}),
}


@dialects
async def test_a_success_has_only_the_documented_extra_fields(dialect):
    body = (await ask(gateway_of(), dialect, {"model": "m", "input": ["text"]})).json

    assert (
        body.keys() - {"object", "data", "model", "usage"},
        body["usage"].keys() - {"prompt_tokens", "total_tokens"},
    ) == ADDED[dialect]
    assert body["model"] == "m"
    assert body["data"][0].keys() == {"object", "index", "embedding"}


async def test_the_extra_fields_of_openrouter_and_gomodel_are_correct():
    gateway = gateway_of()
    first = (
        await ask(gateway, "openrouter", {"model": "m", "input": ["four byte words here"]})
    ).json
    again = (
        await ask(gateway, "openrouter", {"model": "m", "input": ["four byte words here"]})
    ).json

    assert first["usage"]["cost"] == pytest.approx(2e-6 * first["usage"]["prompt_tokens"])
    assert again["usage"]["cost"] == 0
    assert (await ask(gateway, "gomodel", {"model": "m", "input": ["new"]})).json["provider"] == "p"


def two_modalities(_):
    return Vectors(np.ones((1, WIDTH), "<f4"), 10, {"text": 4, "image": 6, "audio": 0})


@pytest.mark.parametrize("dialect", ["openai", "openrouter"])
async def test_reports_tokens_by_modality_where_documented(dialect):
    answer = await ask(
        gateway_of(ScriptedBackend(then=two_modalities, width=WIDTH)),
        dialect,
        {"model": "m", "input": "a"},
    )

    details = answer.json["usage"].get("prompt_tokens_details")
    assert details == ({"text_tokens": 4, "image_tokens": 6} if dialect == "openrouter" else None)
    fits(answer.json, dialect, 200)


BAD = [
    ({"input": ""}, {}, None, 400),
    ({"input": "a", "dimension": 3}, {}, None, 400),
    ({"input": "a"}, {"key": None}, None, 401),
    ({"input": "a"}, {"key": "sk-few"}, None, 403),
    ({"input": "a", "model": "x"}, {}, None, 404),
    ({"input": "a"}, {"path": "/v1/nowhere"}, None, 404),
    ({"input": "a"}, {"method": "DELETE"}, None, 405),
    ({"input": "a"}, {}, UpstreamRejectedInput("too odd"), 400),
    ({"input": "a"}, {}, RateLimited("slow", retry_after=100), 429),
    ({"input": "a"}, {}, UpstreamAuthError("bad"), 502),
    ({"input": "a"}, {}, UpstreamUnavailable("down", upstream_status=500), 502),
    ({"input": "a"}, {}, 9.0, 504),
]


@dialects
@pytest.mark.parametrize(("body", "how", "failure", "status"), BAD)
async def test_an_error_matches_its_documented_schema(dialect, body, how, failure, status):
    gateway = failing(failure) if failure else gateway_of()

    answer = await ask(gateway, dialect, {"model": "m", **body}, **how)

    assert answer.status == status
    fits(answer.json, dialect, status)


TYPES = {
    401: "authentication_error",
    403: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


@pytest.mark.parametrize(("body", "how", "failure", "status"), BAD)
async def test_errors_have_the_format_of_each_dialect(body, how, failure, status):
    actual = {}
    gateways = {name: failing(failure) if failure else gateway_of() for name in DIALECTS}

    async def ask_in(name, gateway):
        actual[name] = (await ask(gateway, name, {"model": "m", **body}, **how)).json

    async with AsyncExitStack() as stack:
        for gateway in gateways.values():  # it takes a busy machine longer than their deadline
            await stack.enter_async_context(gateway.lifespan())
        async with anyio.create_task_group() as group:
            for name, gateway in gateways.items():
                group.start_soon(ask_in, name, gateway)

    message = actual["openai"]["error"]["message"]
    assert actual["spice"] == {"error": message}
    assert (actual["openrouter"]["error"]["code"], actual["openrouter"]["error"]["message"]) == (
        status,
        message,
    )
    assert actual["openrouter"]["user_id"] is None
    assert actual["gomodel"]["error"]["type"] == TYPES.get(
        status, "invalid_request_error" if status < 500 else "provider_error"
    )
    assert (actual["phaseo"]["status_code"], actual["phaseo"]["description"]) == (status, message)
    assert actual["phaseo"]["error_type"] == (
        "user" if status < 500 and status != 429 else "system"
    )


async def test_two_mounts_of_one_gateway_have_two_dialects_and_one_cache():
    backend = ScriptedBackend(width=WIDTH)
    gateway = gateway_of(backend, dialect="spice")

    one = await ask(gateway, "openrouter", {"model": "m", "input": "a"})
    two = await ask(gateway, None, {"model": "m", "input": "a"})
    bad = await ask(gateway, None, {"model": "x", "input": "a"})

    assert "id" in one.json
    assert "id" not in two.json
    assert isinstance(bad.json["error"], str)
    assert one.json["data"] == two.json["data"]
    assert one.json["data"][0]["embedding"] == pytest.approx(expected_vector("a", WIDTH).tolist())
    assert len(backend.batches) == 1


# Debug fields, also in errors. Their content is tested in tests/execution/test_redaction.py.

FULL = {"trace": True, "trace_level": "full"}


@dialects
@pytest.mark.parametrize(
    ("debug", "shown"),
    [
        ({"enabled": True}, set()),
        ({"trace": True}, {"trace"}),
        (FULL, {"trace"}),
        ({"enabled": False, "trace": True}, set()),
        ({"enabled": False}, set()),
        (None, set()),
    ],
)
@pytest.mark.parametrize("failure", [None, UpstreamUnavailable("down")])
async def test_debug_adds_the_requested_fields_to_the_response(dialect, debug, shown, failure):
    gateway = gateway_of(ScriptedBackend(then=failure or 0.0, width=WIDTH))

    answer = await ask(gateway, dialect, {"model": "m", "input": "a", "debug": debug})

    assert answer.status == (502 if failure else 200)
    assert answer.json.keys() & {"trace", "upstream_request", "upstream_response"} == shown
    for event in answer.json.get("trace", []):
        assert {"stage", "action"} <= event.keys()


@dialects
async def test_refuses_debug_without_permission_and_reveals_nothing(dialect):
    for debug in (
        {"trace": True},
        {"return_upstream_request": True},
        {"enabled": True},
        {"enabled": False, "trace": True},
    ):
        answer = await ask(
            gateway_of(), dialect, {"model": "m", "input": "a", "debug": debug}, key="sk-plain"
        )

        assert answer.status == 403
        assert not answer.json.keys() & {"trace", "upstream_request", "upstream_response"}
        fits(answer.json, dialect, 403)

    assert (
        await ask(
            gateway_of(),
            dialect,
            {"model": "m", "input": "a", "debug": {"enabled": False}},
            key="sk-plain",
        )
    ).status == 200


async def test_a_trace_lists_events_and_a_summary_has_no_values():
    answer = await ask(
        gateway_of(),
        "openai",
        {"model": "m", "input": "PLANTED", "debug": {"trace": True, "trace_level": "summary"}},
    )

    assert {"select", "call", "cache"} <= {event["stage"] for event in answer.json["trace"]}
    assert "PLANTED" not in answer.body.decode()


@pytest.mark.parametrize(
    ("preferences", "status", "events"),
    [
        ({"provider": {"zdr": True}}, 404, [("filtered", "zdr", "p:m")]),
        ({"user": "u"}, 200, [("dropped parameter", "user", "p:m")]),
        ({"provider": {"ignore": ["p"]}, "user": "u"}, 404, [("filtered", "ignore", "p:m")]),
    ],
)
async def test_a_trace_lists_filtered_endpoints_and_dropped_parameters(preferences, status, events):
    """Errors contain the filters too."""
    request = {"model": "m", "input": "a", "debug": {"trace": True}, **preferences}

    answer = await ask(gateway_of(Plain(width=WIDTH)), "openai", request)

    actual = [
        (item["action"], item.get("filter") or item.get("parameter"), item.get("endpoint"))
        for item in answer.json["trace"]
    ]
    assert (status, events) == (
        answer.status,
        [item for item in actual if item[0] in {"filtered", "dropped parameter"}],
    )


@pytest.mark.parametrize(("key", "status"), [(KEY, 200), ("sk-plain", 403)])
async def test_explain_makes_no_upstream_call(key, status):
    backend = ScriptedBackend(width=WIDTH)
    gateway = gateway_of(backend)

    answer = await ask(
        gateway,
        "openai",
        {"model": "m", "input": ["a", "b", "a"]},
        key=key,
        path="/v1/embeddings?explain=1",
    )

    assert answer.status == status
    assert backend.batches == []
    if status == 200:
        plan = answer.json
        assert [
            (item["provider"], item["chunks"], item["price"]["prompt"]) for item in plan["order"]
        ] == [("p", [2], "2")]
        assert plan["cache"] == {"hits": 0, "misses": 3}
        assert plan["inputs"]["unique"] == 2
