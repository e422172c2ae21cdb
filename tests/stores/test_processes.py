"""Processes that share a store, and a store that fails under load or whose process is killed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial

import anyio
import httpx2
import pytest

from embedroute import Config, Gateway, Provider, StoreSettings
from embedroute.backend import Secret
from embedroute.runtime import tasks
from embedroute.stores import Charge, make_store
from embedroute.testing import ScriptedBackend
from tests.support.commands import serving
from tests.support.documents import ROOT
from tests.support.stores import StoreServer

WIDTH = 8

CONFIG = """
[gateway]
auth = "open"
[store]
url = "{url}"
timeout = 30
[providers.hashed]
[models.m]
dimensions = 64
endpoints = [{{ provider = "hashed" }}]
"""


def serve(config, *options):
    words = [sys.executable, "-m", "embedroute", "serve", "--port", "0", "--config", config]
    return serving([*words, *options], ROOT)


def is_ready(url):
    """Workers listen only when they have started."""
    try:
        return httpx2.get(f"{url}/health/live", timeout=60).status_code == 200
    except httpx2.TransportError:
        return False


def ask(url):
    """Send one request over a connection of its own; return hits and misses."""
    answer = httpx2.post(f"{url}/v1/embeddings", json={"model": "m", "input": "text"}, timeout=60)
    assert 200 == answer.status_code
    return answer.headers["x-embedroute-cache"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_text_embedded_by_one_process_is_a_hit_of_all_others(store_url, workers, tmp_path):
    """One of two servers with one worker or two each; the first request of the others is a hit."""
    config = tmp_path / "my.toml"
    config.write_text(CONFIG.format(url=store_url))
    with ExitStack() as stack:
        options = ["--workers", str(workers)]
        urls = [stack.enter_context(serve(config, *options)) for _ in range(2)]
        end = time.monotonic() + 120
        while not all(map(is_ready, urls)):
            assert time.monotonic() < end
        assert "hits=0 misses=1" == ask(urls[0])
        while ask(urls[1]) != "hits=1 misses=0":
            assert time.monotonic() < end
        time.sleep(1)
        assert {"hits=1 misses=0"} == {ask(url) for url in urls for _ in range(20)}


RESERVE_AND_SPEND = """
import itertools, sys
from embedroute import StoreSettings
from embedroute.backend import Secret
from embedroute.stores import Charge, make_store

store = make_store(StoreSettings(url=Secret(sys.argv[1])))
store.open()
for number in itertools.count():
    store.reserve(f"r{number}", [Charge("key:a:total", 10**15, 5)], 0.2)
    store.settle(f"r{number}", [("key:a:total", 1)])
    print(number + 1, flush=True)
"""


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_process_loses_nothing_that_was_stored(tmp_path, kills):
    """What was acknowledged is counted; of what was in progress, a reservation remains and expires."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    acknowledged = 0
    for attempt in range(kills):
        with subprocess.Popen(  # noqa: S603 - itself
            [sys.executable, "-c", RESERVE_AND_SPEND, url], stdout=subprocess.PIPE, text=True
        ) as process:
            for _ in range(10 + attempt * 7):
                line = process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
            rest = process.stdout.read().split("\n")
        acknowledged += max(int(number) for number in (line, *rest[:-1]) if number.strip())
    time.sleep(0.3)  # the reservations of the killed processes expire
    store = make_store(StoreSettings(url=Secret(url)))
    store.open()
    refusal = store.reserve("last", [Charge("key:a:total", 10**15, 10**15)], 60.0)
    store.close()

    spent = 10**15 - refusal.left
    assert acknowledged <= spent <= acknowledged + kills


class Load:
    """Requests of several clients, and how long each of them took."""

    def __init__(self, gateway):
        self._gateway = gateway
        self._ends = False
        self._sent = 0
        self.seconds = []

    async def client(self):
        while not self._ends:
            self._sent += 1
            start = time.monotonic()
            await self._gateway.embed(f"text {self._sent % 3000}", model="m")
            self.seconds.append(time.monotonic() - start)
            await anyio.sleep(0.002)

    async def during(self, seconds):
        """Return the 99th percentile of what ends in the next ``seconds``."""
        first = len(self.seconds)
        await anyio.sleep(seconds)
        taken = sorted(self.seconds[first:])
        assert len(taken) > 50
        return taken[int(len(taken) * 0.99)]

    def end(self):
        self._ends = True


@pytest.mark.anyio
@pytest.mark.slow
@pytest.mark.parametrize("name", ["redis", "valkey"])
async def test_a_store_that_fails_under_load_costs_no_request_and_little_time(name, tmp_path):
    """It is killed, started again, stopped as if it hung, and continued."""
    with StoreServer(name, tmp_path) as server:
        backend = ScriptedBackend(width=WIDTH)
        gateway = Gateway(
            Config(
                gateway={"auth": "open"},
                cache={"bytes": 0},
                store={"url": server.url},
                providers={"p": Provider(backend=backend)},
                models={"m": {"dimensions": WIDTH, "endpoints": [{"provider": "p"}]}},
            )
        )
        load = Load(gateway)
        usual, failing = [], []

        async def disturb():
            await load.during(1.0)  # connections are made
            usual.append(await load.during(2.0))
            server.kill()
            failing.append(await load.during(2.0))
            server.start()
            await load.during(2.0)
            server.stop()
            failing.append(await load.during(2.0))
            server.go_on()
            failing.append(await load.during(2.0))
            calls = len(backend.batches)
            usual.append(await load.during(2.0))
            load.calls_at_end = len(backend.batches) - calls
            load.end()

        async with gateway.lifespan():
            await tasks.gather([disturb, *(partial(load.client) for _ in range(8))], 9)

    assert max(failing) <= 2 * max(usual) + 0.025
    assert load.calls_at_end < 500, "it is used again"
