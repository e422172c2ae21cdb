"""Decodes requests and encodes responses, in every dialect.

It may import the foundation, ``backend`` and ``config``.
"""

from embedroute.backend import LARGEST_SIZE, LONGEST_NAME, Dtype, Name, Size
from embedroute.protocol import response_bodies
from embedroute.protocol.decode import (
    MEDIUM,
    NO_DEBUG,
    SMALL,
    EmbeddingRequest,
    InputValue,
    decode_at_once,
    decode_in_steps,
    decode_request,
    decode_struct,
    fold_parts_in_steps,
    is_small,
    make_request,
    with_input_type,
)
from embedroute.protocol.decode_errors import iter_values
from embedroute.protocol.dialects import DIALECTS, OpenAIDialect
from embedroute.protocol.input_kinds import Limits
from embedroute.protocol.large_request import MOST_OTHER, SLICE, most_marks, split_members
from embedroute.protocol.media import LARGEST_IMAGE, PIECE, check_media
from embedroute.protocol.options import (
    NO_OPTIONS,
    Namespaces,
    RequestOptions,
    convert_options,
    make_options_struct,
)
from embedroute.protocol.requests import (
    NEUTRAL,
    NO_PREFERENCES,
    SPELLINGS,
    Content,
    CreateEmbeddingRequest,
    Debug,
    MaxPrice,
    Percentiles,
    Preferences,
    Sort,
    cutoffs,
)
from embedroute.protocol.responses import ENCODER, Embeddings, LargeBody, write_rows

__all__ = [
    "DIALECTS",
    "ENCODER",
    "LARGEST_IMAGE",
    "LARGEST_SIZE",
    "LONGEST_NAME",
    "MEDIUM",
    "MOST_OTHER",
    "NEUTRAL",
    "NO_DEBUG",
    "NO_OPTIONS",
    "NO_PREFERENCES",
    "PIECE",
    "SLICE",
    "SMALL",
    "SPELLINGS",
    "Content",
    "CreateEmbeddingRequest",
    "Debug",
    "Dtype",
    "EmbeddingRequest",
    "Embeddings",
    "InputValue",
    "LargeBody",
    "Limits",
    "MaxPrice",
    "Name",
    "Namespaces",
    "OpenAIDialect",
    "Percentiles",
    "Preferences",
    "RequestOptions",
    "Size",
    "Sort",
    "check_media",
    "convert_options",
    "cutoffs",
    "decode_at_once",
    "decode_in_steps",
    "decode_request",
    "decode_struct",
    "fold_parts_in_steps",
    "is_small",
    "iter_values",
    "make_options_struct",
    "make_request",
    "most_marks",
    "response_bodies",
    "split_members",
    "with_input_type",
    "write_rows",
]
