"""The order of a run: for each workload A B C A B C …, so that a noisy minute slows down all systems."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import msgspec

from benchmarks import configs, environments, measure, places, systems, upstreams, workloads
from benchmarks.measure import Figures
from benchmarks.servers import DidNotStartError, Server
from benchmarks.systems import System
from benchmarks.upstreams import Ports
from benchmarks.workloads import Workload

type_of_results = dict[tuple[str, str], Figures]


class Effort(msgspec.Struct, frozen=True):
    """How long a round is, in seconds, and how many there are."""

    seconds: float = 2.0
    rounds: int = 3


class Bench:
    """Runs the servers and rounds of a benchmark, and reports a peer that fails without stopping."""

    def __init__(self, ports: Ports, effort: Effort) -> None:
        self.ports, self.effort = ports, effort
        self.servers: dict[str, Server] = {}
        self.failures: dict[str, str] = {}
        self.results: type_of_results = {}
        self.warm: set[str] = set()

    def start(
        self, wanted: Iterable[System], variables: Mapping[str, str], stack: ExitStack
    ) -> None:
        missing = environments.prepare({name for system in wanted for name in system.environments})
        for system in wanted:
            lacking = [missing[name] for name in system.environments if name in missing]
            try:
                if lacking:
                    raise DidNotStartError(f"not installed: {lacking[0]}")  # noqa: TRY301
                server = systems.start(system, variables)
                stack.callback(server.stop)
                server.wait()
            except (DidNotStartError, OSError) as failure:
                self.fail(system.name, f"did not start: {failure}")
            else:
                self.servers[system.name] = server

    def fail(self, name: str, why: str) -> None:
        self.failures[name] = why
        print(f"!! {name}: {why}", flush=True)

    def work(self, workload: Workload) -> None:
        """All rounds of one workload."""
        seconds = self.effort.seconds * workload.stretch
        names = [
            name for name in workload.systems if name in self.servers and self._warm(name, workload)
        ]
        rounds: dict[str, list[Figures]] = {name: [] for name in names}
        for _ in range(self.effort.rounds):
            for name in names:
                figures = self._round(name, workload, seconds)
                rounds[name] += [figures] if figures else []
        for name, figures in rounds.items():
            if figures:
                self.results[name, workload.name] = measure.middle(figures)
            else:
                self.fail(f"{name} at {workload.name}", "left requests unanswered in every round")

    def _warm(self, name: str, workload: Workload) -> bool:
        target = self._target(name, workload)
        try:
            measure.check(target, workload)
        except measure.WrongAnswerError as failure:
            self.fail(f"{name} at {workload.name}", f"wrong answer: {failure}")
            return False
        # The first load is a long one: V8 compiles what runs often, pools and heaps grow.
        seconds = 1.0 if name in self.warm else 2 * self.effort.seconds
        measure.run(self.servers[name], target, workload, seconds, None)
        self.warm.add(name)
        return True

    def _round(self, name: str, workload: Workload, seconds: float) -> Figures | None:
        other = workloads.BY_NAME[workload.beside] if workload.beside else None
        beside = (self._target(name, other), other) if other else None
        try:
            return measure.run(
                self.servers[name], self._target(name, workload), workload, seconds, beside
            )
        except (OSError, IndexError, StopIteration) as failure:
            self.fail(f"{name} at {workload.name}", f"{type(failure).__name__}: {failure}")
            return None

    def _target(self, name: str, workload: Workload):
        return systems.target(systems.BY_NAME[name], self.servers[name], workload.model, self.ports)


@contextmanager
def bench(wanted: Iterable[System], effort: Effort) -> Iterator[Bench]:
    """Upstreams and systems up, and all of them down again at the end."""
    ports = Ports(nginx=places.free_port(), gpu=places.free_port())
    with ExitStack() as stack:
        for server in (upstreams.start_nginx(ports.nginx), upstreams.start_gpu(ports.gpu)):
            stack.callback(server.stop)
            server.wait()
        at_work = Bench(ports, effort)
        at_work.start(wanted, configs.write(ports), stack)
        yield at_work
