"""``embedroute import-litellm``: converts the config of LiteLLM's proxy."""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Final, cast

from embedroute.cli.litellm_config import convert
from embedroute.cli.parser import Command
from embedroute.errors import ConfigError, MissingExtra


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``import-litellm``."""
    parser.add_argument("file", type=Path, metavar="CONFIG.YAML", help="LiteLLM's config")
    parser.add_argument(
        "--all",
        action="store_true",
        help="convert models without a mode and of any name too",
    )
    parser.epilog = (
        "Prints the config on stdout, and on stderr what it leaves out. Then run embedroute check."
    )


def run(options: argparse.Namespace) -> int:
    """Print the config that corresponds to a config.yaml."""
    converted = convert(_read(options.file), every_model=options.all)
    for note in converted.notes:
        print(f"note: {note}", file=sys.stderr)
    print(converted.text, end="")
    return 0


def _read(path: Path) -> dict[str, object]:
    try:
        yaml = import_module("yaml")
    except ImportError:
        raise MissingExtra("import", "PyYAML") from None
    try:
        document: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}."]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        # The text of the error quotes lines of the file, and these may hold keys.
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError([f"{path} is not valid YAML{place}."]) from None
    if not isinstance(document, dict) or "model_list" not in document:
        raise ConfigError([f"{path} is not a config of LiteLLM: it has no model_list."])
    return cast("dict[str, object]", document)


COMMAND: Final = Command(
    name="import-litellm",
    help="convert the config of LiteLLM's proxy (needs the extra 'import')",
    run=run,
    add_options=add_options,
)
