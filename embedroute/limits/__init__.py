"""Limits what callers may use, and the calls to each endpoint: their number and time.

It may import the contracts and the foundation.
"""

from embedroute.limits.attempt_timeout import attempt_timeout
from embedroute.limits.byte_budget import (
    MOST_ACCOUNTS,
    Account,
    ByteBudget,
    admission_mistakes,
)
from embedroute.limits.call_slots import (
    INTERACTIVE,
    MOST_WAITING,
    CallSlots,
)
from embedroute.limits.concurrency import (
    BETWEEN_TIMEOUTS,
    FIRST,
    FIRST_DURATION,
    IGNORED,
    LEAST,
    MOST,
    PATIENT_ROUNDS,
    PER_INPUT,
    QUIET,
    QUIET_AFTER_HINT,
    REMEMBERED,
    STALLED,
    STALLED_AT_FIRST,
    ConcurrencyLimit,
)
from embedroute.limits.fair_queue import (
    SHARE,
    SMALL,
    FairQueue,
)
from embedroute.limits.rate_limits import (
    MOST_CALLERS,
    Admission,
    Rate,
    RateLimiter,
)

__all__ = [
    "BETWEEN_TIMEOUTS",
    "FIRST",
    "FIRST_DURATION",
    "IGNORED",
    "INTERACTIVE",
    "LEAST",
    "MOST",
    "MOST_ACCOUNTS",
    "MOST_CALLERS",
    "MOST_WAITING",
    "PATIENT_ROUNDS",
    "PER_INPUT",
    "QUIET",
    "QUIET_AFTER_HINT",
    "REMEMBERED",
    "SHARE",
    "SMALL",
    "STALLED",
    "STALLED_AT_FIRST",
    "Account",
    "Admission",
    "ByteBudget",
    "CallSlots",
    "ConcurrencyLimit",
    "FairQueue",
    "Rate",
    "RateLimiter",
    "admission_mistakes",
    "attempt_timeout",
]
