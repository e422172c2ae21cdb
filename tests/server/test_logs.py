"""Tests log records: structured, one line each, without secrets and inputs."""

# Anyio's plugin reads `anyio_backend`.
# ruff: noqa: ARG001

import ast
import json
import logging

import pytest

from embedroute import Caller, Config, Gateway, embeddings_app
from embedroute.routing import RetryPolicy
from tests.fault_upstream import INPUT_FAULTS, STALLS, Upstream
from tests.fault_upstream.modes import MODES
from tests.support.asgi_client import call
from tests.support.documents import ROOT

pytestmark = pytest.mark.anyio

KEY, CALLER, PLANTED = "sk-CanaryUp-0123456789", "sk-CanaryIn-9876543210", "PLANTED INPUT"
STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime"}


@pytest.fixture(scope="module")
def upstream():
    with Upstream(remember=False) as upstream:
        yield upstream


def gateway_of(upstream, deadline=5.0):
    return Gateway(
        Config(
            gateway={"auth": "keys", "deadline": deadline, "debug": True},
            keys={"team": {"key": CALLER}},
            providers={"up": {"backend": "openai", "base_url": upstream.url, "api_key": KEY}},
            models={"m": {"dimensions": 8, "endpoints": [{"provider": "up"}]}},
        ),
        retries=RetryPolicy(repeats=0, first_wait=0.001),
    )


async def ask(gateway, key=CALLER, **fields):
    headers = [
        ("content-type", "application/json"),
        ("authorization", f"Bearer {key}"),
        ("x-request-id", "r-1"),
    ]
    body = json.dumps({"model": "m", "input": [PLANTED], "user": PLANTED, **fields}).encode()
    async with gateway.lifespan():
        return await call(embeddings_app(gateway), "POST", "/v1/embeddings", headers, [body])


def fields(caplog):
    """The message and the extra fields of each of our records."""
    return [
        (
            record.name.removeprefix("embedroute."),
            record.getMessage(),
            {k: v for k, v in vars(record).items() if k not in STANDARD},
        )
        for record in caplog.records
        if record.name.startswith("embedroute") and record.name != "embedroute.http"
    ]


async def test_a_completed_request_logs_one_record_and_one_per_attempt(upstream, caplog):
    caplog.set_level(logging.DEBUG)
    upstream.mode = ["status_503", "honest"]

    await ask(gateway_of(upstream))

    (first, second, served) = fields(caplog)
    assert [item[:2] for item in (first, second, served)] == [
        ("calls", "upstream call failed"),
        ("calls", "upstream call completed"),
        ("access", "request completed"),
    ]
    assert all(item[2]["request_id"] == "r-1" for item in (first, second, served))
    assert {
        "endpoint": "up:m",
        "attempt": 1,
        "error": "UpstreamUnavailable",
        "status": 503,
    }.items() <= first[2].items()
    assert {"endpoint": "up:m", "attempt": 2, "status": 200}.items() <= second[2].items()
    assert first[2]["ms"] >= 0
    assert {"status": 200, "model": "m", "caller": "team"}.items() <= served[2].items()


async def test_a_call_that_hangs_until_the_deadline_is_logged(upstream, caplog):
    """It is logged, traced and reported in headers like any other failure."""
    caplog.set_level(logging.DEBUG)
    upstream.mode = "stalled"

    answer = await ask(gateway_of(upstream, deadline=0.3), debug={"trace": True})

    (attempt, refused) = fields(caplog)
    assert ("calls", "upstream call failed") == attempt[:2]
    assert {
        "endpoint": "up:m",
        "attempt": 1,
        "error": "UpstreamTimeout",
        "status": None,
    }.items() <= attempt[2].items()
    assert {"status": 504, "attempts": 1, "providers": ["up"]}.items() <= refused[2].items()
    assert "up" == answer.header("x-embedroute-provider")
    assert [("call", "failed", "UpstreamTimeout")] == [
        (item["stage"], item["action"], item["error"])
        for item in answer.json["trace"]
        if item["stage"] == "call"
    ]


