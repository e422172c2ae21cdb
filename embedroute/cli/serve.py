"""``embedroute serve``: serves a config over HTTP with uvicorn."""

import argparse
import gc
import logging
import math
import os
import platform
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Final

from embedroute.cli.parser import Command, load_config
from embedroute.config import Settings
from embedroute.config_warnings import find_warnings
from embedroute.errors import ConfigError, MissingExtra
from embedroute.gateway import Gateway
from embedroute.server import embeddings_app

MALLOC: Final[Mapping[str, str]] = {
    "MALLOC_MMAP_THRESHOLD_": "4194304",
    "MALLOC_TRIM_THRESHOLD_": "65011712",
}
"""The variables of glibc's malloc for ``serve``, in bytes; docs/operations.md explains them."""


HOST_AUTH: Final = (
    '[gateway] auth = "host" needs an application that authenticates callers, and embedroute serve '
    'has none. Set auth = "keys" or auth = "open", or mount the gateway in the application.'
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``serve``."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port", default=8000, type=int, help="port to listen on (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    """Serve until the process gets SIGINT or SIGTERM."""
    config = load_config(options)
    if config.gateway.auth == "host":
        raise ConfigError([HOST_AUTH])
    gateway = Gateway(config)
    for warning in find_warnings(config, gateway.directory):
        print(f"warning: {warning}", file=sys.stderr)
    try:
        uvicorn = import_module("uvicorn")
    except ImportError:
        raise MissingExtra("serve", "uvicorn") from None
    _log_transport()
    # Loaded modules are never freed. Exclude them from garbage collection to make it faster.
    gc.collect()
    gc.freeze()
    uvicorn.run(
        embeddings_app(gateway),
        host=options.host,
        port=options.port,
        timeout_graceful_shutdown=_longest_request(gateway.settings),
    )
    return 0


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
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606 - itself


def _log_transport() -> None:
    # uvicorn configures its own loggers only. The operator needs to know which transport is used.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s:     %(name)s: %(message)s"))
    log = logging.getLogger("embedroute.http")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


COMMAND: Final = Command(
    name="serve",
    help="serve a config over HTTP (needs the extra 'serve')",
    run=run,
    add_options=add_options,
)
