"""The table of systems: how each is started and how it is asked."""

from collections.abc import Mapping

import msgspec

from benchmarks import places, upstreams
from benchmarks.configs import KEY
from benchmarks.load import Target
from benchmarks.servers import Server
from benchmarks.upstreams import Ports

UVICORN = (
    *(
        "-m",
        "uvicorn",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
        "--loop",
        "uvloop",
        "--http",
        "httptools",
    ),
    *("--no-access-log", "--log-level", "warning", "--backlog", "2048"),
)
BARE_APP = ("{venv}", *UVICORN, "--lifespan", "off", "benchmarks.peers.bare:app")
STATIC_APP = ("{venv}", *UVICORN, "--lifespan", "off")
BEARER = {"authorization": f"Bearer {KEY}"}


class System(msgspec.Struct, frozen=True, kw_only=True):
    """`environments` must be there for it to run; braces in the other fields are filled in when it starts or is asked."""

    name: str
    environments: tuple[str, ...]
    command: tuple[str, ...]
    variables: Mapping[str, str] = {}
    path: str = "/ai/v1/embeddings"
    headers: Mapping[str, str] = msgspec.field(default_factory=lambda: BEARER)


def _bare(name: str, engine: str, decode: str) -> System:
    variables = {"BENCH_ENGINE": engine, "BENCH_DECODE": decode, "BENCH_ROUTES": "{routes}"}
    return System(
        name=name, environments=(), command=BARE_APP, variables=variables, path="/{model}"
    )


def _ours(name: str, environment: str, config: str) -> System:
    return System(
        name=name,
        environments=(environment,),
        command=(f"{{{environment}}}", *UVICORN, "benchmarks.peers.ours:app"),
        variables={"BENCH_CONFIG": config},
    )


SYSTEMS = (
    _bare("bare-aiohttp", "aiohttp", ""),
    _bare("bare-pyreqwest", "pyreqwest", ""),
    _bare("bare-aiohttp-d", "aiohttp", "yes"),
    _bare("bare-pyreqwest-d", "pyreqwest", "yes"),
    _ours("embedroute", "embedroute", "{off}"),
    _ours("embedroute-httpx2", "embedroute", "{httpx2}"),
    _ours("embedroute-cache", "embedroute", "{on}"),
    System(name="static", environments=(), command=(*STATIC_APP, "benchmarks.peers.static:app")),
    System(
        name="static-mounted",
        environments=(),
        command=(*STATIC_APP, "benchmarks.peers.static:mounted"),
    ),
    System(
        name="portkey",
        environments=("portkey",),
        command=("node", "{portkey}", "--port={port}", "--headless"),
        path="/v1/embeddings",
        headers={
            "authorization": "Bearer upstream",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": "{upstream}",
        },
    ),
    System(
        name="litellm",
        environments=("litellm",),
        command=(
            "{litellm_python}",
            *UVICORN,
            "--app-dir",
            "{run}",
            "litellm.proxy.proxy_server:app",
        ),
        variables={
            "CONFIG_FILE_PATH": "{litellm}",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
        },
        path="/v1/embeddings",
    ),
)
BY_NAME = {system.name: system for system in SYSTEMS}


def start(system: System, variables: Mapping[str, str]) -> Server:
    """Start a system; `variables` is the result of `configs.write`."""
    port = places.free_port()
    known = {
        **variables,
        "port": str(port),
        "run": str(places.RUN),
        "venv": places.python("venv"),
        "embedroute": places.python("venv"),
        "litellm_python": places.python("litellm"),
        "portkey": str(
            places.WORK / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
        ),
    }
    command = [part.format(**known) for part in system.command]
    return Server(
        system.name,
        command,
        port,
        places.SYSTEM_CORE,
        {key: value.format(**known) for key, value in system.variables.items()},
    )


def target(system: System, server: Server, model: str, ports: Ports) -> Target:
    """Where and with which headers a model is asked for."""
    known = {"model": model, "upstream": upstreams.url(ports, model)}
    headers = {"content-type": "application/json", **system.headers}
    return Target(
        f"http://127.0.0.1:{server.port}{system.path.format(**known)}",
        {name: value.format(**known) for name, value in headers.items()},
    )
