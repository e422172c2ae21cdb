"""Caches the vectors of earlier requests, with limits on bytes and age.

It may import ``routing``, the contracts and the foundation.
"""

from embedroute.cache.lookup import NOTHING, Found, look_up, look_up_in_steps
from embedroute.cache.memory import MOST_OWNERS, OVERHEAD, OWNER, MemoryCache
from embedroute.cache.policy import FULL_USE, NO_CACHE, CachePolicy

__all__ = [
    "FULL_USE",
    "MOST_OWNERS",
    "NOTHING",
    "NO_CACHE",
    "OVERHEAD",
    "OWNER",
    "CachePolicy",
    "Found",
    "MemoryCache",
    "look_up",
    "look_up_in_steps",
]
