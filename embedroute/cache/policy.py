"""Defines how a request uses the cache: whether it reads it, and whether it stores results in it.

What makes two requests share an entry is decided in ``routing/cache_keys.py``.
"""

from typing import Final

import msgspec


class CachePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a request reads the cache and stores its results in it.

    ``cache-control: no-cache`` disables reads, and ``no-store`` disables storing (RFC 9111 §5.2.1).
    With ``only-if-cached``, ``compute`` is False: no vector is computed.
    """

    read: bool = True
    store: bool = True
    compute: bool = True


FULL_USE: Final = CachePolicy()
NO_CACHE: Final = CachePolicy(read=False, store=False)
