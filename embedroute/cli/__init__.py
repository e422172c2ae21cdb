"""Provides the command ``embedroute``, with one module per subcommand.

To add a subcommand, write a module with a ``COMMAND`` and append it to ``COMMANDS``. It uses
argparse and so needs no extra.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

from embedroute.cli import (
    backends,
    cache,
    check,
    explain,
    import_litellm,
    init,
    keys,
    models,
    new_backend,
    providers,
    schema,
    serve,
    usage,
    verify,
)
from embedroute.cli.live import CallResult, call_endpoints
from embedroute.cli.parser import Command, make_parser
from embedroute.errors import EmbedrouteError

COMMANDS: Final[Sequence[Command]] = (
    serve.COMMAND,
    check.COMMAND,
    backends.COMMAND,
    providers.COMMAND,
    models.COMMAND,
    cache.COMMAND,
    keys.COMMAND,
    usage.COMMAND,
    explain.COMMAND,
    verify.COMMAND,
    new_backend.COMMAND,
    init.COMMAND,
    schema.COMMAND,
    import_litellm.COMMAND,
)
"""Every subcommand, in the order of ``embedroute --help``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0 success, 1 failure, 2 usage error).

    Without ``arguments`` it is the command line of this process, which ``serve`` may replace by one
    with other settings of malloc.
    """
    options = make_parser(COMMANDS).parse_args(arguments)
    if arguments is None and options.command is serve.COMMAND:
        serve.return_freed_memory()
    try:
        status = options.command.run(options)
        sys.stdout.flush()
    except EmbedrouteError as error:
        print(error.message, file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader has closed the pipe, as `head` does. What is still buffered must not be
        # written at the end of the process, where Python would report the error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


__all__ = ["COMMANDS", "CallResult", "Command", "call_endpoints", "main"]
