"""Provides the command ``embedroute``: ``serve``, ``check``, ``backends``, ``models``, ``verify``.

It uses argparse and so needs no extra.
"""

import argparse
import gc
import logging
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

import anyio

from embedroute import plugins
from embedroute.cli.verify import Thresholds, verify
from embedroute.config import Settings
from embedroute.errors import ConfigError, EmbedrouteError, MissingExtra
from embedroute.gateway import Gateway
from embedroute.server import embeddings_app, models

MALLOC: Final[Mapping[str, str]] = {
    "MALLOC_MMAP_THRESHOLD_": "4194304",
    "MALLOC_TRIM_THRESHOLD_": "65011712",
}
"""The variables of glibc's malloc for ``serve``, in bytes; docs/operations.md explains them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0 success, 1 failure, 2 usage error).

    Without ``arguments`` it is the command line of this process, which ``serve`` may replace by one
    with other settings of malloc.
    """
    options = _make_parser().parse_args(arguments)
    if arguments is None and options.run is _serve:
        _return_freed_memory()
    try:
        return options.run(options)
    except EmbedrouteError as error:
        print(error.message, file=sys.stderr)
        return 1


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="embedroute", description="An OpenAI-compatible embeddings gateway."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = _add_command(
        commands.add_parser, "serve", _serve, "serve a config over HTTP (needs the extra 'serve')"
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    serve.add_argument(
        "--port", default=8000, type=int, help="port to listen on (default: %(default)s)"
    )
    _add_config_option(serve)
    check = _add_command(
        commands.add_parser, "check", _check, "validate a config file and report every mistake"
    )
    check.add_argument("config", type=Path, metavar="FILE")
    _add_command(commands.add_parser, "backends", _backends, "list the installed backends")
    _add_config_option(
        _add_command(commands.add_parser, "models", _models, "list the models that a config serves")
    )
    _add_verify_command(commands.add_parser)
    return parser


Run = Callable[[argparse.Namespace], int]


def _add_command(
    add: Callable[..., argparse.ArgumentParser], name: str, run: Run, help: str
) -> argparse.ArgumentParser:
    parser = add(name, help=help, description=help)
    parser.set_defaults(run=run)
    return parser


def _add_verify_command(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = _add_command(add, "verify", _verify, "compare the vectors of all endpoints of a model")
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="default: every model with several endpoints"
    )
    parser.add_argument(
        "--verified",
        default=0.9999,
        type=float,
        help="minimum cosine similarity for 'verified' (default: %(default)s)",
    )
    parser.add_argument(
        "--near",
        default=0.999,
        type=float,
        help="minimum cosine similarity for 'near' (default: %(default)s)",
    )
    _add_config_option(parser)


def _add_config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="default: $EMBEDROUTE_CONFIG, ./embedroute.toml, or environment variables",
    )


def _make_gateway(config: Path | None) -> Gateway:
    if config or os.environ.get("EMBEDROUTE_CONFIG") or Path("embedroute.toml").exists():
        return Gateway.from_file(config)
    return Gateway.from_env()


def _serve(options: argparse.Namespace) -> int:
    gateway = _make_gateway(options.config)
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


def _return_freed_memory() -> None:
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


def _check(options: argparse.Namespace) -> int:
    gateway = Gateway.from_file(options.config)
    providers = gateway.directory.providers
    print(
        f"{options.config}: OK (providers: {len(providers)}, "
        f"models: {len(gateway.directory.routes)}, auth: {gateway.settings.auth})"
    )
    origins = [(slug, *plugins.find_origin(row.backend)) for slug, row in providers.items()]
    _print_table(("PROVIDER", "CODE", "PACKAGE"), origins)
    for entry in plugins.list_unused():
        print(f'{entry.whose} is not used: embedroute ships a provider named "{entry.name}"')
    return 0


def _backends(options: argparse.Namespace) -> int:
    del options
    rows = [(entry.name, entry.value, entry.distribution) for entry in plugins.list_backends()]
    _print_table(("NAME", "CODE", "PACKAGE"), rows)
    return 0


def _models(options: argparse.Namespace) -> int:
    cards = [
        models.describe_model(route)
        for route in _make_gateway(options.config).directory.routes.values()
    ]
    rows = [
        (
            card.id,
            str(card.dimensions or "?"),
            ",".join(card.providers),
            str(card.pricing.get("prompt", "?")),
        )
        for card in cards
    ]
    _print_table(("MODEL", "DIMENSIONS", "PROVIDERS", "USD/M"), rows)
    return 0


def _verify(options: argparse.Namespace) -> int:
    gateway = _make_gateway(options.config)
    thresholds = Thresholds(verified=options.verified, near=options.near)
    if options.model:
        names = [options.model]
    else:
        routes = gateway.directory.routes.items()
        names = [name for name, route in routes if len(route.candidates) > 1]
    if not names:
        raise ConfigError(
            ["No model of this config has several endpoints, so there is nothing to compare."]
        )
    verdicts = [
        verdict for name in names for verdict in anyio.run(verify, gateway, name, thresholds)
    ]
    if not verdicts:
        raise ConfigError([f"{options.model} has one endpoint, so there is nothing to compare."])
    rows = [
        (
            verdict.model,
            verdict.left,
            verdict.right,
            verdict.shown_cosine,
            verdict.shown_difference,
            verdict.verdict,
            verdict.reason,
        )
        for verdict in verdicts
    ]
    _print_table(
        ("MODEL", "ENDPOINT", "ENDPOINT", "MIN COSINE", "MAX DIFFERENCE", "VERDICT", "REASON"), rows
    )
    return int(any(verdict.verdict == "different" for verdict in verdicts))


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # Print the header on terminals only, so that pipes receive nothing but rows.
    lines = [header, *rows] if sys.stdout.isatty() else rows
    widths = [
        max((len(line[column]) for line in lines), default=0) for column in range(len(header))
    ]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
