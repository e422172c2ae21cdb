"""Classifies error responses of upstream APIs.

It selects the error class, finds the input or field that is refused, reads how long to wait, and
writes neutral messages for requests that share a failed call. It may import ``errors``, ``text``
and ``inputs``.
"""

from embedroute.upstream_errors.classify import (
    LARGE_BODY,
    classify_response,
    refine_with_inputs,
)
from embedroute.upstream_errors.lazy_pattern import compile_patterns
from embedroute.upstream_errors.neutral import BLAMES_INPUTS, MESSAGES, neutral_message
from embedroute.upstream_errors.references import translate_index
from embedroute.upstream_errors.retry_after import parse_retry_after

__all__ = [
    "BLAMES_INPUTS",
    "LARGE_BODY",
    "MESSAGES",
    "classify_response",
    "compile_patterns",
    "neutral_message",
    "parse_retry_after",
    "refine_with_inputs",
    "translate_index",
]
