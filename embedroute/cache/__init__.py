"""Caches the vectors of earlier requests, in memory and in a store that processes share.

What makes two requests share an entry is decided in ``routing/cache_keys.py``.
It may import ``routing``, ``stores``, the contracts and the foundation.
"""

from embedroute.cache.entries import decode, encode
from embedroute.cache.frequency import FrequencySketch
from embedroute.cache.lookup import NOTHING, Found, look_up, look_up_in_steps
from embedroute.cache.memory import MOST_OWNERS, OVERHEAD, OWNER, MemoryCache
from embedroute.cache.policy import FULL_USE, NO_CACHE, CachePolicy
from embedroute.cache.tiers import TieredCache

__all__ = [
    "FULL_USE",
    "MOST_OWNERS",
    "NOTHING",
    "NO_CACHE",
    "OVERHEAD",
    "OWNER",
    "CachePolicy",
    "Found",
    "FrequencySketch",
    "MemoryCache",
    "TieredCache",
    "decode",
    "encode",
    "look_up",
    "look_up_in_steps",
]
