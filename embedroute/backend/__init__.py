"""Provides the public API for authors of backends.

It holds the base classes, batches, vectors, upstream requests and responses, credentials and
secrets.
It may import the foundation: ``errors``, ``inputs``, ``runtime``, ``upstream_errors`` and
``vectors``.
"""

from embedroute.backend.base import (
    Accepts,
    Backend,
    BackendBase,
    Batch,
    HTTPBackend,
    LocalBackend,
    Vectors,
    parse_token_count,
    parse_token_counts,
)
from embedroute.backend.credentials import Credentials, Send
from embedroute.backend.secret import (
    Secret,
    SecretBytes,
    behind,
    forget_frames,
    repr_as_in_rich,
    to_wire_value,
)
from embedroute.backend.upstream import (
    PIECE,
    TRANSPORT_HEADERS,
    Headers,
    Source,
    UpstreamRequest,
    UpstreamResponse,
    write_in_pieces,
)
from embedroute.upstream_errors import classify_response

__all__ = [
    "PIECE",
    "TRANSPORT_HEADERS",
    "Accepts",
    "Backend",
    "BackendBase",
    "Batch",
    "Credentials",
    "HTTPBackend",
    "Headers",
    "LocalBackend",
    "Secret",
    "SecretBytes",
    "Send",
    "Source",
    "UpstreamRequest",
    "UpstreamResponse",
    "Vectors",
    "behind",
    "classify_response",
    "forget_frames",
    "parse_token_count",
    "parse_token_counts",
    "repr_as_in_rich",
    "to_wire_value",
    "write_in_pieces",
]
