"""Sends HTTP requests to upstreams; nothing else knows HTTP clients.

It may import ``backend``, ``errors``, ``text`` and ``runtime``.
"""

from embedroute.transport.base import (
    DEFAULT_LIMITS,
    DIRECT,
    LARGEST_HEAD,
    LARGEST_REPLY,
    Connect,
    Engine,
    ExchangeLimits,
)
from embedroute.transport.factory import engine_mistakes, open_engine

__all__ = [
    "DEFAULT_LIMITS",
    "DIRECT",
    "LARGEST_HEAD",
    "LARGEST_REPLY",
    "Connect",
    "Engine",
    "ExchangeLimits",
    "engine_mistakes",
    "open_engine",
]
