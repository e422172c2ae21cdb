"""``embedroute check``: validates a config."""

import argparse
from pathlib import Path
from typing import Final

from embedroute import plugins
from embedroute.cli.parser import Command, find_config, make_gateway
from embedroute.cli.table import print_table
from embedroute.errors import ConfigError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``check``."""
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="the config, as with --config"
    )


def run(options: argparse.Namespace) -> int:
    """Print a summary of a valid config; raise a ``ConfigError`` with every mistake otherwise."""
    if options.file is not None:
        if options.config is not None:
            raise ConfigError(["Name the config once: either FILE or --config FILE."])
        options.config = options.file
    gateway = make_gateway(options)
    providers = gateway.directory.providers
    print(
        f"{find_config(options) or 'environment variables'}: OK (providers: {len(providers)}, "
        f"models: {len(gateway.directory.routes)}, auth: {gateway.settings.auth})"
    )
    origins = [(slug, *plugins.find_origin(row.backend)) for slug, row in providers.items()]
    print_table(("PROVIDER", "CODE", "PACKAGE"), origins)
    for entry in plugins.list_unused():
        print(f'{entry.whose} is not used: embedroute ships a provider named "{entry.name}"')
    return 0


COMMAND: Final = Command(
    name="check",
    help="validate a config file and report every mistake",
    run=run,
    add_options=add_options,
)
