"""The usage ledger: one row per request and provider, in every store and in memory."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal

import anyio
import httpx2
import pytest

from embedroute import Config, Gateway, Provider, StoreSettings, embeddings_app
from embedroute.backend import Secret
from embedroute.cli import main
from embedroute.errors import UpstreamUnavailable
from embedroute.execution import make_rows
from embedroute.stores import (
    MOST_GROUPS,
    OTHERS,
    MemoryUsage,
    UsageGroup,
    UsageRow,
    UsageSums,
    day_of,
    make_store,
    merge_sums,
    parse_day,
    start_of,
    sum_rows,
)
from embedroute.testing import ScriptedBackend
from embedroute.trace import RequestTrace
from tests.support.stores import StoreServer

WIDTH = 8
KEY = "sk-team-a-0123456789"
USD = 1_000_000_000
NOON = 1_796_040_000.0
TODAY = day_of(time.time())


def row(**fields):
    defaults = {
        "at": NOON,
        "request": "r",
        "caller": "a",
        "model": "m",
        "provider": "p",
        "response": 200,
        "status": 200,
        "inputs": 0,
        "cached": 0,
        "billed": 0,
        "served": 0,
        "cost": 0,
        "seconds": 0.5,
    }
    return UsageRow(**{**defaults, **fields})


# The rows of a request.

ONE_USD = {"prompt": Decimal(1_000_000)}


def trace_of(*bills, inputs, served, failures=()):
    trace = RequestTrace("r", public_model="m", caller="a", inputs=inputs, served_tokens=served)
    for provider, count, tokens, prices in bills:
        trace.record_usage(provider, prices, tokens, {}, inputs=count)
    trace.failures = failures
    return trace


@pytest.mark.parametrize(
    ("trace", "status", "expected"),
    [
        pytest.param(
            trace_of(("p", 2, 5, ONE_USD), inputs=2, served=5),
            200,
            [{"inputs": 2, "billed": 5, "served": 5, "cost": 5 * USD}],
            id="one provider",
        ),
        pytest.param(
            trace_of(inputs=3, served=7),
            200,
            [{"provider": "", "cached": 3, "served": 7}],
            id="only hits",
        ),
        pytest.param(
            trace_of(("p", 2, 5, ONE_USD), ("p", 1, 1, ONE_USD), inputs=4, served=8),
            200,
            [
                {"inputs": 3, "billed": 6, "served": 6, "cost": 6 * USD},
                {"provider": "", "response": None, "cached": 1, "served": 2},
            ],
            id="two calls and a hit",
        ),
        pytest.param(
            trace_of(("p", 1, 5, ONE_USD), ("q", 1, 1, {}), inputs=2, served=6),
            200,
            [
                {"inputs": 1, "billed": 5, "served": 5, "cost": 5 * USD},
                {
                    "provider": "q",
                    "response": None,
                    "inputs": 1,
                    "billed": 1,
                    "served": 1,
                    "cost": None,
                },
            ],
            id="split, one price unknown",
        ),
        pytest.param(
            trace_of(("p", 1, 5, ONE_USD), inputs=1, served=5, failures=[("q", None), ("r", 429)]),
            200,
            [
                {"inputs": 1, "billed": 5, "served": 5, "cost": 5 * USD},
                {"provider": "q", "response": None, "status": 502},
                {"provider": "r", "response": None, "status": 429},
            ],
            id="served after failures",
        ),
        pytest.param(
            trace_of(("p", 1, 5, ONE_USD), inputs=2, served=0, failures=[("p", 500)]),
            502,
            [
                {
                    "response": 502,
                    "status": 502,
                    "inputs": 1,
                    "billed": 5,
                    "cost": 5 * USD,
                }
            ],
            id="failed after a chunk was billed",
        ),
        pytest.param(
            trace_of(inputs=2, served=0),
            429,
            [{"provider": "", "response": 429, "status": 429}],
            id="refused",
        ),
    ],
)
def test_a_request_has_a_row_per_provider(trace, status, expected):
    actual = make_rows(trace, status, 0.5, NOON)

    assert actual == [row(**fields) for fields in expected]


# Stores.


@pytest.fixture
def store(store_url):
    store = make_store(StoreSettings(url=Secret(store_url)))
    store.open()
    yield store
    store.close()


ROWS = [
    row(at=start_of(TODAY) + 1, inputs=2, billed=5, served=5, cost=10**15 + 1),
    row(at=start_of(TODAY) + 1, provider="", response=None, cached=3, served=4),
    row(at=start_of(TODAY) + 2, caller='b"\n\u2028:', provider="q/eu", response=502, status=502),
    row(at=start_of(TODAY) - 1, request="s", model="*", inputs=1, cost=None),
]


def test_a_store_adds_up_rows_and_keeps_them(store):
    store.add_usage("1", ROWS[:2], 30)
    store.add_usage("2", ROWS, 30)

    assert dict(store.sum_usage("", None)) == sum_rows([*ROWS[:2], *ROWS])
    assert dict(store.sum_usage(TODAY, "a")) == sum_rows([*ROWS[:2], *ROWS[:2]])
    assert sorted(store.list_usage(TODAY), key=repr) == sorted([*ROWS[:2], *ROWS[:3]], key=repr)
    assert 6 == len(list(store.list_usage("")))


def test_rows_and_sums_older_than_the_retention_are_removed(store):
    old = row(at=time.time() - 40 * 86_400)
    store.add_usage("1", [old], 60)
    assert 1 == len(list(store.list_usage("")))
    store.add_usage("2", [row(at=time.time())], 30)

    if "redis" in type(store).__module__:  # removes days by itself, and rows in blocks
        return
    assert [TODAY] == [group.day for group, _ in store.sum_usage("", None)]
    assert [TODAY] == [day_of(each.at) for each in store.list_usage("")]


@pytest.mark.parametrize("name", ["redis", "valkey"])
def test_a_server_removes_old_days_by_itself_and_adds_no_batch_twice(servers, name):
    import redis  # noqa: PLC0415 - only the cases of a server need it

    url = servers(name).url
    store = make_store(StoreSettings(url=Secret(url)))
    store.open()
    with redis.Redis.from_url(url.replace("valkey", "redis")) as client:
        client.flushall()
        for _ in range(3):
            store.add_usage("1", ROWS[:2], 30)
        seconds = client.ttl(f"embedroute:1:usage:{TODAY}")
        batches = [client.ttl(key) for key in client.keys("embedroute:1:usage:batch:*")]
    assert 30 * 86_400 < seconds <= 31 * 86_400
    assert 1 == len(batches)
    assert 0 < batches[0] <= 86_400
    assert dict(store.sum_usage("", None)) == sum_rows(ROWS[:2])
    store.close()


def test_a_sqlite_file_of_an_earlier_version_gets_the_tables(tmp_path):
    import sqlite3  # noqa: PLC0415 - only here

    path = tmp_path / "store.db"
    settings = StoreSettings(url=Secret(f"sqlite:///{path}"))
    store = make_store(settings)
    store.open()
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE usage")
        connection.execute("DROP TABLE usage_days")
        connection.execute("PRAGMA user_version = 3")
    connection.close()

    store.open()
    store.add_usage("1", ROWS, 30)
    assert 4 == len(list(store.list_usage("")))
    store.close()


def test_memory_is_bounded_by_the_number_of_groups_and_by_days():
    usage = MemoryUsage()
    for number in range(MOST_GROUPS + 50):
        usage.add([row(caller=f"c{number}", billed=1)], 30)

    sums = usage.sum("", None)
    assert MOST_GROUPS + 1 == len(sums)
    assert MOST_GROUPS + 50 == sum(each.billed for _, each in sums)
    assert [50] == [each.billed for _, each in usage.sum("", OTHERS)]
    usage.add([row(at=NOON + 40 * 86_400)], 30)
    assert 1 == len(usage.sum("", None))


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2026-11-30", "2026-11-30"),
        ("1d", "2026-11-30"),
        ("7d", "2026-11-24"),
        ("0d", "2026-11-30"),
    ],
)
def test_days_are_parsed(text, day):
    assert day == parse_day(text, start_of("2026-11-30") + 1)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-01", "-1d", "9999999999d", "d", "\u0661d"]
)
def test_what_is_no_day_is_refused(text):
    with pytest.raises(ValueError, match="since must be a day such as"):
        parse_day(text, NOON)


def test_every_grouping_has_the_same_total():
    sums = list(sum_rows(ROWS).items())
    for name in UsageGroup._fields:
        merged = merge_sums(sums, lambda group, name=name: getattr(group, name))
        assert UsageSums(*map(sum, zip(*merged.values(), strict=True))) == UsageSums(
            requests=3,
            errors=1,
            parts=4,
            failures=1,
            inputs=3,
            cached=3,
            billed=5,
            served=9,
            cost=10**15 + 1,
        )


# Gateways.


def gateway_of(url=None, backend=None, *, usage=True):
    return Gateway(
        Config(
            gateway={"auth": "keys", "usage": usage},
            keys={"a": {"key": KEY}, "b": {"key": f"{KEY}-b"}},
            store={"url": url},
            providers={"p": Provider(backend=backend or ScriptedBackend(width=WIDTH))},
            models={
                "m": {"dimensions": WIDTH, "endpoints": [{"provider": "p", "price": 1_000_000}]}
            },
        ),
        environ={},
    )


async def ask(gateway, method, path, *, key=KEY, body=None):
    transport = httpx2.ASGITransport(embeddings_app(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://host") as client:
        headers = {"authorization": f"Bearer {key}"}
        return await client.request(method, path, json=body, headers=headers)


async def post(gateway, texts, *, key=KEY, model="m"):
    body = {"model": model, "input": texts}
    return (await ask(gateway, "POST", "/v1/embeddings", key=key, body=body)).status_code


@pytest.mark.anyio
async def test_a_key_sees_what_it_has_used_and_nothing_of_others(store_or_memory):
    failing = ScriptedBackend(script=[0.0, 0.0], then=UpstreamUnavailable("down"), width=WIDTH)
    gateway = gateway_of(store_or_memory, failing)
    async with gateway.lifespan():
        assert [200, 200, 200] == [
            await post(gateway, ["word", "text", "word"]),
            await post(gateway, ["word"]),
            await post(gateway, ["else"], key=f"{KEY}-b"),
        ]
        assert [502, 404, 401] == [
            await post(gateway, ["more"]),
            await post(gateway, ["more"], model="absent"),
            await post(gateway, ["more"], key="sk-unknown-0123456789"),
        ]
        own = (await ask(gateway, "GET", "/v1/usage?since=2d")).json()
        other = (await ask(gateway, "GET", "/usage", key=f"{KEY}-b")).json()

    total = {
        "requests": 4,
        "errors": 2,
        "inputs": 2,
        "cached": 2,
        "billed_tokens": 2,
        "served_tokens": 4,
        "cost": 2.0,
    }
    assert ("usage", "a", total, {TODAY: total}) == (
        own["object"],
        own["caller"],
        own["total"],
        own["days"],
    )
    assert {"": 1, "m": 3} == {name: each["requests"] for name, each in own["models"].items()}
    assert ("b", None, 1) == (other["caller"], other["since"], other["total"]["requests"])


@pytest.mark.anyio
async def test_in_process_calls_are_recorded_too():
    gateway = gateway_of()
    await gateway.embed(["word"], model="m")
    sums = await gateway.active.ledger.sum("", None)

    assert [1] == [each.requests for _, each in sums]


@pytest.mark.anyio
async def test_usage_needs_a_key_a_day_and_its_setting():
    gateway = gateway_of()
    assert 401 == (await ask(gateway, "GET", "/usage", key="sk-unknown-0123456789")).status_code
    refused = await ask(gateway, "GET", "/usage?since=x")
    assert (400, "since") == (refused.status_code, refused.json()["error"]["param"])
    assert 405 == (await ask(gateway, "POST", "/usage", body={})).status_code
    off = await ask(gateway_of(usage=False), "GET", "/usage")
    assert 404 == off.status_code
    assert "usage = true" in off.json()["error"]["message"]


@pytest.mark.anyio
async def test_rows_are_kept_while_the_store_fails_and_written_once_when_it_returns(tmp_path):
    with StoreServer("valkey", tmp_path) as server:
        gateway = gateway_of(server.url)
        async with gateway.lifespan():
            await post(gateway, ["one"])
            assert 1 == (await ask(gateway, "GET", "/usage")).json()["total"]["requests"]
            server.kill()
            assert [200] * 3 == [await post(gateway, [text]) for text in ("two", "six", "ten")]
            failed = await ask(gateway, "GET", "/usage")
            assert (503, "1") == (failed.status_code, failed.headers["retry-after"])
            server.start()  # its memory is empty
            end = time.monotonic() + 20
            while (answer := await ask(gateway, "GET", "/usage")).status_code != 200:
                assert time.monotonic() < end
                await anyio.sleep(0.05)
            assert 3 == answer.json()["total"]["requests"]


ADD = """
import sys
import time
from embedroute.execution import Ledger
from embedroute.stores import StoreWorker, make_store
from embedroute import StoreSettings
from embedroute.backend import Secret
from embedroute.trace import RequestTrace

