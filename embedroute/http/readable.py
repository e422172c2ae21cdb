"""A look at a socket before its event loop has come to it."""

import select
import sys
from collections.abc import Callable


def readable(line: int) -> Callable[[], bool]:
    """Make a look at whether a socket has bytes, or its end, to be read."""
    if sys.platform == "win32":
        return lambda: bool(select.select([line], [], [], 0)[0])
    poller = select.poll()
    poller.register(line, select.POLLIN)
    return lambda: bool(poller.poll(0))
