"""Computes missing vectors: single-flight, failover, attempts, backend calls and micro-batches.

It may import ``routing``, ``cache``, ``transport``, the contracts and the foundation.
"""

from embedroute.execution.active_config import ActiveConfig
from embedroute.execution.attempt import SHORTEST, AttemptRunner
from embedroute.execution.backend_call import (
    CallResources,
    WidthRegistry,
    call_backend,
    largest_answer,
    validate_vectors,
)
from embedroute.execution.budgets import BudgetedEmbed, Window, find_window
from embedroute.execution.context import DispatchContext, RequestContext, Results, StoreResults
from embedroute.execution.credentials import CredentialStore
from embedroute.execution.deadline_error import make_deadline_error
from embedroute.execution.debug_capture import record_exchange
from embedroute.execution.dispatcher import Dispatcher, Embed
from embedroute.execution.endpoint_state import LoopSlots, read_endpoint_states
from embedroute.execution.ledger import Ledger, make_rows
from embedroute.execution.local_models import LocalModels, Pace, cut_part, joined, slice_stop
from embedroute.execution.lookup import look_up_in_tiers
from embedroute.execution.microbatching import LARGEST, MicroBatcher, split_result
from embedroute.execution.model_echo import (
    EchoedModels,
    Verdict,
    catalogue_bases,
    decide,
    is_same_model,
    parse_name,
)
from embedroute.execution.money import to_units
from embedroute.execution.over_length import embed_parts
from embedroute.execution.quantization import quantize
from embedroute.execution.redaction import list_secrets, public_url, redact_message
from embedroute.execution.singleflight import Lead, SingleFlight, missing_keys, never_expected
from embedroute.execution.watchdog import Watchdog

__all__ = [
    "LARGEST",
    "SHORTEST",
    "ActiveConfig",
    "AttemptRunner",
    "BudgetedEmbed",
    "CallResources",
    "CredentialStore",
    "DispatchContext",
    "Dispatcher",
    "EchoedModels",
    "Embed",
    "Lead",
    "Ledger",
    "LocalModels",
    "LoopSlots",
    "MicroBatcher",
    "Pace",
    "RequestContext",
    "Results",
    "SingleFlight",
    "StoreResults",
    "Verdict",
    "Watchdog",
    "WidthRegistry",
    "Window",
    "call_backend",
    "catalogue_bases",
    "cut_part",
    "decide",
    "embed_parts",
    "find_window",
    "is_same_model",
    "joined",
    "largest_answer",
    "list_secrets",
    "look_up_in_tiers",
    "make_deadline_error",
    "make_rows",
    "missing_keys",
    "never_expected",
    "parse_name",
    "public_url",
    "quantize",
    "read_endpoint_states",
    "record_exchange",
    "redact_message",
    "slice_stop",
    "split_result",
    "to_units",
    "validate_vectors",
]
