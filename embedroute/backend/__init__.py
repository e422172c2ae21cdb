"""Holds all that the author of a backend reads: the base classes, batches, vectors, requests, responses and secrets.

It may import the foundation: ``errors``, ``inputs``, ``vectors`` and ``upstream_errors``.
"""

from embedroute.backend.base import (
    Accepts,
    Backend,
    BackendBase,
    Batch,
    HTTPBackend,
    LocalBackend,
    Vectors,
    count_of,
    counts_of,
)
from embedroute.backend.secret import (
    Secret,
    SecretBytes,
    behind,
    forget_frames,
    repr_as_in_rich,
    revealed,
)
from embedroute.backend.upstream import (
    PIECE,
    Headers,
    Source,
    UpstreamReply,
    UpstreamRequest,
    write_in_pieces,
)

__all__ = [
    "PIECE",
    "Accepts",
    "Backend",
    "BackendBase",
    "Batch",
    "HTTPBackend",
    "Headers",
    "LocalBackend",
    "Secret",
    "SecretBytes",
    "Source",
    "UpstreamReply",
    "UpstreamRequest",
    "Vectors",
    "behind",
    "count_of",
    "counts_of",
    "forget_frames",
    "repr_as_in_rich",
    "revealed",
    "write_in_pieces",
]
