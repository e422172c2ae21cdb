"""Simulates requests to a gateway whose upstreams fail, stall and recover, in virtual time.

Only time and the upstreams are simulated: the gateway is the real one.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from random import Random
from random import seed as set_seed
from typing import NamedTuple

from embedroute import Config, EmbedrouteError, Gateway, Provider
from embedroute.backend import Batch, Vectors
from embedroute.backends.hashed import hash_batch
from embedroute.errors import ConnectError, UpstreamError, UpstreamUnavailable
from embedroute.testing import ScriptedBackend
from tests.support.virtual_time import run_in_virtual_time

WIDTH = 4
FOREVER = 3600.0


class Mode(NamedTuple):
    """How an upstream behaves: the share of its calls that fail, how, and its seconds per call.

    A share of the calls, ``slow``, takes two seconds more.
    """

    failing: float = 0.0
    error: Callable[[], UpstreamError] = lambda: UpstreamUnavailable("503", upstream_status=503)
    seconds: float = 0.02
    slow: float = 0.0


HEALTHY = Mode()
DOWN = Mode(failing=1.0)
REFUSING = Mode(failing=1.0, error=lambda: ConnectError("refused"), seconds=0.0)
BROKEN = Mode(failing=1.0, error=lambda: UpstreamUnavailable("500", upstream_status=500))
STALLED = Mode(seconds=FOREVER)


def brown_out(share: float, status: int = 503) -> Mode:
    """An upstream that fails a share of its calls at random."""
    return Mode(
        failing=share,
        error=lambda: UpstreamUnavailable(str(status), upstream_status=status),
    )


class Upstream:
    """An upstream with a schedule: pairs of the second from which a mode holds, and the mode."""

    def __init__(self, schedule: Sequence[tuple[float, Mode]], random: Random) -> None:
        self.schedule = schedule
        self.calls: list[float] = []
        self.ended = 0
        self._random = random
        self._began = 0.0

    def start(self) -> None:
        """Begin the schedule now."""
        self._began = asyncio.get_running_loop().time()

    def mode(self, now: float) -> Mode:
        """Return the mode ``now`` seconds after the start."""
        return [mode for at, mode in self.schedule if at <= now][-1]

    async def embed(self, batch: Batch) -> Vectors:
        """Answer one call."""
        loop = asyncio.get_running_loop()
        now = loop.time() - self._began
        self.calls.append(now)
        mode = self.mode(now)
        is_slow = mode.slow and self._random.random() < mode.slow
        await asyncio.sleep(mode.seconds + 2.0 * is_slow)
        self.ended += 1
        if self._random.random() < mode.failing:
            raise mode.error()
        return hash_batch(batch, WIDTH)


class Outcome(NamedTuple):
    """A request that began at ``at`` seconds and took so many, with the status of its response."""

    at: float
    seconds: float
    status: int


class Result(NamedTuple):
    """What a simulation has brought."""

    outcomes: list[Outcome]
    upstreams: list[Upstream]

    @property
    def calls(self) -> int:
        """The number of calls to all upstreams."""
        return sum(len(upstream.calls) for upstream in self.upstreams)

    def answered(self, begin: float = 0.0, end: float = float("inf")) -> float:
        """Return the share of the requests that began in this time and were answered."""
        found = [outcome.status == 200 for outcome in self.outcomes if begin <= outcome.at < end]
        return sum(found) / len(found)


def simulate(
    *schedules: Sequence[tuple[float, Mode]],
    seconds: float,
    per_second: float,
    seed: int = 0,
    deadline: float = 30.0,
    provider: Mapping[str, object] = {},
    model: Mapping[str, object] = {},
) -> Result:
    """Send ``per_second`` requests on average to one model with an endpoint per schedule.

    ``provider`` and ``model`` are keys of these tables of the config.
    """
    random = Random(seed)
    set_seed(seed)  # the gateway draws from the module's generator
    upstreams = [Upstream(schedule, random) for schedule in schedules]
    outcomes: list[Outcome] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        gateway = gateway_of(upstreams, deadline, loop.time, provider, model)
        began = loop.time()
        for upstream in upstreams:
            upstream.start()

        async def request(number: int) -> None:
            at = loop.time()
            status = 200
            try:
                await gateway.embed(f"text {number}", model="m")
            except EmbedrouteError as error:
                status = error.status
            outcomes.append(Outcome(at - began, loop.time() - at, status))

        async with asyncio.TaskGroup() as group:
            number = 0
            while loop.time() - began < seconds:
                await asyncio.sleep(random.expovariate(per_second))
                group.create_task(request(number))
                number += 1

    run_in_virtual_time(main())
    return Result(sorted(outcomes), upstreams)


def gateway_of(
    upstreams: Sequence[Upstream],
    deadline: float,
    clock: Callable[[], float],
    provider: Mapping[str, object],
    model: Mapping[str, object],
) -> Gateway:
    names = [f"p{number}" for number in range(len(upstreams))]
    return Gateway(
        Config(
            gateway={"auth": "open", "deadline": deadline},
            cache={"bytes": 0},
            providers={
                name: Provider(
                    backend=ScriptedBackend(then=upstream.embed, width=WIDTH), **provider
                )
                for name, upstream in zip(names, upstreams, strict=True)
            },
            models={
                "m": {
                    "dimensions": WIDTH,
                    "endpoints": [{"provider": name} for name in names],
                    **model,
                }
            },
        ),
        environ={},
        clock=clock,
    )
