"""Decodes requests and encodes responses, in every dialect.

It may import the foundation, ``backend`` and ``config``.
"""

from embedroute.protocol import bodies
from embedroute.protocol.decode import (
    MEDIUM,
    NO_DEBUG,
    NO_OPTIONS,
    SMALL,
    EmbeddingRequest,
    InputValue,
    decode_at_once,
    decode_in_steps,
    decode_request,
    fold_parts_in_steps,
    is_small,
    make_request,
    with_input_type,
)
from embedroute.protocol.decode_errors import iter_values
from embedroute.protocol.dialects import DIALECTS, OpenAIDialect
from embedroute.protocol.input_kinds import Limits
from embedroute.protocol.large_body import MOST_OTHER, SLICE, most_marks
from embedroute.protocol.media import LARGEST_IMAGE, PIECE, check_media
from embedroute.protocol.requests import (
    GOOGLE_TASKS,
    LARGEST_SIZE,
    LONGEST_NAME,
    NEUTRAL,
    NO_PREFERENCES,
    SPELLINGS,
    Content,
    Debug,
    Dtype,
    EmbeddingOptions,
    GoogleOptions,
    GoogleTask,
    MaxPrice,
    MistralOptions,
    Percentiles,
    Preferences,
    Sort,
    cutoffs,
)
from embedroute.protocol.responses import ENCODER, Embeddings, LargeBody

__all__ = [
    "DIALECTS",
    "ENCODER",
    "GOOGLE_TASKS",
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
    "Debug",
    "Dtype",
    "EmbeddingOptions",
    "EmbeddingRequest",
    "Embeddings",
    "GoogleOptions",
    "GoogleTask",
    "InputValue",
    "LargeBody",
    "Limits",
    "MaxPrice",
    "MistralOptions",
    "OpenAIDialect",
    "Percentiles",
    "Preferences",
    "Sort",
    "bodies",
    "check_media",
    "cutoffs",
    "decode_at_once",
    "decode_in_steps",
    "decode_request",
    "fold_parts_in_steps",
    "is_small",
    "iter_values",
    "make_request",
    "most_marks",
    "with_input_type",
]
