"""What the subcommands share: the argument parser, ``--config``, and the gateway of a config."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from embedroute.bootstrap import DEFAULT_FILE, config_from_environment, config_from_file
from embedroute.config import Config
from embedroute.errors import ConfigError
from embedroute.gateway import Gateway
from embedroute.version import __version__

DEFAULT_CONFIG: Final = Path(DEFAULT_FILE)


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    """Add no options."""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A subcommand of ``embedroute``.

    ``help`` is one line. ``add_options`` adds the command's own options; every command also has
    ``--config``. ``run`` returns the exit status (0 success, 1 failure); an ``EmbedrouteError``
    that it raises is printed and means 1. Import what takes long inside ``run``.
    """

    name: str
    help: str
    run: Callable[[argparse.Namespace], int]
    add_options: Callable[[argparse.ArgumentParser], None] = _add_nothing


def make_parser(commands: Sequence[Command]) -> argparse.ArgumentParser:
    """Return the parser of ``embedroute``. It sets ``command`` and ``config``."""
    parser = argparse.ArgumentParser(
        prog="embedroute", description="An OpenAI-compatible embeddings gateway."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_config_option(parser, default=None)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in commands:
        subparser = subparsers.add_parser(
            command.name, help=command.help, description=f"{command.help}."
        )
        command.add_options(subparser)
        # Without a default of its own, it leaves the value of an option before the command.
        _add_config_option(subparser, default=argparse.SUPPRESS)
        subparser.set_defaults(command=command)
    return parser


def _add_config_option(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=default,
        help="default: $EMBEDROUTE_CONFIG, else ./embedroute.toml, else environment variables",
    )


def find_config(options: argparse.Namespace) -> Path | None:
    """Return the config file of a command, or None if there is none.

    It is ``--config``, else what ``EMBEDROUTE_CONFIG`` names, else ``./embedroute.toml`` if that
    exists.
    """
    named: Path | str | None = options.config or os.environ.get("EMBEDROUTE_CONFIG")
    if named:
        return Path(named)
    return DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None


def load_config(options: argparse.Namespace) -> Config:
    """Read the config file, or the environment variables if there is none.

    Raises:
        ConfigError: the config has mistakes, one line each, or there is none.
    """
    file = find_config(options)
    if file is not None:
        return config_from_file(file, os.environ)
    if not os.environ.get("EMBEDROUTE_AUTH"):
        raise ConfigError(
            [
                (
                    f"No config found: {DEFAULT_CONFIG.absolute()} does not exist, and neither "
                    "--config FILE nor EMBEDROUTE_CONFIG names another file. "
                    "Write one with: embedroute init. To configure the gateway by environment "
                    "variables, set EMBEDROUTE_AUTH to keys (with EMBEDROUTE_KEY) or open."
                )
            ]
        )
    return config_from_environment(os.environ)


def make_gateway(options: argparse.Namespace) -> Gateway:
    """Make the gateway of the config file, or that of the environment variables without one.

    Raises:
        ConfigError: the config has mistakes, one line each, or there is none.
    """
    return Gateway(load_config(options))