async def test_a_rejected_request_logs_its_status_and_code(upstream, caplog):
    caplog.set_level(logging.DEBUG)

    await ask(gateway_of(upstream), key="sk-wrong")

    [(name, message, actual)] = fields(caplog)
    assert (name, message) == ("access", "request rejected")
    assert {"request_id": "r-1", "status": 401, "code": "invalid_api_key"}.items() <= actual.items()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    "mode",
    [mode for mode in MODES if mode not in STALLS and not mode.startswith(("huge", "limited"))],
)
async def test_no_upstream_response_puts_a_secret_or_an_input_into_the_log(
    anyio_backend, upstream, mode, caplog
):
    """At DEBUG, in the records of every library, including fields and tracebacks."""
    caplog.set_level(logging.DEBUG)
    upstream.mode = mode

    answer = await ask(gateway_of(upstream))

    actual = "\n".join(
        f"{record.getMessage()} {vars(record)} {record.exc_text}" for record in caplog.records
    )
    assert not [
        part
        for secret in (KEY, CALLER)
        for part in (secret, secret[:8], secret[-8:])
        if part in actual
    ]
    assert PLANTED not in actual
    assert [message for _, message, _ in fields(caplog)][-1] == (
        "request completed" if answer.status == 200 else "request rejected"
    )
    assert answer.status == 400 or mode not in INPUT_FAULTS


MOVERS = [
    "\n",
    "\r\n",
    "\0",
    "\t",
    "\x1b[2K",
    "\x7f",
    "\x85",
    "\x9b31m",
    "\u2028",
    "\u2029",
    "\u202e",
    "\u2066",
    "\u200f",
    "\ufeff",
]
"""Characters that end a line, move the cursor or reverse text."""


def strings_in(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.items() if isinstance(value, dict) else value:
            yield from strings_in(item)


def unprintable(caplog):
    """Field values that a formatter would print as several lines or as different text."""
    return [
        text
        for _, _, value in fields(caplog)
        for text in strings_in(value)
        if not text.isprintable()
    ]


@pytest.mark.parametrize("mover", MOVERS, ids=ascii)
async def test_a_model_name_cannot_forge_a_log_line(upstream, mover, caplog):
    """Models that are not in the config have the name that the client sends."""
    caplog.set_level(logging.DEBUG)
    upstream.mode = "honest"

    await ask(gateway_of(upstream), model=f"up/m{mover}INFO:embedroute.access:served")

    assert {"calls", "access"} == {name for name, _, _ in fields(caplog)}
    assert [] == unprintable(caplog)


@pytest.mark.parametrize("mover", [*MOVERS, "\ud800"], ids=ascii)
async def test_a_caller_name_cannot_forge_a_log_line(upstream, mover, caplog):
    """A host may use names that its users chose."""
    caplog.set_level(logging.DEBUG)
    upstream.mode = "honest"
    gateway = Gateway(
        Config(
            gateway={"auth": "host"},
            providers={"up": {"backend": "openai", "base_url": upstream.url, "api_key": KEY}},
            models={"m": {"dimensions": 8, "endpoints": [{"provider": "up"}]}},
        )
    )

    async def caller(_scope):
        return Caller(name=f"me{mover}you")

    async with gateway.lifespan():
        app = embeddings_app(gateway, authenticate=caller)
        body = json.dumps({"model": "m", "input": "a"}).encode()
        await call(app, "POST", "/v1/embeddings", [("content-type", "application/json")], [body])

    assert fields(caplog)[-1][2]["caller"].startswith("me\\")
    assert [] == unprintable(caplog)


def test_every_log_call_escapes_its_fields():
    """So that records added later cannot be forged either."""
    extras = [
        (path.name, ast.unparse(keyword.value))
        for path in (ROOT / "embedroute").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "extra"
    ]

    assert [] == [(name, text) for name, text in extras if not text.startswith("log_fields(")]
    assert len(extras) >= 5
