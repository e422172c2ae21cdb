"""Tests log records: structured, one line each, without secrets and inputs."""

# Anyio's plugin reads `anyio_backend`.
# ruff: noqa: ARG001

import ast
import json
import logging
import re
import socket
import subprocess
import sys

import anyio
import msgspec
import pytest

from embedroute import Caller, Config, Gateway, Provider, embeddings_app, log_records
from embedroute.backend import Vectors
from embedroute.log_records import LogLimit, Record, format_fields
from embedroute.routing import RetryPolicy
from embedroute.testing import ScriptedBackend
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
    """The event and the other extra fields of each of our records."""
    return [
        (
            record.name.removeprefix("embedroute."),
            record.event,
            {k: v for k, v in vars(record).items() if k not in {*STANDARD, "event"}},
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
        "provider": "up",
        "model": "m",
        "url": f"{upstream.url}/embeddings",
        "error": "answered 503",
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
        "url": f"{upstream.url}/embeddings",
        "status": None,
    }.items() <= attempt[2].items()
    assert re.fullmatch(r"timed out after 0\.[234] s", attempt[2]["error"])
    assert (
        "No response within the deadline of 0.3 s: the provider up timed out."
        == (answer.json["error"]["message"])
    )
    assert {"status": 504, "attempts": 1, "providers": ["up"]}.items() <= refused[2].items()
    assert "up" == answer.header("x-embedroute-provider")
    assert [("call", "failed", attempt[2]["error"])] == [
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


EMBED_FIELDS = {
    "status": 200,
    "code": None,
    "model": "m",
    "caller": "team",
    "providers": ["up"],
    "attempts": 1,
    "inputs": 3,
    "tokens": 3,
    "cost": 3.0,
    "hits": 0,
    "misses": 3,
    "shared_hits": 0,
    "request_id": "r-1",
}
"""What is logged of a request of three inputs of one token; a token costs 1 USD."""


def gateway_that_takes(seconds, **settings):
    """Return a gateway whose upstream responds after ``seconds``."""

    async def answer(batch):
        await anyio.sleep(seconds)
        return Vectors.from_lists([[1.0] * 8] * len(batch), prompt_tokens=len(batch))

    backend = ScriptedBackend(then=answer, width=8)
    return Gateway(
        Config(
            gateway={"auth": "keys", **settings},
            keys={"team": {"key": CALLER}},
            providers={"up": Provider(backend=backend)},
            models={"m": {"dimensions": 8, "endpoints": [{"provider": "up", "price": 1_000_000}]}},
        )
    )


async def test_a_record_says_what_a_request_used_and_where_its_time_went(caplog):
    caplog.set_level(logging.INFO)

    await ask(gateway_that_takes(0.05), input=["a", "b", "c"])

    [(_, event, actual)] = fields(caplog)
    assert "request completed" == event
    assert {name: actual[name] for name in EMBED_FIELDS} == EMBED_FIELDS
    assert actual.keys() - EMBED_FIELDS.keys() == {"ms", "gateway_ms", "upstream_ms"}
    assert 50 <= actual["upstream_ms"] <= actual["ms"]
    assert abs(actual["ms"] - actual["upstream_ms"] - actual["gateway_ms"]) < 0.2
    assert json.loads(json.dumps(actual)) == actual


async def test_the_record_of_an_error_has_the_same_fields_as_that_of_a_success(caplog):
    caplog.set_level(logging.INFO)
    gateway = gateway_that_takes(0.05, limits={"requests_per_minute": 1})

    await ask(gateway, input=["a", "b", "c"])
    await ask(gateway, input=["a", "b", "c"])

    [completed, rejected] = [actual for _, _, actual in fields(caplog)]
    assert completed.keys() == rejected.keys()
    used = {"code": "rate_limit_exceeded", "inputs": 3, "attempts": 0, "tokens": 0, "cost": 0.0}
    assert {name: rejected[name] for name in used} == used
    assert 0.0 == rejected["upstream_ms"]
    assert rejected["ms"] == rejected["gateway_ms"]


async def test_an_unknown_price_is_an_unknown_cost(upstream, caplog):
    caplog.set_level(logging.INFO)
    upstream.mode = "honest"

    await ask(gateway_of(upstream))

    assert fields(caplog)[-1][2]["cost"] is None


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
    assert [event for _, event, _ in fields(caplog)][-1] == (
        "request completed"
        if answer.status == 200
        else "request rejected"
        if answer.status < 500
        else "request failed"
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


def closed_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


PROGRAM = """
import asyncio, logging, sys
from embedroute import Config, EmbedrouteError, Gateway

logging.basicConfig()
gateway = Gateway(
    Config(
        gateway={"auth": "open"},
        providers={"tei": {"backend": "openai", "base_url": sys.argv[1], "api_key": "sk-Canary0123"}},
        models={"m": {"dimensions": 8, "endpoints": [{"provider": "tei"}]}},
    )
)

async def main():
    try:
        await gateway.embed("PLANTED", model="m")
    except EmbedrouteError as error:
        print(error)

asyncio.run(main())
"""


def test_a_refused_connection_shows_under_basic_config():
    """One line for all equal attempts, with what an operator looks for."""
    port = closed_port()
    url = f"http://me:Pass-word@127.0.0.1:{port}/v1"
    ended = subprocess.run(  # noqa: S603 - fixed arguments
        [sys.executable, "-c", PROGRAM, url], capture_output=True, text=True, check=True
    )

    assert re.fullmatch(
        rf"WARNING:embedroute\.calls:upstream call failed: provider=tei model=m"
        rf" url=http://127\.0\.0\.1:{port}/v1/embeddings attempt=1"
        rf' error="connection refused" endpoint=tei:m ms=[0-9.]+ request_id=req_[0-9a-f]+\n',
        ended.stderr,
    )
    assert ended.stdout == "Cannot connect to the provider tei: connection refused.\n"


async def test_a_5xx_is_a_warning_that_says_why(upstream, caplog):
    caplog.set_level(logging.WARNING)
    upstream.mode = "status_503"

    await ask(gateway_of(upstream))

    [record] = [record for record in caplog.records if record.name == "embedroute.access"]
    assert record.levelname == "WARNING"
    assert re.fullmatch(
        r'request failed: status=502 error="answered 503" model=m caller=team'
        r" providers=up attempts=[0-9] inputs=1 tokens=0 cost=0\.0 hits=0 misses=1 shared_hits=0"
        r" ms=[0-9.]+ gateway_ms=[0-9.]+ upstream_ms=[0-9.]+ request_id=r-1",
        record.getMessage(),
    )
    assert record.msg == "request failed: %s"


@pytest.mark.parametrize(
    ("level", "failed_calls", "failed_requests"),
    [("WARNING", 1, 1), ("INFO", 1, 4), ("DEBUG", 4, 4)],
)
async def test_equal_failures_are_summarised(
    upstream, caplog, level, failed_calls, failed_requests
):
    """INFO shows each response, and DEBUG each call."""
    caplog.set_level(level)
    upstream.mode = "status_503"
    now = 1000.0
    gateway = Gateway(
        Config(
            gateway={"auth": "keys"},
            keys={"team": {"key": CALLER}},
            providers={"up": {"backend": "openai", "base_url": upstream.url, "api_key": KEY}},
            models={"m": {"dimensions": 8, "endpoints": [{"provider": "up"}]}},
        ),
        retries=RetryPolicy(repeats=0, attempts=1),
        clock=lambda: now,
    )

    for _ in range(4):
        await ask(gateway)
    events = [event for _, event, _ in fields(caplog)]
    caplog.clear()
    now += 61.0
    await ask(gateway)

    assert events.count("upstream call failed") == failed_calls
    assert events.count("request failed") == failed_requests
    assert [4, 4] == [item["count"] for _, _, item in fields(caplog)]
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert all(" count=4 " in record.getMessage() for record in warnings)


def test_a_log_limit_counts_what_it_keeps_back():
    limit = LogLimit()
    times = [0.0, 1.0, 59.9, 60.0, 61.0, 200.0]

    assert [1, 0, 0, 3, 0, 2] == [limit.due(now, "tei", "m", "refused") for now in times]
    assert 1 == limit.due(200.0, "tei", "n", "refused")


@pytest.mark.parametrize("step", [0.0, 1.0], ids=["at once", "over time"])
def test_a_log_limit_has_bounded_memory(step):
    limit = LogLimit()
    for number in range(5 * log_records.MOST_KEYS):
        limit.due(number * step, "tei", f"model {number}")

    assert len(limit) <= log_records.MOST_KEYS


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"a": 1, "b": None, "c": "x"}, "a=1 c=x"),
        ({"a": "two words"}, 'a="two words"'),
        ({"a": 'a "quote" \\'}, 'a="a \\"quote\\" \\\\"'),
        ({"a": "x=y"}, 'a="x=y"'),
        ({"a": ""}, 'a=""'),
        ({"a": ["x", "y"], "b": []}, "a=x,y"),
        ({"a": 0.5, "b": 0}, "a=0.5 b=0"),
    ],
)
def test_fields_are_written_as_in_logfmt(fields, text):
    assert text == format_fields(fields)


