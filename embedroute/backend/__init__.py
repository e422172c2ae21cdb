"""Provides the public API for authors of backends.

It holds the base classes, batches, vectors, options of requests, upstream requests and responses,
credentials and secrets.
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
from embedroute.backend.options import (
    KEEPS_VECTORS,
    LARGEST_SIZE,
    LONGEST_NAME,
    TRUNCATES,
    Dtype,
    Name,
    OptionField,
    Options,
    Parameter,
    Size,
    Truncate,
    list_fields,
    sets,
)
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
    "KEEPS_VECTORS",
    "LARGEST_SIZE",
    "LONGEST_NAME",
    "PIECE",
    "TRANSPORT_HEADERS",
    "TRUNCATES",
    "Accepts",
    "Backend",
    "BackendBase",
    "Batch",
    "Credentials",
    "Dtype",
    "HTTPBackend",
    "Headers",
    "LocalBackend",
    "Name",
    "OptionField",
    "Options",
    "Parameter",
    "Secret",
    "SecretBytes",
    "Send",
    "Size",
    "Source",
    "Truncate",
    "UpstreamRequest",
    "UpstreamResponse",
    "Vectors",
    "behind",
    "classify_response",
    "forget_frames",
    "list_fields",
    "parse_token_count",
    "parse_token_counts",
    "repr_as_in_rich",
    "sets",
    "to_wire_value",
    "write_in_pieces",
]
