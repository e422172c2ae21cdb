"""Reports finished requests and upstream calls to observers: metrics, spans, a usage ledger.

It may import the contracts and the foundation.
"""

from embedroute.telemetry.observer import (
    CallOutcome,
    FinishedCall,
    FinishedRequest,
    Observer,
    classify_outcome,
    notify_call,
    notify_request,
    summarize_request,
)

__all__ = [
    "CallOutcome",
    "FinishedCall",
    "FinishedRequest",
    "Observer",
    "classify_outcome",
    "notify_call",
    "notify_request",
    "summarize_request",
]
