"""Tests many concurrent requests to real upstream processes, of which one dies and restarts.

No request may fail. ``EMBEDROUTE_SOAK=1`` makes the test ten times as long.
"""

# Anyio's plugin reads `anyio_backend`.
# ruff: noqa: ARG001

import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import anyio
import pytest

from embedroute import Config, Gateway
from embedroute.limits import FIRST
from embedroute.routing import SHORTEST_COOLDOWN, BreakerPolicy, RetryPolicy, State
from embedroute.trace import RequestTrace
from tests.fault_upstream import vectors_of
from tests.support.slow import thorough_unless

ROOT = Path(__file__).parents[2]
WIDTH = 8
AT_ONCE = 128
REQUESTS = 20_000 if os.environ.get("EMBEDROUTE_SOAK") else 2_000
KILLED, BACK = REQUESTS // 4, REQUESTS // 2
"""The number of completed requests at which the first upstream is killed and restarted."""

BREAKER = BreakerPolicy(
    failures=3,
    minimum_calls=3,
    slow_start=1,
    initial_cooldown=0.2,
    longest_cooldown=0.5,
)
FLOOR = 10
"""Retries that are allowed without an answer."""

BURSTS = ",".join((["honest"] * 40 + ["limited_silent"] * 8) * 30)


class Process:
    """A ``tests.fault_upstream`` process that can be killed and restarted on its port."""

    def __init__(self, *options: str):
        self.options, self.port = options, 0
        self.start()

    def start(self):
        command = [
            sys.executable,
            "-m",
            "tests.fault_upstream",
            "--port",
            str(self.port),
            "--delay",
            "0.002",
            *self.options,
        ]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own words
        ready, _, _ = select.select([self.process.stdout], [], [], 20)
        assert ready, "the upstream did not start"
        self.url = self.process.stdout.readline().strip()
        self.port = int(self.url.rpartition(":")[2].partition("/")[0])

    def kill(self):
        if self.process.poll() is not None:
            return
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def processes():
    started = []
    try:
        for options in ([], ["--mode", BURSTS], []):
            started.append(Process(*options))  # noqa: PERF401 - what has started is killed even if the next one fails
        yield started
    finally:
        for process in started:
            process.kill()


def gateway_of(processes, *, breaker=BREAKER, retries=None):
    providers = {
        name: {"backend": "openai", "base_url": process.url, "api_key": f"sk-{name}"}
        for name, process in zip("abc", processes, strict=True)
    }
    # Equal weights, so that each of the three is the first choice for a third of the requests.
    model = {"dimensions": WIDTH, "endpoints": [{"provider": name} for name in providers]}
    config = Config(
        gateway={"auth": "open", "deadline": 20.0},
        cache={"bytes": 0},
        providers=providers,
        models={"m": model},
    )
    return Gateway(config, breaker=breaker, retries=retries)


