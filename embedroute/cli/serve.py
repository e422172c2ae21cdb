"""``embedroute serve``: serves a config over HTTP with uvicorn."""

import argparse
import atexit
import gc
import logging
import logging.config
import math
import os
import platform
import shutil
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from embedroute.backend import LocalBackend
from embedroute.cli.log_format import FORMATS, LEVELS, make_log_config
from embedroute.cli.parser import Command, find_config, load_config
from embedroute.cli.reloading import Reloader
from embedroute.config import Config, Settings
from embedroute.config_warnings import find_warnings
from embedroute.errors import ConfigError, MissingExtra, RequestError
from embedroute.gateway import Gateway
from embedroute.server import (
    ASGIApp,
    PreparedApp,
    RootPathApp,
    allow_origins,
    embeddings_app,
)
from embedroute.telemetry import MULTIPROCESS
from embedroute.version import __version__

if TYPE_CHECKING:
    import uvicorn

log: Final = logging.getLogger("embedroute.serve")

MALLOC: Final[Mapping[str, str]] = {
    "MALLOC_MMAP_THRESHOLD_": "4194304",
    "MALLOC_TRIM_THRESHOLD_": "65011712",
}
"""The variables of glibc's malloc for ``serve``, in bytes; docs/operations.md explains them."""


KEEP_ALIVE: Final = 75
"""Seconds for which an idle connection stays open; proxies close theirs after 60 s."""
WORKER_TIMEOUT: Final = 60
"""Seconds within which a worker must answer uvicorn; a slow start takes more than 5."""
MOST_SHOWN: Final = 5
"""Maximum names of models in the summary at the start."""


