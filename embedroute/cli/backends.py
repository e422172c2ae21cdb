"""``embedroute backends``: lists the installed backends."""

import argparse
from typing import Final

from embedroute import plugins
from embedroute.cli.parser import Command
from embedroute.cli.table import print_table


def run(options: argparse.Namespace) -> int:
    """Print each installed backend. The list does not depend on the config."""
    del options
    rows = [(entry.name, entry.value, entry.distribution) for entry in plugins.list_backends()]
    print_table(("NAME", "CODE", "PACKAGE"), rows)
    return 0


COMMAND: Final = Command(name="backends", help="list the installed backends", run=run)
