"""Tests what observers get: one struct per finished request and one per upstream call."""

import json
import logging
import time
from decimal import Decimal

import anyio
import pytest

from embedroute import Caller, Config, Gateway, embeddings_app
from embedroute.errors import (
    ConnectError,
    EmbedrouteError,
    InvalidUpstreamResponse,
    RateLimited,
    UpstreamAuthError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.routing import RetryPolicy
from embedroute.testing import ScriptedBackend
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

KEY = "a-key-of-sixteen-characters"


class Recorder:
    """An observer that keeps what it gets."""

    def __init__(self):
        self.requests = []
        self.calls = []

    def request_finished(self, request):
        self.requests.append(request)

    def call_finished(self, call):
        self.calls.append(call)


class Broken:
    """An observer with a bug."""

    def request_finished(self, request):
        raise LookupError(request.request_id)

    def call_finished(self, call):
        raise LookupError(call.request_id)


def gateway_of(*backends, observers, **settings):
    """A gateway with one model, whose providers p0, p1, … are ``backends``, tried in this order."""
    names = [f"p{at}" for at in range(len(backends))]
    prices = [{"provider": name, "price": at + 1} for at, name in enumerate(names)]
    return Gateway(
        Config(
            gateway={"auth": "keys", **settings},
            keys={"team": {"key": KEY}},
            cache={"bytes": 1 << 20},
            providers={
                name: {"backend": backend} for name, backend in zip(names, backends, strict=True)
            },
            models={"m": {"dimensions": 8, "endpoints": prices}},
        ),
        retries=RetryPolicy(repeats=0, first_wait=0.001),
        observers=observers,
    )


async def post(gateway, *, key=KEY, **fields):
    headers = [
        ("content-type", "application/json"),
        ("authorization", f"Bearer {key}"),
        ("x-request-id", "r-1"),
    ]
    body = {"model": "m", "input": ["one", "two"], "provider": {"order": ["p0"]}, **fields}
    return await call(
        embeddings_app(gateway), "POST", "/v1/embeddings", headers, [json.dumps(body).encode()]
    )


async def test_a_request_over_http_is_reported_once_with_its_calls():
    recorder = Recorder()
    limited = ScriptedBackend(width=8, then=RateLimited("slow down", upstream_status=429))
    gateway = gateway_of(limited, ScriptedBackend(width=8), observers=[recorder])
    before = time.time()

    answer = await post(gateway)

    [request] = recorder.requests
    assert answer.status == 200
    assert {
        "request_id": "r-1",
        "caller": "team",
        "model": "m",
        "requested_model": "m",
        "dialect": "openai",
        "status": 200,
        "code": None,
        "providers": ("p1",),
        "attempts": 2,
        "inputs": 2,
        "hits": 0,
        "misses": 2,
        "served_tokens": answer.json["usage"]["prompt_tokens"],
    }.items() <= {name: getattr(request, name) for name in request.__struct_fields__}.items()
    assert request.billed_tokens == request.served_tokens
    assert request.cost == Decimal(2) * request.billed_tokens / 1_000_000
    assert before - 1 < request.started_at <= time.time()
    assert 0 < request.upstream_seconds <= request.seconds
    assert [
        (item.endpoint, item.outcome, item.status, item.inputs, item.request_id)
        for item in recorder.calls
    ] == [("p0:m", "rate_limited", 429, 2, "r-1"), ("p1:m", "answered", 200, 2, "r-1")]
    assert recorder.calls[0].reason == "rate limited"
    assert [item.tokens for item in recorder.calls] == [0, request.billed_tokens]
    assert [(item.provider, item.model, item.upstream_model) for item in recorder.calls] == [
        ("p0", "m", "m"),
        ("p1", "m", "m"),
    ]
    assert all(item.seconds >= 0 for item in recorder.calls)


async def test_inputs_in_the_cache_cost_nothing_and_wait_for_no_upstream():
    recorder = Recorder()
    gateway = gateway_of(ScriptedBackend(width=8), observers=[recorder])

    await post(gateway)
    await post(gateway)

    first, second = recorder.requests
    assert (second.hits, second.misses, second.attempts) == (2, 0, 0)
    assert (second.billed_tokens, second.cost, second.upstream_seconds) == (0, Decimal(0), 0.0)
    assert second.served_tokens == first.served_tokens
    assert len(recorder.calls) == 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"key": "wrong-key-of-16-characters"}, ("", "", "", 0, 401, "invalid_api_key")),
        ({"model": 7}, ("team", "", "", 0, 400, None)),
        ({"model": "unknown"}, ("team", "", "unknown", 2, 404, "model_not_found")),
    ],
    ids=["key", "body", "model"],
)
async def test_a_rejected_request_is_reported_with_what_is_known(fields, expected):
    recorder = Recorder()
    gateway = gateway_of(ScriptedBackend(width=8), observers=[recorder])

    await post(gateway, **fields)

    [request] = recorder.requests
    caller, model, requested, inputs, status, code = expected
    assert (request.caller, request.model, request.requested_model) == (caller, model, requested)
    assert (request.inputs, request.status, request.code) == (inputs, status, code)
    assert (request.attempts, request.upstream_seconds) == (0, 0.0)
    assert recorder.calls == []


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (RateLimited("slow down", upstream_status=429), "rate_limited"),
        (UpstreamTimeout("late"), "timed_out"),
        (ConnectError("refused"), "unreachable"),
        (InvalidUpstreamResponse("zeros"), "invalid_response"),
        (UpstreamAuthError("no", upstream_status=401), "account_refused"),
        (UpstreamUnavailable("down", upstream_status=500), "failed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_the_outcome_of_a_call_says_what_failed(failure, outcome):
    recorder = Recorder()
    gateway = gateway_of(
        ScriptedBackend(width=8, then=failure),
        ScriptedBackend(width=8),
        observers=[recorder],
    )

    await post(gateway)

    assert (recorder.calls[0].outcome, recorder.calls[-1].outcome) == (outcome, "answered")
    assert recorder.calls[0].status == failure.upstream_status


async def test_a_call_that_the_deadline_ends_timed_out():
    recorder = Recorder()
    gateway = gateway_of(ScriptedBackend(width=8, then=30.0), observers=[recorder], deadline=0.5)

    answer = await post(gateway)

    [request] = recorder.requests
    assert (answer.status, request.status) == (504, 504)
    assert [item.outcome for item in recorder.calls] == ["timed_out"]
    assert request.upstream_seconds > 0


async def test_a_call_in_process_is_reported():
    recorder = Recorder()
    gateway = gateway_of(ScriptedBackend(width=8), observers=[recorder])

    await gateway.embed(["one"], model="m", caller=Caller(name="batch job"))

    [request] = recorder.requests
    assert (request.caller, request.dialect, request.status) == ("batch job", "python", 200)
    assert (request.inputs, request.model) == (1, "m")


async def test_a_failed_call_in_process_is_reported():
    recorder = Recorder()
    gateway = gateway_of(ScriptedBackend(width=8), observers=[recorder])

    with pytest.raises(EmbedrouteError):
        await gateway.embed(["one"], model="unknown")

    [request] = recorder.requests
    assert (request.status, request.code) == (404, "model_not_found")


async def test_a_cancelled_call_in_process_is_reported():
    recorder = Recorder()
    gateway = gateway_of(ScriptedBackend(width=8, then=30.0), observers=[recorder])

    with anyio.move_on_after(0.05):
        await gateway.embed(["one"], model="m")

    assert [request.status for request in recorder.requests] == [499]
    assert [item.outcome for item in recorder.calls] == ["cancelled"]


async def test_a_forecast_and_a_list_of_models_are_not_reported():
    recorder = Recorder()
    gateway = gateway_of(ScriptedBackend(width=8), observers=[recorder], debug=True)
    headers = [("authorization", f"Bearer {KEY}"), ("content-type", "application/json")]
    body = json.dumps({"model": "m", "input": "one"}).encode()
    app = embeddings_app(gateway)

    forecast = await call(app, "POST", "/v1/embeddings?explain=1", headers, [body])
    models = await call(app, "GET", "/v1/models", headers)

    assert (forecast.status, models.status) == (200, 200)
    assert recorder.requests == []


async def test_an_observer_that_raises_changes_neither_the_response_nor_other_observers(caplog):
    recorder = Recorder()
    gateway = gateway_of(ScriptedBackend(width=8), observers=[Broken(), recorder])

    answer = await post(gateway)

    assert answer.status == 200
    assert (len(recorder.requests), len(recorder.calls)) == (1, 1)
    failed = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert {(record.event, record.observer) for record in failed} == {("observer failed", "Broken")}


async def test_no_input_and_no_secret_is_reported():
    recorder = Recorder()
    gateway = gateway_of(
        ScriptedBackend(width=8, then=UpstreamUnavailable(f"cannot embed one with {KEY}")),
        observers=[recorder],
    )

    await post(gateway, input=["PLANTED"])

    assert "PLANTED" not in repr((recorder.requests, recorder.calls))
    assert KEY not in repr((recorder.requests, recorder.calls))