class Load:
    """Sends requests, and records errors and calls.

    A request has one chunk, so its first call is a first attempt and the others are retries.
    """

    def __init__(self, gateway, requests=REQUESTS, at_once=AT_ONCE, **fields):
        self.gateway, self.requests, self.fields = gateway, requests, fields
        self.at_once = at_once
        self.sent = self.answered = self.attempts = self.first_tries = self.retries = 0
        self.served, self.failed = Counter(), Counter()
        self.wrong: list[object] = []
        self.began = self.ended = time.monotonic()

    async def client(self):
        while self.sent < self.requests:
            self.sent += 1
            texts = [f"request {self.sent} input {at}" for at in range(1 + self.sent % 4)]
            trace = RequestTrace(f"request-{self.sent}")
            trace.open(trace=True, sent=False, received=False, full=False)
            try:
                answer = await self.gateway.embed(texts, model="m", trace=trace, **self.fields)
            except Exception as error:  # noqa: BLE001 - any of them is one too many
                self.wrong.append(error)
            else:
                self.answered += 1
                if answer.vectors.tolist() != vectors_of(texts, WIDTH).tolist():
                    self.wrong.append(texts)
                self.served.update(answer.providers)
            self.count(trace)

    def count(self, trace):
        called = [
            (event["endpoint"], event["action"])
            for event in trace.events
            if event["stage"] == "call"
        ]
        self.attempts += trace.attempts
        self.first_tries += len({endpoint for endpoint, _ in called})
        self.retries += len(called) - len({endpoint for endpoint, _ in called})
        self.failed.update(endpoint for endpoint, action in called if action == "failed")

    async def run(self, drama=None):
        async with anyio.create_task_group() as group:
            if drama is not None:
                group.start_soon(drama)
            for _ in range(self.at_once):
                group.start_soon(self.client)
        self.ended = time.monotonic()

    @property
    def budget(self):
        """The allowed retries: a few, one for each second, and one for each answer."""
        return FLOOR + (self.ended - self.began) + sum(self.served.values())


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_no_request_fails_when_an_upstream_dies_and_restarts(anyio_backend, processes):
    gateway = gateway_of(processes)
    load = Load(gateway)
    health = gateway.healths.get(
        next(item for item in gateway.models.routes["m"].candidates if item.provider == "a")
    )
    states, times = [], []

    async def watch(until):
        while not until():
            state = health.state(time.monotonic())
            if state not in states[-1:]:
                states.append(state)
            await anyio.sleep(0.002)

    async def drama():
        await watch(lambda: load.answered + len(load.wrong) >= KILLED)
        times.append(time.monotonic())
        processes[0].kill()
        await watch(lambda: load.answered + len(load.wrong) >= BACK)
        await anyio.to_thread.run_sync(processes[0].start)
        await watch(lambda: load.answered + len(load.wrong) >= REQUESTS)

    async with gateway.lifespan():
        with anyio.fail_after(25 * REQUESTS / 2000):
            await load.run(drama)
            # The restarted endpoint is ordered behind the others for 30 s, so it is requested by
            # name.
            while health.state(time.monotonic()) is not State.CLOSED:
                await gateway.embed("probe", model="m", provider={"order": ["a"]})
                await anyio.sleep(0.01)
            times.append(time.monotonic())
            answer = await gateway.embed("after", model="m", provider={"order": ["a"]})

    assert load.wrong == []
    assert load.answered == REQUESTS
    assert all(load.served[provider] for provider in "abc")
    assert State.OPEN in states
    assert answer.providers == ("a",)
    assert load.attempts == load.first_tries + load.retries == REQUESTS + load.failed.total()
    assert load.retries <= load.budget
    assert {"a:m", "b:m"} >= set(load.failed)
    # Calls in flight when it died, calls started before that was known, and one probe per cool-
    # down.
    assert load.failed["a:m"] <= 2 * AT_ONCE + 1 + (times[1] - times[0]) / BREAKER.initial_cooldown
    # After its first 429, no call is started during the cool-down.
    assert load.failed["b:m"] <= AT_ONCE * (1 + (load.ended - load.began) / SHORTEST_COOLDOWN)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("requests", thorough_unless((400).__eq__, [400, 1000]))
async def test_retries_stay_within_the_retry_budget(anyio_backend, requests, processes):
    """Each request is first sent to a dead endpoint.

    No breaker opens, so only the budget limits retries.
    """
    processes[0].kill()
    gateway = gateway_of(
        processes,
        breaker=BreakerPolicy(failures=10**9, minimum_calls=10**9, slow_start=1),
        retries=RetryPolicy(repeats=0, attempts=3),
    )
    # Fewer at once than an endpoint gets at first, so that none is full.
    load = Load(gateway, requests=requests, at_once=FIRST, provider={"order": ["a", "c"]})
    async with gateway.lifespan():
        with anyio.fail_after(60):
            await load.run()

    assert load.wrong == []
    assert Counter(c=requests) == load.served
    assert 2 * requests == load.first_tries
    assert requests // 10 < load.retries <= load.budget
