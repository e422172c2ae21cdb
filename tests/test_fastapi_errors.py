"""Tests what a client of the host gets if ``gateway.embed`` fails in a FastAPI route."""

import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient

from embedroute import Config, ConfigError, EmbedrouteError, Gateway, Provider
from embedroute.errors import (
    ContextTooLong,
    InternalError,
    ModelNotFound,
    QuotaExhausted,
    RateLimited,
    ResourcesExhausted,
    UpstreamTimeout,
)
from embedroute.fastapi import add_error_handlers
from embedroute.routing import RetryPolicy
from embedroute.testing import ScriptedBackend

WIDTH = 8


def host(*script, dialect=None):
    gateway = Gateway(
        Config(
            gateway={"auth": "open", "rate_limit_wait": 0.0},
            providers={"tei": Provider(backend=ScriptedBackend(width=WIDTH, script=list(script)))},
            models={"m": {"dimensions": WIDTH, "endpoints": [{"provider": "tei"}]}},
        ),
        retries=RetryPolicy(repeats=0, attempts=1),
    )
    app = FastAPI()
    if dialect is None:
        add_error_handlers(app)
    else:
        add_error_handlers(app, dialect=dialect)

    @app.get("/widths")
    async def widths(text: str, model: str = "m", dimensions: int | None = None) -> list[int]:
        embeddings = await gateway.embed(text, model=model, dimensions=dimensions)
        return list(embeddings.vectors.shape)

    return app


def ask(app, text="hello", **query):
    with TestClient(app, raise_server_exceptions=False) as client:
        return client.get("/widths", params={"text": text, **query})


@pytest.mark.parametrize(
    ("query", "status", "code", "param"),
    [
        ({"text": ""}, 400, None, "input"),
        ({"model": "gone"}, 404, "model_not_found", "model"),
        ({"dimensions": 7}, 400, None, "dimensions"),
    ],
)
def test_a_mistake_of_the_client_is_a_4xx(query, status, code, param):
    answer = ask(host(), **query)

    assert (status, "application/json") == (answer.status_code, answer.headers["content-type"])
    assert {"message", "type", "param", "code"} == answer.json()["error"].keys()
    assert ("invalid_request_error", code, param) == tuple(
        answer.json()["error"][name] for name in ("type", "code", "param")
    )
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (ContextTooLong("The input is too long."), 400, {}),
        (RateLimited("Slow down.", retry_after=7.0), 429, {"retry-after": "7"}),
        (QuotaExhausted("Pay."), 502, {"x-should-retry": "false"}),
        (ConnectionRefusedError(), 502, {}),
        (ResourcesExhausted("No files.", retry_after=1.0), 503, {"retry-after": "1"}),
        (UpstreamTimeout("Too slow."), 504, {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_failure_of_the_upstream_has_the_status_and_headers_of_the_api(error, status, headers):
    answer = ask(host(error))

    assert status == answer.status_code
    assert headers == {
        name: answer.headers[name]
        for name in ("retry-after", "x-should-retry")
        if name in answer.headers
    }


def test_the_message_names_the_provider_and_the_cause():
    answer = ask(host(ConnectionRefusedError()))

    assert "The provider tei failed: connection refused." == answer.json()["error"]["message"]


def test_the_body_has_the_format_of_the_dialect():
    answer = ask(host(dialect="spice"), text="")

    assert (400, str) == (answer.status_code, type(answer.json()["error"]))


def test_other_responses_do_not_change():
    app = host()

    assert [1, WIDTH] == ask(app).json()
    assert 422 == ask(app, dimensions="many").status_code


@pytest.mark.parametrize("error", [ConfigError(["[gateway] secret"]), InternalError("A bug.")])
def test_a_mistake_of_the_host_stays_a_500_without_details(error):
    app = host()

    @app.get("/broken")
    async def broken() -> None:
        raise error

    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get("/broken")
    with TestClient(app) as client, pytest.raises(type(error)):
        client.get("/broken")

    assert (500, "Internal Server Error") == (answer.status_code, answer.text)


def test_a_handler_of_the_host_for_one_class_is_used():
    app = host()

    @app.exception_handler(ModelNotFound)
    async def respond(_request, error):
        return PlainTextResponse(f"own: {error.code}", 418)

    assert "own: model_not_found" == ask(app, model="gone").text


def test_an_error_can_be_caught_in_the_route():
    app = host(ConnectionRefusedError())
    assert issubclass(EmbedrouteError, Exception)

    assert 502 == ask(app).status_code
