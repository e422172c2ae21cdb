"""Provides tasks, fair shares of the event loop and per-loop resources, for asyncio and trio.

It may import nothing else of the package.
"""

from embedroute.runtime.fairness import (
    LARGE,
    ROWS,
    Turn,
    finished,
    groups,
    in_thread,
    in_turns,
    keep_memory,
    on_loop,
)
from embedroute.runtime.per_loop import PerLoop
from embedroute.runtime.tasks import ClientGone, Watch, gather, innermost, is_stray, unless

__all__ = [
    "LARGE",
    "ROWS",
    "ClientGone",
    "PerLoop",
    "Turn",
    "Watch",
    "finished",
    "gather",
    "groups",
    "in_thread",
    "in_turns",
    "innermost",
    "is_stray",
    "keep_memory",
    "on_loop",
    "unless",
]
