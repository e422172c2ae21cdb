"""Limits what callers may use, and the calls to each endpoint: their number and time.

It may import the stores, the contracts and the foundation.
"""

from embedroute.limits.attempt_timeout import attempt_timeout
from embedroute.limits.byte_budget import (
    MOST_ACCOUNTS,
    Account,
    ByteBudget,
    admission_mistakes,
    request_limits,
    response_limits,
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
from embedroute.limits.leased_units import LEASE, LeasedRate, LeasedUnits
from embedroute.limits.rate_limits import (
    MOST_CALLERS,
    Admission,
    Limiter,
    RateLimiter,
)
from embedroute.limits.rates import Rate
from embedroute.limits.shared_limits import SharedRateLimiter

__all__ = [
    "BETWEEN_TIMEOUTS",
    "FIRST",
    "FIRST_DURATION",
    "IGNORED",
    "INTERACTIVE",
    "LEASE",
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
    "LeasedRate",
    "LeasedUnits",
    "Limiter",
    "Rate",
    "RateLimiter",
    "SharedRateLimiter",
    "admission_mistakes",
    "attempt_timeout",
    "request_limits",
    "response_limits",
]
