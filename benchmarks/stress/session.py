"""The processes of a run: the upstreams, one gateway after another, and the clients."""

import http.client
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

import msgspec

from benchmarks import places
from benchmarks.servers import Server
from benchmarks.stress.messages import Behaviour, Counts, Load, Order, Stream
from benchmarks.stress.vectors import WIDTH

PATIENCE = 90.0  # seconds for the last responses of a job
MOUNTED = "benchmarks.stress.gateway:app"

GATEWAY = """\
[gateway]
auth = "open"
transport = "{transport}"
deadline = {deadline}

[cache]
bytes = 0
"""
PROVIDER = """
[providers.{provider}]
backend = "openai"
api_key = "stress"
base_url = "http://127.0.0.1:{port}/v1"
{more}
"""
MODEL = """
[models."{model}"]
dimensions = {width}
{more}
endpoints = [{endpoints}]
"""


class Gateway(msgspec.Struct, frozen=True, kw_only=True):
    """The config of a gateway: which upstreams serve which model. `provider`, `endpoint` and `model` are more lines."""

    models: Mapping[str, Sequence[str]]
    transport: str = "auto"
    deadline: float = 10.0
    provider: str = ""
    endpoint: str = ""
    model: str = ""
    open_files: int = 0


class Job:
    """Clients at work. They write their records to a file, which may have several MiB."""

    def __init__(self, session: "Session", streams: Sequence[Stream]) -> None:
        self._session = session
        self._last = max(stream.end for stream in streams)
        self._output = places.RUN / "stress-load.json"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.stress.clients", str(self._output)],
            cwd=places.ROOT,
            stdin=subprocess.PIPE,
        )
        places.pin(self._process.pid, places.LOAD_CORE)
        assert self._process.stdin
        self._process.stdin.write(msgspec.json.encode(streams))
        self._process.stdin.close()

    def result(self) -> Load:
        """Wait for the last response."""
        try:
            status = self._process.wait(self._last + PATIENCE)
        finally:
            self._process.kill()
        if status:
            raise RuntimeError(f"the clients ended with status {status}")
        load = msgspec.json.decode(self._output.read_bytes(), type=Load)
        self._session.cpu["clients"] += load.cpu
        return load


class Session:
    """Starts processes and ends them. `cpu` holds the seconds of CPU that each kind took."""

    def __init__(self) -> None:
        self.cpu = {"gateway": 0.0, "clients": 0.0, "upstreams": 0.0}
        self.ports: dict[str, int] = {}

    def __enter__(self) -> Self:
        for folder in (places.RUN, places.LOGS):
            folder.mkdir(parents=True, exist_ok=True)
        port = places.free_port()
        command = [sys.executable, "-m", "benchmarks.stress.upstream", str(port)]
        self._upstreams = Server("stress-upstreams", command, port, places.LOAD_CORE)
        self._upstreams.wait()
        self._control = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu["upstreams"] += self._upstreams.cpu()
        self._upstreams.stop()

    def upstream(self, name: str, behaviour: Behaviour | None = None, *, reset: bool = False):
        """Create or change an upstream; return its counts, taken before a reset."""
        order = Order(upstream=name, behaviour=behaviour, reset=reset)
        self._control.request("POST", "/__control", msgspec.json.encode(order))
        counts = msgspec.json.decode(self._control.getresponse().read(), type=Counts)
        self.ports[name] = counts.port
        return counts

    def calls(self, names: Sequence[str]) -> int:
        """Return the calls at some upstreams since the last reset, and reset their counts."""
        return sum(self.upstream(name, reset=True).calls for name in names)

    def ports_of(self, names: Sequence[str]) -> tuple[int, ...]:
        return tuple(self.ports[name] for name in names)

    def start(self, *streams: Stream) -> Job:
        return Job(self, streams)

    def load(self, *streams: Stream) -> Load:
        return self.start(*streams).result()

    @contextmanager
    def gateway(self, config: Gateway) -> Iterator[Server]:
        """Run a gateway in a fresh process. Its port is `port` of the server."""
        file = places.RUN / "stress.toml"
        file.write_text(self._toml(config))
        port = places.free_port()
        command = [sys.executable, "-m", "uvicorn", MOUNTED, "--host", "127.0.0.1"]
        command += ["--port", str(port), "--no-access-log", "--log-level", "warning"]
        if config.open_files:
            limit = f'ulimit -n {config.open_files} && exec "$@"'
            command = ["sh", "-c", limit, "sh", *command]
        server = Server(
            "stress-gateway", command, port, places.SYSTEM_CORE, {"STRESS_CONFIG": str(file)}
        )
        try:
            server.wait()
            yield server
        finally:
            self.cpu["gateway"] += server.cpu()
            server.process.kill()  # calls may be stalled: a graceful end would wait for them
            server.process.wait()

    def _toml(self, config: Gateway) -> str:
        text = GATEWAY.format(transport=config.transport, deadline=config.deadline)
        for model, upstreams in config.models.items():
            for name in upstreams:
                port = self.ports[name]
                text += PROVIDER.format(provider=name, port=port, more=config.provider)
            rest = f", {config.endpoint}" if config.endpoint else ""
            endpoints = ", ".join(f'{{ provider = "{name}"{rest} }}' for name in upstreams)
            more = config.model
            text += MODEL.format(model=model, width=WIDTH, endpoints=endpoints, more=more)
        return text


def sleep_until(at: float) -> None:
    """Sleep until a time of the monotonic clock."""
    time.sleep(max(0.0, at - time.monotonic()))