def records():
    """All records that the package can write, by their class."""
    kinds = [Record]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return [kind for kind in kinds[1:] if not kind.__name__.startswith("_")]


ROW = re.compile(r"^\| `(embedroute[.a-z]*)` \| ([A-Z]+) \| `([^`]+)` \| ([^|]*) \|", re.MULTILINE)


def test_the_documentation_lists_every_record_with_its_fields():
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = text.partition("\n## Logs\n")[2].partition("\n## ")[0]
    documented = {
        event: (logger, level, re.findall(r"`([a-z_]+)`", names))
        for logger, level, event, names in ROW.findall(section)
    }

    assert documented == {
        kind.event: (
            kind.logger.name,
            logging.getLevelName(kind.level),
            [field.name for field in msgspec.structs.fields(kind)],
        )
        for kind in records()
    }


LOGGING = {"log", "debug", "info", "warning", "error", "exception", "critical"}


def test_only_one_module_writes_records():
    """So that the table of records is complete, and each field is escaped.

    ``embedroute serve`` is a host of its own and says what it serves.
    """
    calls = [
        (path.name, ast.unparse(node))
        for path in (ROOT / "embedroute").rglob("*.py")
        if path.name != "serve.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in LOGGING and "log" in ast.unparse(node.func.value).lower()
    ]

    assert ["log_records.py"] == [name for name, _ in calls]


async def test_the_operator_learns_which_provider_a_requested_model_needs(caplog, upstream):
    caplog.set_level(logging.INFO, "embedroute.access")
    gateway = gateway_of(upstream)

    answers = [
        await ask(gateway, model=name) for name in ("mistral-embed", "mistral-embed", "nope")
    ]

    found = [record for record in caplog.records if record.event == "model not configured"]
    assert [("mistral-embed", "add [providers.mistral]")] == [
        (record.model, record.advice) for record in found
    ]
    assert {404} == {answer.status for answer in answers}
    assert "providers" not in answers[0].json["error"]["message"]
