"""Many requests at once against real upstream processes, of which one dies and comes back: no client may notice.

``EMBEDROUTE_SOAK=1`` makes it ten times as long.
"""

# Anyio's plugin reads `anyio_backend`.
# ruff: noqa: ARG001

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from embedroute import Config, Gateway
from embedroute.routing.health import BreakerPolicy, State
from tests.upstream import vectors_of

ROOT = Path(__file__).parent.parent
WIDTH = 8
AT_ONCE = 128
REQUESTS = 20_000 if os.environ.get("EMBEDROUTE_SOAK") else 2_000
KILLED, BACK = REQUESTS // 4, REQUESTS // 2
"""How many requests are answered when the first upstream dies, and when it comes back."""

BURSTS = ",".join((["honest"] * 40 + ["limited_silent"] * 8) * 30)


class Process:
    """``python -m tests.upstream`` as a process of its own, which can be killed and started again on its port."""

    def __init__(self, *options: str):
        self.options, self.port = options, 0
        self.start()

    def start(self):
        command = [sys.executable, "-m", "tests.upstream", "--port", str(self.port), "--delay", "0.002", *self.options]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own words
        ready, _, _ = select.select([self.process.stdout], [], [], 20)
        assert ready, "the upstream did not start"
        self.url = self.process.stdout.readline().strip()
        self.port = int(self.url.rpartition(":")[2].partition("/")[0])

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def processes():
    started = []
    try:
        for options in ([], ["--mode", BURSTS], []):
            started.append(Process(*options))  # noqa: PERF401 - what has started is killed whatever happens to the next
        yield started
    finally:
        for process in started:
            process.kill()


def gateway_of(processes):
    providers = {
        name: {"backend": "openai", "base_url": process.url, "api_key": f"sk-{name}"}
        for name, process in zip("abc", processes, strict=True)
    }
    # Even odds, so that each of the three is the first choice of a third of the requests.
    model = {"dimensions": WIDTH, "endpoints": [{"provider": name} for name in providers]}
    config = Config(gateway={"auth": "open", "deadline": 20.0}, cache={"bytes": 0}, providers=providers, models={"m": model})
    return Gateway(config, breaker=BreakerPolicy(failures=3, first_rest=0.2, longest_rest=0.5))


class Load:
    """Sends ``REQUESTS`` requests, and keeps what went wrong."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.sent = self.answered = self.attempts = self.first = 0
        self.served = dict.fromkeys("abc", 0)
        self.wrong: list[object] = []

    async def client(self):
        while self.sent < REQUESTS:
            self.sent += 1
            texts = [f"request {self.sent} input {at}" for at in range(1 + self.sent % 4)]
            try:
                answer = await self.gateway.embed(texts, model="m")
            except Exception as error:  # noqa: BLE001 - any of them is one too many
                self.wrong.append(error)
                continue
            if answer.vectors.tolist() != vectors_of(texts, WIDTH).tolist():
                self.wrong.append(texts)
            self.answered += 1
            self.attempts += answer.journal.attempts
            for provider in answer.providers:
                self.served[provider] += 1

    async def run(self, drama):
        async with anyio.create_task_group() as group:
            group.start_soon(drama)
            for _ in range(AT_ONCE):
                group.start_soon(self.client)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_upstream_that_dies_and_comes_back_is_noticed_by_nobody(anyio_backend, processes):
    gateway = gateway_of(processes)
    load = Load(gateway)
    health = gateway.healths.of(next(it for it in gateway.directory.routes["m"].candidates if it.provider == "a"))
    states, served_at = [], []

    async def watch(until):
        while not until():
            state = health.state(time.monotonic())
            if state not in states[-1:]:
                states.append(state)
            await anyio.sleep(0.002)

    async def drama():
        await watch(lambda: load.answered + len(load.wrong) >= KILLED)
        processes[0].kill()
        await watch(lambda: load.answered + len(load.wrong) >= BACK)
        await anyio.to_thread.run_sync(processes[0].start)
        served_at.append(load.served["a"])
        await watch(lambda: load.answered + len(load.wrong) >= REQUESTS)

    async with gateway.lifespan():
        with anyio.fail_after(25 * REQUESTS / 2000):
            await load.run(drama)
            # The one that came back is behind the others for 30 s, so it is asked by name.
            while health.state(time.monotonic()) is not State.CLOSED:
                await gateway.embed("probe", model="m", provider={"order": ["a"]})
                await anyio.sleep(0.01)
            answer = await gateway.embed("after", model="m", provider={"order": ["a"]})

    assert load.wrong == []
    assert load.answered == REQUESTS
    assert all(load.served.values())
    assert State.OPEN in states
    assert answer.providers == ("a",)
    # Fallbacks to another endpoint are first attempts; retries are at most a fifth of calls, and 10 in 10 s besides.
    assert load.attempts <= 1.5 * REQUESTS
