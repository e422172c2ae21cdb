"""Provides tasks, time slices for CPU work and per-loop resources, for asyncio and trio.

It may not import other packages of embedroute.
"""

from embedroute.runtime.cancellation import innermost, is_foreign_cancellation
from embedroute.runtime.fairness import (
    LARGE,
    ROWS,
    TimeSlice,
    chunked,
    finished,
    groups,
    run_cooperatively,
    run_in_turn,
    run_in_worker,
)
from embedroute.runtime.per_loop import PerLoop, is_loop_running
from embedroute.runtime.tasks import (
    ClientDisconnected,
    ClientTooSlow,
    ConditionMet,
    Watch,
    cancel_when,
    gather,
)

__all__ = [
    "LARGE",
    "ROWS",
    "ClientDisconnected",
    "ClientTooSlow",
    "ConditionMet",
    "PerLoop",
    "TimeSlice",
    "Watch",
    "cancel_when",
    "chunked",
    "finished",
    "gather",
    "groups",
    "innermost",
    "is_foreign_cancellation",
    "is_loop_running",
    "run_cooperatively",
    "run_in_turn",
    "run_in_worker",
]
