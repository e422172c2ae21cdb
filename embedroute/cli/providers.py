"""``embedroute providers``: lists the providers that a config can name."""

import argparse
import os
from collections.abc import Mapping
from typing import Final

from embedroute.cli.parser import Command
from embedroute.cli.provider_table import CAPABILITIES, HEADER, ProviderRow, list_providers
from embedroute.cli.table import print_table
from embedroute.config import known_providers


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``providers``."""
    parser.add_argument(
        "--missing",
        action="store_true",
        help="list the environment variables that are not set, and what each would enable",
    )
    parser.epilog = (
        "PROVIDER: the slug of [providers.SLUG]. BACKEND: the backend that it uses. KEY: the "
        "environment variables that enable it without a config. MODELS: how many models of the "
        f"catalogue it serves. {CAPABILITIES}"
    )


def run(options: argparse.Namespace) -> int:
    """Print each provider and what its backend accepts, or what is missing to enable it."""
    rows = list_providers()
    if options.missing:
        missing = [line for row in rows if (line := describe_missing(row, os.environ))]
        print_table(("VARIABLES", "PROVIDER", "VENDOR", "MODELS"), missing)
    else:
        print_table(HEADER, [row.cells() for row in rows])
    return 0


def describe_missing(row: ProviderRow, environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the variables that would enable a provider, and what that adds.

    None if the provider is enabled already, or if no variable can enable it.
    """
    known = known_providers()[row.slug]
    unset = [
        preferred
        for preferred, option in zip(row.variables, known.required, strict=False)
        if not any(environ.get(name.partition("/")[0]) for name in known.env[option])
    ]
    return (" ".join(unset), row.slug, row.vendor, str(row.models or "-")) if unset else None


COMMAND: Final = Command(
    name="providers",
    help="list the providers that a config can name",
    run=run,
    add_options=add_options,
)