HOST_AUTH: Final = (
    '[gateway] auth = "host" needs an application that authenticates callers, and embedroute serve '
    'has none. Set auth = "keys" or auth = "open", or mount the gateway in the application.'
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``serve``."""
    add = parser.add_argument
    shown = " (default: %(default)s)"
    add("--host", default="127.0.0.1", help=f"address to listen on{shown}")
    add("--port", default=8000, type=int, help=f"port to listen on{shown}")
    add("--uds", metavar="PATH", help="listen on a Unix domain socket instead")
    add(
        "--workers",
        type=int,
        default=os.environ.get("WEB_CONCURRENCY", "1"),
        metavar="N",
        help="processes; they share vectors by [store] url only (default: $WEB_CONCURRENCY or 1)",
    )
    add("--root-path", default="", metavar="PATH", help="path before /v1 that clients see")
    add(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin whose web pages may call the API, or '*'; may be repeated",
    )
    add("--dashboard", action="store_true", help="serve the dashboard, unless the config sets it")
    add("--log-level", choices=LEVELS, default="info", help=f"lowest level to log{shown}")
    add("--log-format", choices=FORMATS, default="text", help=f"format of logs{shown}")
    tls = parser.add_argument_group("TLS")
    tls.add_argument("--ssl-certfile", metavar="FILE", help="certificate chain in PEM format")
    tls.add_argument("--ssl-keyfile", metavar="FILE", help="private key in PEM format")
    tls.add_argument(
        "--ssl-keyfile-password", metavar="PASSWORD", help="or set SSL_KEYFILE_PASSWORD"
    )
    tls.add_argument("--ssl-ca-certs", metavar="FILE", help="require certificates of clients")


def run(options: argparse.Namespace) -> int:
    """Serve until the process gets SIGINT or SIGTERM; reload the config at SIGHUP."""
    load = partial(_load, find_config(options), dashboard=options.dashboard)
    config = load()
    if config.gateway.auth == "host":
        raise ConfigError([HOST_AUTH])
    gateway = Gateway(config)
    if gateway.store is not None:
        gateway.store.check()
    for warning in find_warnings(config, gateway.models):
        print(f"warning: {warning}", file=sys.stderr)
    try:
        uvicorn = import_module("uvicorn")
    except ImportError:
        raise MissingExtra("serve", "uvicorn") from None
    settings = _uvicorn_options(options, gateway.settings)
    logging.config.dictConfig(settings["log_config"])
    _log_summary(options, gateway)
    reloader = Reloader(gateway, load)
    if options.workers > 1:
        _share_metrics(gateway)
        make_app = partial(make_worker_app, load, options.cors_origin, options.root_path)
        _run_workers(uvicorn.Config(make_app, factory=True, **settings), reloader)
    else:
        reloader.listen()
        uvicorn.run(_make_app(gateway, options.cors_origin, options.root_path), **settings)
    return 0


def _uvicorn_options(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Return the options of uvicorn.

    Raises:
        ConfigError: a file for TLS cannot be used.
    """
    return {
        "host": options.host,
        "port": options.port,
        "uds": options.uds,
        "workers": options.workers,
        "http": "embedroute.uvicorn:HTTPProtocol",
        "ws": "none",
        "lifespan": "on",
        "log_config": make_log_config(options.log_level, options.log_format),
        "access_log": False,
        "timeout_keep_alive": KEEP_ALIVE,
        "timeout_graceful_shutdown": _longest_request(settings),
        "timeout_worker_healthcheck": WORKER_TIMEOUT,
        **_tls_options(options),
    }


def _share_metrics(gateway: Gateway) -> None:
    """Let the workers share their metrics in a temporary folder, unless the operator names one.

    The workers are new processes, so they import prometheus-client with this variable.
    """
    if gateway.metrics is not None and MULTIPROCESS not in os.environ:
        folder = tempfile.mkdtemp(prefix="embedroute-metrics-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[MULTIPROCESS] = folder


def _with_dashboard(config: Config, *, dashboard: bool) -> Config:
    """Return the config with the dashboard for all who may debug, if it is requested and off."""
    settings = config.gateway
    if not dashboard or settings.dashboard != "off":
        return config
    exposure = "open" if settings.auth == "open" else "key"
    return replace(config, gateway=replace(settings, dashboard=exposure))


def _load(file: Path | None, *, dashboard: bool) -> Config:
    return _with_dashboard(load_config(argparse.Namespace(config=file)), dashboard=dashboard)


def make_worker_app(load: Callable[[], Config], origins: Sequence[str], root_path: str) -> ASGIApp:
    """Make the application of one of several workers, each of which has a gateway of its own."""
    gateway = Gateway(load())
    Reloader(gateway, load).listen()
    return _make_app(gateway, origins, root_path)


def _make_app(gateway: Gateway, origins: Sequence[str], root_path: str) -> ASGIApp:
    app: ASGIApp = PreparedApp(embeddings_app(gateway), partial(_prepare, gateway))
    if root_path.strip("/"):
        app = RootPathApp(app, root_path)
    return allow_origins(app, origins) if origins else app


async def _prepare(gateway: Gateway) -> None:
    """Load the local models, so that the first request does not wait for them.

    Raises:
        EmbedrouteError: a local model cannot be loaded.
    """
    local = {
        id(candidate.backend): (candidate, name)
        for name, route in gateway.models.routes.items()
        for candidate in route.candidates
        if isinstance(candidate.backend, LocalBackend)
    }
    for candidate, name in local.values():
        try:
            await gateway.embed_at(candidate, ["ready"], model=name)
        except RequestError:
            log.info("the model %s takes no plain text; its first request loads it", name)
    # Loaded modules are never freed. Exclude them from garbage collection to make it faster.
    gc.collect()
    gc.freeze()


def _run_workers(config: "uvicorn.Config", reloader: Reloader) -> None:
    """Run the workers of ``config`` on one socket until the process gets a signal."""
    supervisor = import_module("embedroute.cli.supervisor")
    path = Path(config.uds) if config.uds else None
    if path is not None and path.is_socket():
        path.unlink()  # a server that was killed has left it
    listener = config.bind_socket()
    if path is None:
        # uvicorn does not set it, so that each response on a reused connection would take 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        supervisor.Supervisor(config, [listener], reloader.reload).run()
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def _tls_options(options: argparse.Namespace) -> dict[str, object]:
    """Return uvicorn's options for TLS.

    Raises:
        ConfigError: a file cannot be used.
    """
    if not options.ssl_certfile:
        if options.ssl_keyfile or options.ssl_ca_certs:
            raise ConfigError(["TLS needs a certificate: add --ssl-certfile FILE."])
        return {}
    password = options.ssl_keyfile_password or os.environ.get("SSL_KEYFILE_PASSWORD", "")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile, lambda: password)
        if options.ssl_ca_certs:
            context.load_verify_locations(options.ssl_ca_certs)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the key needs a password"
        files = [options.ssl_certfile, options.ssl_keyfile, options.ssl_ca_certs]
        names = ", ".join(filter(None, files))
        raise ConfigError([f"The TLS files ({names}) cannot be used: {reason}"]) from None
    return {
        "ssl_certfile": options.ssl_certfile,
        "ssl_keyfile": options.ssl_keyfile,
        "ssl_keyfile_password": password or None,
        "ssl_ca_certs": options.ssl_ca_certs,
        "ssl_cert_reqs": ssl.CERT_REQUIRED if options.ssl_ca_certs else ssl.CERT_NONE,
    }


def _log_summary(options: argparse.Namespace, gateway: Gateway) -> None:
    """Log what is served, and where."""
    settings = gateway.settings
    config = find_config(options)
    names = list(gateway.models.routes)
    more = f", … (embedroute models lists all {len(names)})" if len(names) > MOST_SHOWN else ""
    url = _describe_address(options)
    is_open = settings.auth == "open"
    summary = {
        "config": str(config.absolute()) if config else "environment variables",
        "url": f"{url}/v1",
        "auth": "open (requests need no API key)" if is_open else "keys",
        "models": (", ".join(names[:MOST_SHOWN]) or "none") + more,
        "transport": "httpx2" if settings.transport == "httpx2" or settings.http2 else "http1",
        "docs": f"{url}/openapi.json",
    }
    lines = [f"  {name:<10} {value}" for name, value in summary.items()]
    log.info("embedroute %s\n%s", __version__, "\n".join(lines), extra=summary)


def _describe_address(options: argparse.Namespace) -> str:
    if options.uds:
        return f"unix:{options.uds}:{options.root_path}"
    scheme = "https" if options.ssl_certfile else "http"
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"{scheme}://{host}:{options.port}{options.root_path}"


def _longest_request(settings: Settings) -> int | None:
    """Return the seconds until the last response starts; None if there is no limit."""
    seconds = settings.body_timeout + settings.deadline
    return None if math.isinf(seconds) else math.ceil(seconds)


def return_freed_memory() -> None:
    """Start this process again with malloc's thresholds set, unless they are set or not glibc's.

    By default glibc soon keeps all freed memory in its heap: 150 to 480 MB after twenty responses
    of 17 MB to slow clients. With a fixed threshold it keeps 20 to 40 MB, and blocks under 4 MiB
    are still reused. It reads these variables only when a process starts.
    """
    if platform.libc_ver()[0] == "glibc" and MALLOC.keys().isdisjoint(os.environ):
        environ = {**os.environ, **MALLOC}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606


COMMAND: Final = Command(
    name="serve",
    help="serve a config over HTTP (needs the extra 'serve')",
    run=run,
    add_options=add_options,
)
