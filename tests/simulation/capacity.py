"""Simulates upstreams of limited capacity behind the real gateway, in virtual time."""

import asyncio
from collections.abc import Sequence
from itertools import count
from random import Random
from random import seed as set_seed
from typing import NamedTuple

from embedroute import Caller, Config, EmbedrouteError, Gateway, Provider
from embedroute.backend import Batch, Vectors
from embedroute.backends.hashed import hash_batch
from embedroute.errors import RateLimited, UpstreamUnavailable
from embedroute.testing import ScriptedBackend
from tests.support.virtual_time import run_in_virtual_time

WIDTH = 4


class Upstream:
    """An upstream that serves ``workers`` calls at a time, each in ``seconds``.

    Beyond that, calls wait ("queue"), all calls share the work ("share"), or they are refused with
    a status after 5 ms (429 or 503).
    """

    def __init__(
        self,
        workers: int,
        seconds: float,
        beyond: str | int,
        *,
        per_input: float = 0.0,
        retry_after: float | None = None,
    ) -> None:
        self.workers = workers
        self.seconds = seconds
        self.beyond = beyond
        self.per_input = per_input
        self.retry_after = retry_after
        self.calls = 0
        self.answered: list[float] = []
        self.spans: list[tuple[float, float]] = []
        self._serving = 0
        self._free = asyncio.Semaphore(workers)

    async def embed(self, batch: Batch) -> Vectors:
        """Answer one call."""
        loop = asyncio.get_running_loop()
        self.calls += 1
        began = loop.time()
        try:
            await self._serve(self.seconds + self.per_input * len(batch.texts))
        finally:
            self.spans.append((began, loop.time()))
        self.answered.append(loop.time())
        return hash_batch(batch, WIDTH)

    def at_once_at(self, begin: float, end: float) -> int:
        """Return the most calls that were under way at a time between two times."""
        edges = sorted(
            edge
            for began, ended in self.spans
            if began < end and ended > begin
            for edge in ((began, 1), (ended, -1))
        )
        most = current = 0
        for _, change in edges:
            current += change
            most = max(most, current)
        return most

    async def _serve(self, seconds: float) -> None:
        if self.beyond == "queue":
            # A server finishes calls whose clients have gone.
            await asyncio.shield(asyncio.ensure_future(self._work(seconds)))
        elif self.beyond == "share":
            self._serving += 1
            try:
                left = seconds
                while left > 0:
                    step = min(left, 0.005)
                    await asyncio.sleep(step * max(1.0, self._serving / self.workers))
                    left -= step
            finally:
                self._serving -= 1
        elif self._serving >= self.workers:
            await asyncio.sleep(0.005)
            if self.beyond == 429:
                raise RateLimited("429", upstream_status=429, retry_after=self.retry_after)
            raise UpstreamUnavailable("503", upstream_status=503)
        else:
            self._serving += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                self._serving -= 1

    async def _work(self, seconds: float) -> None:
        async with self._free:
            await asyncio.sleep(seconds)


class Outcome(NamedTuple):
    """A request that began at ``at`` seconds and took so many; its status and Retry-After."""

    at: float
    seconds: float
    status: int
    retry_after: float | None
    stream: str


class Load(NamedTuple):
    """Requests at random times (``rate`` per second), or ``clients`` that send one after another."""

    begin: float
    end: float
    rate: float = 0.0
    clients: int = 0
    inputs: int = 1
    pause: float = 0.0
    stream: str = "requests"
    caller: str = "caller"


class Simulation:
    """Sends loads to one model with an endpoint at each upstream."""

    def __init__(self, upstreams: Sequence[Upstream], deadline: float, seed: int) -> None:
        self.outcomes: list[Outcome] = []
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._random = Random(seed)
        set_seed(seed)  # the gateway draws from the module's generator
        self._numbers = count()
        names = [f"p{number}" for number in range(len(upstreams))]
        self._gateway = Gateway(
            Config(
                gateway={"auth": "open", "deadline": deadline},
                cache={"bytes": 0},
                providers={
                    name: Provider(backend=ScriptedBackend(then=upstream.embed, width=WIDTH))
                    for name, upstream in zip(names, upstreams, strict=True)
                },
                models={
                    "m": {"dimensions": WIDTH, "endpoints": [{"provider": name} for name in names]}
                },
            ),
            environ={},
            clock=self._loop.time,
        )

    async def run(self, loads: Sequence[Load]) -> None:
        """Send all loads."""
        async with asyncio.TaskGroup() as group:
            for load in loads:
                for _ in range(load.clients):
                    group.create_task(self._client(load))
                if load.rate:
                    group.create_task(self._arrivals(load, group))

    async def _request(self, load: Load) -> int:
        at = self._loop.time()
        status, retry_after = 200, None
        texts = [f"text {next(self._numbers)}" for _ in range(load.inputs)]
        try:
            await self._gateway.embed(texts, model="m", caller=Caller(name=load.caller))
        except EmbedrouteError as error:
            status, retry_after = error.status, error.retry_after
        seconds = self._loop.time() - at
        self.outcomes.append(Outcome(at - self._began, seconds, status, retry_after, load.stream))
        return status

    async def _client(self, load: Load) -> None:
        await asyncio.sleep(load.begin)
        while self._loop.time() - self._began < load.end:
            if await self._request(load) != 200:
                await asyncio.sleep(load.pause)

    async def _arrivals(self, load: Load, group: asyncio.TaskGroup) -> None:
        await asyncio.sleep(load.begin)
        while self._loop.time() - self._began < load.end:
            await asyncio.sleep(self._random.expovariate(load.rate))
            group.create_task(self._request(load))


def simulate(
    upstreams: Sequence[Upstream],
    loads: Sequence[Load],
    *,
    deadline: float = 60.0,
    seed: int = 0,
) -> list[Outcome]:
    """Send the loads to one model with an endpoint at each upstream."""

    async def main() -> list[Outcome]:
        simulation = Simulation(upstreams, deadline, seed)
        await simulation.run(loads)
        return simulation.outcomes

    return sorted(run_in_virtual_time(main()))
