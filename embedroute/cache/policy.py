"""Vectors that were computed before: per input, bounded in bytes, never in the way of a request."""

from typing import Final

import msgspec


class CachePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How one request uses the cache: ``no-cache`` reads past it, ``no-store`` leaves nothing behind (RFC 9111 §5.2.1)."""

    read: bool = True
    store: bool = True


FULL_USE: Final = CachePolicy()
NO_CACHE: Final = CachePolicy(read=False, store=False)
