"""Limits the bytes in flight of each caller, and the calls in flight to each endpoint.

It may import the contracts and the foundation.
"""

from embedroute.limits.byte_budget import MOST_ACCOUNTS, Account, ByteBudget, admission_mistakes
from embedroute.limits.call_slots import CallSlots
from embedroute.limits.concurrency import (
    FIRST,
    FIRST_DURATION,
    LEAST,
    PER_INPUT,
    REMEMBERED,
    ConcurrencyLimit,
)
from embedroute.limits.fair_queue import SHARE, SMALL, FairQueue

__all__ = [
    "FIRST",
    "FIRST_DURATION",
    "LEAST",
    "MOST_ACCOUNTS",
    "PER_INPUT",
    "REMEMBERED",
    "SHARE",
    "SMALL",
    "Account",
    "ByteBudget",
    "CallSlots",
    "ConcurrencyLimit",
    "FairQueue",
    "admission_mistakes",
]
