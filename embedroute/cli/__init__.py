"""The command: ``embedroute serve | check | backends | models | verify``; argparse, so that no extra is needed."""

import argparse
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import anyio

from embedroute import plugins
from embedroute.cli.verify import Thresholds, verify
from embedroute.errors import ConfigError, EmbedrouteError, MissingExtra
from embedroute.gateway import Gateway
from embedroute.server import embeddings_app, models


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status, 1 for a failure and 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except EmbedrouteError as error:
        print(error.message, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="embedroute", description="An OpenAI-compatible embeddings gateway."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = _command(
        commands.add_parser, "serve", _serve, "serve a config over HTTP (needs the extra 'serve')"
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    serve.add_argument(
        "--port", default=8000, type=int, help="port to listen on (default: %(default)s)"
    )
    _with_config(serve)
    check = _command(
        commands.add_parser, "check", _check, "read a config and name every mistake in it"
    )
    check.add_argument("config", type=Path, metavar="FILE")
    _command(commands.add_parser, "backends", _backends, "list the installed backends")
    _with_config(
        _command(commands.add_parser, "models", _models, "list the models that a config serves")
    )
    probing = _command(
        commands.add_parser, "verify", _verify, "compare the vectors of all endpoints of a model"
    )
    probing.add_argument(
        "model", nargs="?", metavar="MODEL", help="left out: every model with several endpoints"
    )
    probing.add_argument(
        "--verified",
        default=0.9999,
        type=float,
        help="least cosine to be verified (default: %(default)s)",
    )
    probing.add_argument(
        "--near", default=0.999, type=float, help="least cosine to be near (default: %(default)s)"
    )
    _with_config(probing)
    return parser


Run = Callable[[argparse.Namespace], int]


def _command(
    add: Callable[..., argparse.ArgumentParser], name: str, run: Run, help: str
) -> argparse.ArgumentParser:
    parser = add(name, help=help, description=help)
    parser.set_defaults(run=run)
    return parser


def _with_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="left out: EMBEDROUTE_CONFIG, ./embedroute.toml, or the environment",
    )


def _gateway(config: Path | None) -> Gateway:
    if config or os.environ.get("EMBEDROUTE_CONFIG") or Path("embedroute.toml").exists():
        return Gateway.from_file(config)
    return Gateway.from_env()


def _serve(options: argparse.Namespace) -> int:
    gateway = _gateway(options.config)
    try:
        uvicorn = import_module("uvicorn")
    except ImportError:
        raise MissingExtra("serve", "uvicorn") from None
    _tell_engine()
    # All that is loaded by now stays for good, so the collector need not look through it again and again.
    gc.collect()
    gc.freeze()
    uvicorn.run(
        embeddings_app(gateway), host=options.host, port=options.port, timeout_graceful_shutdown=30
    )
    return 0


def _tell_engine() -> None:
    # uvicorn shows its own log and no other; which engine runs is for whoever started it.
    shown, log = logging.StreamHandler(sys.stderr), logging.getLogger("embedroute.http")
    shown.setFormatter(logging.Formatter("%(levelname)s:     %(name)s: %(message)s"))
    log.addHandler(shown)
    log.setLevel(logging.INFO)


def _check(options: argparse.Namespace) -> int:
    gateway = Gateway.from_file(options.config)
    providers, models = len(gateway.directory.providers), len(gateway.directory.routes)
    print(
        f"{options.config}: good; {providers} providers, {models} models, auth = {gateway.settings.auth}"
    )
    origins = [
        (slug, *plugins.find_origin(it.backend)) for slug, it in gateway.directory.providers.items()
    ]
    _print_table(("PROVIDER", "CODE", "PACKAGE"), origins)
    for it in plugins.unused():
        print(f'{it.whose} is not used: embedroute itself ships a provider "{it.name}"')
    return 0


def _backends(options: argparse.Namespace) -> int:
    del options
    rows = [(it.name, it.value, it.distribution) for it in plugins.listed()]
    _print_table(("NAME", "CODE", "PACKAGE"), rows)
    return 0


def _models(options: argparse.Namespace) -> int:
    cards = [
        models.describe_model(route) for route in _gateway(options.config).directory.routes.values()
    ]
    rows = [
        (
            it.id,
            str(it.dimensions or "?"),
            ",".join(it.providers),
            str(it.pricing.get("prompt", "?")),
        )
        for it in cards
    ]
    _print_table(("MODEL", "DIMENSIONS", "PROVIDERS", "USD/M"), rows)
    return 0


def _verify(options: argparse.Namespace) -> int:
    gateway = _gateway(options.config)
    thresholds = Thresholds(verified=options.verified, near=options.near)
    names = (
        [options.model]
        if options.model
        else [name for name, it in gateway.directory.routes.items() if len(it.candidates) > 1]
    )
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
        (it.model, it.left, it.right, it.shown_cosine, it.shown_difference, it.verdict, it.reason)
        for it in verdicts
    ]
    _print_table(
        ("MODEL", "ENDPOINT", "ENDPOINT", "MIN COSINE", "MAX DIFFERENCE", "VERDICT", "WHY"), rows
    )
    return int(any(it.verdict == "different" for it in verdicts))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # The head is for people; a pipe gets nothing but rows.
    shown = [head, *rows] if sys.stdout.isatty() else rows
    widths = [max((len(row[column]) for row in shown), default=0) for column in range(len(head))]
    for row in shown:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
