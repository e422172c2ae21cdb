"""``embedroute check``: validates a config, and calls its endpoints on request."""

import argparse
import math
import sys
from pathlib import Path
from typing import Final

import anyio
from msgspec.structs import replace

from embedroute import plugins
from embedroute.cli.live import call_endpoints
from embedroute.cli.parser import Command, find_config, load_config
from embedroute.cli.table import print_table
from embedroute.config_warnings import find_warnings
from embedroute.errors import ConfigError
from embedroute.gateway import Gateway

LIVE_TIMEOUT: Final = 20.0
"""Seconds for one call of ``--live``, including the loading of a local model."""


def parse_seconds(text: str) -> float:
    """Return a number of seconds above 0; a ``ValueError`` otherwise."""
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise ValueError(text)
    return seconds


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``check``."""
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="the config, as with --config"
    )
    parser.add_argument("--strict", action="store_true", help="fail if there are warnings")
    parser.add_argument(
        "--live",
        action="store_true",
        help="call every endpoint once with a short text, and fail if one does not answer",
    )
    parser.add_argument(
        "--timeout",
        type=parse_seconds,
        default=LIVE_TIMEOUT,
        metavar="SECONDS",
        help="with --live: the longest time of one call (default: %(default)g)",
    )
    parser.epilog = (
        "With --live it prints a row per endpoint: provider, the model's name there, milliseconds, "
        "width and length (norm) of the vector, and the error. "
        "Prints mistakes and warnings on stderr. Exit status: 0 if the config is valid, "
        "1 if it has mistakes, with --strict also if it has warnings, "
        "and with --live also if an endpoint fails."
    )


def run(options: argparse.Namespace) -> int:
    """Print a summary of a valid config; raise a ``ConfigError`` with every mistake otherwise."""
    if options.file is not None:
        if options.config is not None:
            raise ConfigError(["Name the config once: either FILE or --config FILE."])
        options.config = options.file
    config = load_config(options)
    if options.live:
        deadline = min(config.gateway.deadline, options.timeout)
        config = replace(config, gateway=replace(config.gateway, deadline=deadline))
    gateway = Gateway(config)
    warnings = find_warnings(config, gateway.models)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if warnings and options.strict:
        return 1
    if gateway.store is not None:
        gateway.store.check()
    _print_summary(str(find_config(options) or "environment variables"), gateway)
    return anyio.run(_check_live, gateway) if options.live else 0


def _print_summary(name: str, gateway: Gateway) -> None:
    providers = gateway.models.providers
    print(
        f"{name}: OK (providers: {len(providers)}, "
        f"models: {len(gateway.models.routes)}, auth: {gateway.settings.auth})"
    )
    origins = [(slug, *plugins.find_origin(row.backend)) for slug, row in providers.items()]
    print_table(("PROVIDER", "CODE", "PACKAGE"), origins)
    if gateway.store is not None:
        print(f"store: {gateway.store.place} can be used")
    for entry in plugins.list_unused():
        print(f'{entry.label} is not used: embedroute ships a provider named "{entry.name}"')


async def _check_live(gateway: Gateway) -> int:
    async with gateway.lifespan():
        results = await call_endpoints(gateway)
    for slug, candidate in gateway.models.providers.items():
        if candidate.caller_keys:
            headers = ", ".join(candidate.caller_keys.values())
            print(f"{slug} was not called: callers send their own keys in {headers}")
        elif slug not in {result.provider for result in results}:
            print(f"{slug} was not called: no model has it as an endpoint")
    if not results:
        raise ConfigError(["No endpoint to call: the config declares no model."])
    print_table(
        ("PROVIDER", "MODEL", "MS", "WIDTH", "NORM", "ERROR"), [result.row() for result in results]
    )
    return int(any(result.error for result in results))


COMMAND: Final = Command(
    name="check",
    help="validate a config file and report every mistake",
    run=run,
    add_options=add_options,
)
