"""Reports finished requests and upstream calls to observers: metrics, spans, a usage ledger.

It may import the contracts and the foundation.
"""

from embedroute.telemetry.counts import MULTIPROCESS, Counts
from embedroute.telemetry.metrics import Metrics
from embedroute.telemetry.observer import (
    CallOutcome,
    FinishedCall,
    FinishedRequest,
    Observer,
    classify_outcome,
    report_call,
    report_request,
)
from embedroute.telemetry.series import SeriesStore, add_up, is_running, read_workers
from embedroute.telemetry.spans import Spans
from embedroute.telemetry.state import EndpointState, GatewayState

__all__ = [
    "MULTIPROCESS",
    "CallOutcome",
    "Counts",
    "EndpointState",
    "FinishedCall",
    "FinishedRequest",
    "GatewayState",
    "Metrics",
    "Observer",
    "SeriesStore",
    "Spans",
    "add_up",
    "classify_outcome",
    "is_running",
    "read_workers",
    "report_call",
    "report_request",
]