class Acknowledging:
    '''A store that prints how many rows it has committed.'''

    def __init__(self, store):
        self.store = store
        self.rows = 0

    def __getattr__(self, name):
        return getattr(self.store, name)

    def add_usage(self, batch, rows, days):
        self.store.add_usage(batch, rows, days)
        self.rows += len(rows)
        print(self.rows, flush=True)

store = Acknowledging(make_store(StoreSettings(url=Secret(sys.argv[1]))))
ledger = Ledger(StoreWorker(store, "here", 1.0), 90)
number = 0
while True:
    for _ in range(20):
        number += 1
        ledger.add(RequestTrace(f"r{number}", caller="a"), 200, 0.1)
    time.sleep(0.01)
"""


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_process_loses_no_row_that_was_acknowledged(tmp_path, kills):
    """A row is acknowledged when the store has committed it."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    acknowledged = 0
    for attempt in range(kills):
        with subprocess.Popen(  # noqa: S603 - itself
            [sys.executable, "-c", ADD, url], stdout=subprocess.PIPE, text=True
        ) as process:
            for _ in range(2 + attempt % 5):
                line = process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
            rest = process.stdout.read().split("\n")
        acknowledged += max(int(number) for number in (line, *rest[:-1]) if number.strip())
    store = make_store(StoreSettings(url=Secret(url)))
    store.open()
    stored = len(list(store.list_usage("")))
    summed = sum(each.requests for _, each in store.sum_usage("", None))
    store.close()

    assert acknowledged <= stored == summed


