"""Tests who may see the dashboard, what it is sent with, and what its numbers hold."""

import json

import pytest

from embedroute import Config, EmbeddingsMiddleware, Gateway, embeddings_app
from embedroute.errors import ConfigError, RateLimited
from embedroute.testing import ScriptedBackend
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

KEY, PLAIN_KEY = "a-key-of-sixteen-characters", "another-key-of-16-characters"
KEYS = {"operator": {"key": KEY, "debug": True}, "team": {"key": PLAIN_KEY}}


def app_of(*backends, auth="keys", dashboard="key", **settings):
    names = [f"p{at}" for at in range(len(backends))]
    return embeddings_app(
        Gateway(
            Config(
                gateway={"auth": auth, "dashboard": dashboard, **settings},
                keys=KEYS if auth == "keys" else {},
                providers={
                    name: {"backend": backend}
                    for name, backend in zip(names, backends, strict=True)
                },
                models={"m": {"dimensions": 8, "endpoints": [{"provider": name} for name in names]}}
                if names
                else {},
            )
        )
    )


def bearer(key):
    return [("authorization", f"Bearer {key}")] if key else []


async def post(app, key=KEY, **fields):
    headers = [*bearer(key), ("content-type", "application/json"), ("x-request-id", "r-1")]
    body = {"model": "m", "input": ["PLANTED one", "PLANTED two"], **fields}
    return await call(app, "POST", "/v1/embeddings", headers, [json.dumps(body).encode()])


async def numbers(app, key=KEY):
    return await call(app, "GET", "/dashboard/data", bearer(key))


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/dashboard", "text/html; charset=utf-8"),
        ("/dashboard/", "text/html; charset=utf-8"),
        ("/dashboard/app.js", "text/javascript; charset=utf-8"),
        ("/dashboard/dashboard/style.css", "text/css; charset=utf-8"),
        ("/dashboard/icon.svg", "image/svg+xml"),
    ],
)
async def test_the_page_needs_no_key_and_may_load_nothing_from_elsewhere(path, content_type):
    answer = await call(app_of(), "GET", path)

    assert (answer.status, answer.header("content-type")) == (200, content_type)
    assert answer.header("content-security-policy").startswith("default-src 'self';")
    assert answer.header("x-content-type-options") == "nosniff"
    assert b"http://" not in answer.body.replace(b"http://www.w3.org/", b"")
    assert b"https://" not in answer.body


@pytest.mark.parametrize(
    ("path", "status"),
    [("/dashboard/none.js", 404), ("/dashboard/../auth.py", 404), ("/v1/dashboard", 404)],
)
async def test_nothing_else_is_served(path, status):
    assert (await call(app_of(), "GET", path)).status == status


async def test_the_dashboard_is_off_by_default():
    app = app_of(dashboard="off")

    statuses = [
        (await call(app, "GET", path, bearer(KEY))).status
        for path in ("/dashboard", "/dashboard/data", "/dashboard/app.js")
    ]

    assert statuses == [404, 404, 404]


@pytest.mark.parametrize(
    ("key", "status"),
    [(None, 401), ("wrong-key-of-16-characters", 401), (PLAIN_KEY, 403), (KEY, 200)],
)
async def test_the_numbers_are_for_keys_that_may_debug(key, status):
    assert (await numbers(app_of(), key)).status == status


async def test_an_open_dashboard_needs_no_key():
    assert (await numbers(app_of(auth="open", dashboard="open"), None)).status == 200


@pytest.mark.parametrize(
    ("auth", "dashboard", "advice"),
    [("open", "key", '"off" or "open"'), ("keys", "host", '"off" or "key" or "open"')],
)
def test_the_setting_must_fit_the_authentication(auth, dashboard, advice):
    with pytest.raises(ConfigError, match=f'auth = "{auth}", dashboard is {advice}'):
        app_of(auth=auth, dashboard=dashboard)


async def test_the_numbers_show_calls_and_why_they_went_where_they_went():
    limited = ScriptedBackend(width=8, then=RateLimited("slow down", retry_after=30.0))
    app = app_of(limited, ScriptedBackend(width=8))
    await post(app, provider={"order": ["p0", "p1"]})

    report = (await numbers(app)).json

    [request] = report["requests"]
    assert (request["id"], request["caller"], request["status"]) == ("r-1", "operator", 200)
    assert [(item["endpoint"], item["outcome"]) for item in request["calls"]] == [
        ("p0:m", "rate_limited"),
        ("p1:m", "answered"),
    ]
    assert all(item["began"] >= 0 for item in request["calls"])
    assert "select" in {event["stage"] for event in request["events"]}
    first, second = report["endpoints"]
    assert first["outcomes"] == {"rate_limited": 1}
    assert first["state"]["reason"] == first["state"]["last_error"] == "rate limited"
    assert 25 < first["state"]["rests_for"] <= 30
    assert second["outcomes"] == {"answered": 1}
    assert second["state"]["rests_for"] == 0
    [caller] = report["callers"]
    assert (caller["name"], caller["requests"], caller["inputs"]) == ("operator", 1, 2)
    assert sum(point["requests"] for point in report["points"]) == 1


@pytest.mark.parametrize(
    "debug",
    [None, {"trace": True, "trace_level": "full", "return_upstream_request": True}],
    ids=["plain", "full trace"],
)
async def test_no_input_text_is_in_the_numbers(debug):
    limited = ScriptedBackend(width=8, then=RateLimited("PLANTED by the upstream"))
    app = app_of(limited, ScriptedBackend(width=8))
    sent = await post(app, debug=debug, provider={"order": ["p0", "p1"]})

    answer = await numbers(app)

    assert (b"PLANTED" in sent.body) is (debug is not None)
    assert answer.json["requests"]
    assert b"PLANTED" not in answer.body


async def test_the_recorded_events_are_not_in_the_response():
    answer = await post(app_of(ScriptedBackend(width=8)))

    assert set(answer.json) == {"object", "data", "model", "usage"}


async def test_middleware_leaves_the_path_of_the_dashboard_to_its_host():
    async def host(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    gateway = app_of().handler.gateway

    answer = await call(EmbeddingsMiddleware(host, gateway), "GET", "/v1/dashboard")

    assert answer.status == 299
