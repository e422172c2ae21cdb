"""Keeps what several processes share, in SQLite or in Redis; other packages can add stores.

A store is synchronous and knows nothing of event loops. One thread of a process calls it
(``StoreWorker``), so a cancelled request never leaves a connection in an unknown state.
It may import the contracts and the foundation.
"""

from embedroute.stores.api_keys import (
    StoredKey,
    StoredKeys,
    decode_keys,
    digest_key,
    make_key,
)
from embedroute.stores.base import (
    BudgetStore,
    Charge,
    KeyStore,
    LeaseStore,
    ModelEntries,
    Refusal,
    Store,
    StoreError,
    StoreKey,
)
from embedroute.stores.leases import Demand, Grant, Lease, Pool, lease
from embedroute.stores.memory import MemoryBudgets
from embedroute.stores.registry import BUILT_IN, GROUP, make_store, place_of
from embedroute.stores.usage import (
    MOST_GROUPS,
    OTHERS,
    MemoryUsage,
    UsageGroup,
    UsageRow,
    UsageStore,
    UsageSums,
    add_sums,
    day_of,
    merge_sums,
    parse_day,
    start_of,
    sum_rows,
)
from embedroute.stores.worker import (
    LONGEST_PAUSE,
    Job,
    StoreWorker,
)

__all__ = [
    "BUILT_IN",
    "GROUP",
    "LONGEST_PAUSE",
    "MOST_GROUPS",
    "OTHERS",
    "BudgetStore",
    "Charge",
    "Demand",
    "Grant",
    "Job",
    "KeyStore",
    "Lease",
    "LeaseStore",
    "MemoryBudgets",
    "MemoryUsage",
    "ModelEntries",
    "Pool",
    "Refusal",
    "Store",
    "StoreError",
    "StoreKey",
    "StoreWorker",
    "StoredKey",
    "StoredKeys",
    "UsageGroup",
    "UsageRow",
    "UsageStore",
    "UsageSums",
    "add_sums",
    "day_of",
    "decode_keys",
    "digest_key",
    "lease",
    "make_key",
    "make_store",
    "merge_sums",
    "parse_day",
    "place_of",
    "start_of",
    "sum_rows",
]
