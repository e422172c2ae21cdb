"""``embedroute schema``: prints the JSON Schema of ``embedroute.toml``."""

import argparse
import json
from typing import Final

from embedroute.cli.parser import Command
from embedroute.config_schema import build_schema


def add_options(parser: argparse.ArgumentParser) -> None:
    """Explain how an editor uses the schema."""
    parser.epilog = (
        "Write it to a file beside the config, and name that file in the first line of the config: "
        "#:schema ./embedroute.schema.json"
    )


def run(options: argparse.Namespace) -> int:
    """Print the schema; it has the options of all installed backends."""
    del options
    print(json.dumps(build_schema(), indent=2, ensure_ascii=False))
    return 0


COMMAND: Final = Command(
    name="schema",
    help="print the JSON Schema of the config, for editors",
    run=run,
    add_options=add_options,
)
