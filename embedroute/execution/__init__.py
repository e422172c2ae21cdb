"""Gets the vectors of missing inputs: single-flight, failover, attempts, backend calls and micro-batches.

It may import ``routing``, ``cache``, ``transport``, the contracts and the foundation.
"""

from embedroute.execution.attempt import Attempts
from embedroute.execution.backend_call import Tools, Widths, checked, exchange, largest_answer
from embedroute.execution.context import Asked, Order, order_of
from embedroute.execution.dispatcher import Desk, Embed
from embedroute.execution.local_models import LocalModels, Pace, joined, part_of, slice_stop
from embedroute.execution.microbatching import LARGEST, Merger, taken_apart
from embedroute.execution.redaction import capture, scrub, secrets_of
from embedroute.execution.singleflight import Flights, never_expected, without

__all__ = [
    "LARGEST",
    "Asked",
    "Attempts",
    "Desk",
    "Embed",
    "Flights",
    "LocalModels",
    "Merger",
    "Order",
    "Pace",
    "Tools",
    "Widths",
    "capture",
    "checked",
    "exchange",
    "joined",
    "largest_answer",
    "never_expected",
    "order_of",
    "part_of",
    "scrub",
    "secrets_of",
    "slice_stop",
    "taken_apart",
    "without",
]
