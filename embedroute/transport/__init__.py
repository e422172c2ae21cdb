"""Sends HTTP requests to upstreams. No other package imports an HTTP client.

It may import ``backend``, ``errors``, ``text`` and ``runtime``.
"""

from embedroute.transport.base import (
    DEFAULT_CONFIG,
    DEFAULT_LIMITS,
    LARGEST_HEAD,
    LARGEST_REPLY,
    SHORT_LOOKUP,
    ExchangeLimits,
    Transport,
    TransportConfig,
)
from embedroute.transport.factory import create_transport, transport_mistakes
from embedroute.transport.resolver import Address, Resolver
from embedroute.transport.trace_context import TraceContextTransport

__all__ = [
    "DEFAULT_CONFIG",
    "DEFAULT_LIMITS",
    "LARGEST_HEAD",
    "LARGEST_REPLY",
    "SHORT_LOOKUP",
    "Address",
    "ExchangeLimits",
    "Resolver",
    "TraceContextTransport",
    "Transport",
    "TransportConfig",
    "create_transport",
    "transport_mistakes",
]
