"""``embedroute backends``: lists the installed backends."""

import argparse
from typing import Final

from embedroute import plugins
from embedroute.cli.parser import Command
from embedroute.cli.provider_table import CAPABILITIES, HEADER, TESTED, describe_accepts
from embedroute.cli.table import print_table
from embedroute.errors import EmbedrouteError

_FIRST: Final = HEADER.index("WIDTH")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Explain the columns."""
    parser.epilog = (
        "NAME: what 'backend' of [providers.SLUG] names. CODE: the class. PACKAGE: the package "
        f"that installs it. {CAPABILITIES} '?' is a backend that cannot be imported; "
        "embedroute check says why."
    )


def run(options: argparse.Namespace) -> int:
    """Print each installed backend and what it accepts. The list does not depend on the config."""
    del options
    rows = [
        (entry.name, entry.value, entry.distribution, *_describe(entry.name))
        for entry in plugins.list_backends()
    ]
    print_table(("NAME", "CODE", "PACKAGE", *HEADER[_FIRST:]), rows)
    return 0


def _describe(name: str) -> tuple[str, ...]:
    try:
        accepts = plugins.load(name).accepts
    except EmbedrouteError:  # a broken plugin; `check` says what is wrong with it
        return ("?",) * (len(HEADER) - _FIRST)
    tested = [kind for kind, names in TESTED.items() if name in names]
    return (*describe_accepts(accepts), ",".join(tested) or "-")


COMMAND: Final = Command(
    name="backends",
    help="list the installed backends and what they accept",
    run=run,
    add_options=add_options,
)
