"""``embedroute init``: writes a starter config, and the JSON Schema that editors use for it."""

import argparse
import json
import secrets
from pathlib import Path
from typing import Final

from embedroute.bootstrap import DEFAULT_FILE
from embedroute.cli.parser import Command
from embedroute.config import starter_config
from embedroute.config_schema import SCHEMA_FILE, build_schema
from embedroute.errors import ConfigError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``init``."""
    parser.add_argument(
        "--path",
        type=Path,
        default=Path(DEFAULT_FILE),
        metavar="FILE",
        help="where to write the config (default: ./%(default)s)",
    )
    parser.epilog = (
        f"Writes {SCHEMA_FILE} beside it, unless that exists. Overwrites no file. "
        "The API key in the config is random."
    )


def run(options: argparse.Namespace) -> int:
    """Write the files, and print what to do next."""
    config = Path(options.path)
    schema = config.with_name(SCHEMA_FILE)
    _write(config, starter_config(secrets.token_urlsafe(24)))
    if not schema.exists():
        _write(schema, json.dumps(build_schema(), indent=2, ensure_ascii=False) + "\n")
    print(f"Wrote {config}. Edit it, then run:")
    print(f"  embedroute check --config {config}")
    print(f"  embedroute serve --config {config}")
    return 0


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError([f"{path} exists and is not overwritten. Name another --path."]) from None
    except OSError as error:
        raise ConfigError([f"{path} cannot be written: {error.strerror}."]) from None


COMMAND: Final = Command(
    name="init",
    help="write a commented starter config",
    run=run,
    add_options=add_options,
)
