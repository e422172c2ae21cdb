"""Simulates upstreams of limited capacity behind the real gateway, in virtual time."""

import asyncio
from collections.abc import Sequence
from random import Random
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
        self.at_once = 0
        self.most = 0
        self.starts: list[float] = []
        self._serving = 0
        self._free = asyncio.Semaphore(workers)

    async def embed(self, batch: Batch) -> Vectors:
        """Answer one call."""
        loop = asyncio.get_running_loop()
        self.calls += 1
        self.starts.append(loop.time())
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await self._serve(self.seconds + self.per_input * len(batch.texts))
        finally:
            self.at_once -= 1
        self.answered.append(loop.time())
        return hash_batch(batch, WIDTH)

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


def simulate(
    upstreams: Sequence[Upstream],
    loads: Sequence[Load],
    *,
    deadline: float = 60.0,
    seed: int = 0,
    provider: dict[str, object] | None = None,
) -> list[Outcome]:
    """Send the loads to one model with an endpoint at each upstream."""
    random = Random(seed)
    outcomes: list[Outcome] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        names = [f"p{number}" for number in range(len(upstreams))]
        gateway = Gateway(
            Config(
                gateway={"auth": "open", "deadline": deadline},
                cache={"bytes": 0},
                providers={
                    name: Provider(
                        backend=ScriptedBackend(then=upstream.embed, width=WIDTH),
                        **(provider or {}),
                    )
                    for name, upstream in zip(names, upstreams, strict=True)
                },
                models={
                    "m": {"dimensions": WIDTH, "endpoints": [{"provider": name} for name in names]}
                },
            ),
            environ={},
            clock=loop.time,
        )
        began = loop.time()
        numbers = iter(range(10**9))

        async def request(load: Load, caller: str) -> int:
            at = loop.time()
            status, retry_after = 200, None
            texts = [f"text {next(numbers)}" for _ in range(load.inputs)]
            try:
                await gateway.embed(texts, model="m", caller=Caller(name=caller))
            except EmbedrouteError as error:
                status, retry_after = error.status, error.retry_after
            outcome = Outcome(at - began, loop.time() - at, status, retry_after, load.stream)
            outcomes.append(outcome)
            return status

        async def client(load: Load, number: int) -> None:
            await asyncio.sleep(load.begin)
            while loop.time() - began < load.end:
                if await request(load, f"{load.caller} {number}") != 200:
                    await asyncio.sleep(load.pause)

        async def arrivals(load: Load, group: asyncio.TaskGroup) -> None:
            await asyncio.sleep(load.begin)
            while loop.time() - began < load.end:
                await asyncio.sleep(random.expovariate(load.rate))
                group.create_task(request(load, load.caller))

        async with asyncio.TaskGroup() as group:
            for load in loads:
                for number in range(load.clients):
                    group.create_task(client(load, number))
                if load.rate:
                    group.create_task(arrivals(load, group))

    run_in_virtual_time(main())
    return sorted(outcomes)