# The command.

CONFIG = """
[gateway]
auth = "open"
usage = true
[store]
url = "sqlite:///{path}"
[providers.hashed]
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(CONFIG.format(path=tmp_path / "store.db"))
    store = make_store(StoreSettings(url=Secret(f"sqlite:///{tmp_path / 'store.db'}")))
    store.open()
    store.add_usage("1", ROWS, 30)
    store.close()
    return path


def run(capsys, config, *options):
    assert 0 == main(["usage", "--config", str(config), *options])
    return capsys.readouterr().out


def test_usage_is_printed_by_key_model_provider_and_day(config, capsys):
    table = [line.split() for line in run(capsys, config).splitlines()]
    assert ["a", "2", "0", "3", "3", "5", "9", "1000000.000000001"] == table[0]
    by_provider = json.loads(run(capsys, config, "--by", "provider", "--format", "json"))
    assert [("", 1, 0), ("p", 2, 0), ("q/eu", 1, 1)] == [
        (each["provider"], each["requests"], each["errors"]) for each in by_provider
    ]
    by_model = list(csv.DictReader(io.StringIO(run(capsys, config, "--by=model", "--format=csv"))))
    assert [("*", "1"), ("m", "2")] == [(each["model"], each["requests"]) for each in by_model]
    days = json.loads(run(capsys, config, "--by", "day", "--since", "1d", "--format", "json"))
    assert [(TODAY, 2)] == [(each["day"], each["requests"]) for each in days]


def test_the_rows_of_requests_are_printed(config, capsys):
    rows = json.loads(run(capsys, config, "--by", "request", "--format", "json"))

    assert 4 == len(rows)
    assert ("s", "*", None) == (rows[0]["request"], rows[0]["model"], rows[0]["cost"])
    assert rows[-1]["time"] == f"{TODAY}T00:00:02.000Z"


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (("[store]\nurl", "#"), [], "[store] url is not set"),
        (("", ""), ["--since", "x"], "--since must be a day"),
        (("store.db", "absent/store.db"), [], "absent does not exist"),
    ],
)
def test_mistakes_are_one_line(config, capsys, change, options, words):
    config.write_text(config.read_text().replace(*change))

    assert 1 == main(["usage", "--config", str(config), *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
