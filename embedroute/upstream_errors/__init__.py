"""Decides what an upstream's error response means: which error it is, how long to wait, and what others may read of it.

It may import ``errors``, ``text`` and ``inputs``.
"""

from embedroute.upstream_errors.classify import fault_of, settled
from embedroute.upstream_errors.neutral import BLAMES_INPUTS, MESSAGES, message_of
from embedroute.upstream_errors.retry_after import hint_of

__all__ = ["BLAMES_INPUTS", "MESSAGES", "fault_of", "hint_of", "message_of", "settled"]
