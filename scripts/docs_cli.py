"""Prints docs/cli.md, the reference of the command line, from its argument parsers.

Usage: scripts/docs_cli.py > docs/cli.md; ``scripts/docs`` does it.
"""

import io
import os
from contextlib import redirect_stdout, suppress

from embedroute.cli import COMMANDS
from embedroute.cli.parser import make_parser

HEAD = """\
# Command line

`scripts/docs` writes this page from the command's own help.
`python -m embedroute` is the same command as `embedroute`.

Every command uses the config of `--config FILE`, else of the variable `EMBEDROUTE_CONFIG`, else
`./embedroute.toml`. Some work without a file, with the providers whose API key variables are set.
The exit status is 0 for success, 1 for a failure and 2 for wrong usage, unless the help says
otherwise.
"""


def main() -> None:
    """Print the page."""
    os.environ["COLUMNS"] = "100"  # of the help
    parser = make_parser(COMMANDS)
    print(HEAD)
    print(f"```text\n{parser.format_help()}```")
    for command in COMMANDS:
        print(f"\n## `embedroute {command.name}`\n")
        print(f"```text\n{help_of(command.name)}```")


def help_of(name: str) -> str:
    """Return the help of a subcommand."""
    output = io.StringIO()
    with redirect_stdout(output), suppress(SystemExit):
        make_parser(COMMANDS).parse_args([name, "--help"])
    return output.getvalue()


if __name__ == "__main__":
    main()
