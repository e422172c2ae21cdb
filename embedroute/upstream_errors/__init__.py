"""Decides what an upstream's error response means: which error it is, how long to wait, and what others may read of it.

It may import ``errors``, ``text`` and ``inputs``.
"""

from embedroute.upstream_errors.classify import classify_response, refine_with_inputs
from embedroute.upstream_errors.neutral import BLAMES_INPUTS, MESSAGES, neutral_message
from embedroute.upstream_errors.retry_after import parse_retry_after

__all__ = [
    "BLAMES_INPUTS",
    "MESSAGES",
    "classify_response",
    "neutral_message",
    "parse_retry_after",
    "refine_with_inputs",
]
