"""Sends HTTP requests to upstreams. No other package imports an HTTP client.

It may import ``backend``, ``errors``, ``text`` and ``runtime``.
"""

from embedroute.transport.base import (
    DEFAULT_CONFIG,
    DEFAULT_LIMITS,
    LARGEST_HEAD,
    LARGEST_REPLY,
    ExchangeLimits,
    Transport,
    TransportConfig,
)
from embedroute.transport.factory import create_transport, transport_mistakes

__all__ = [
    "DEFAULT_CONFIG",
    "DEFAULT_LIMITS",
    "LARGEST_HEAD",
    "LARGEST_REPLY",
    "ExchangeLimits",
    "Transport",
    "TransportConfig",
    "create_transport",
    "transport_mistakes",
]
