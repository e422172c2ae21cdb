"""Decides which endpoints serve a request and in what order, and tracks their health.

It may import the contracts and the foundation.
"""

from embedroute.config import BreakerPolicy, RetryPolicy
from embedroute.routing.batch_limits import ENVELOPE, GROWS_EVERY, LEAST
from embedroute.routing.bounded_map import MOST, BoundedMap
from embedroute.routing.breaker import CircuitBreaker, State
from embedroute.routing.cache_keys import (
    PIECE,
    CacheKey,
    encode_fields,
    make_key_prefix,
    rekeyed,
    rekeyed_in_steps,
)
from embedroute.routing.call_history import (
    LAST,
    PERIOD,
    CallHistory,
)
from embedroute.routing.caller_keys import CallerKeys, list_headers
from embedroute.routing.filters import (
    Dropped,
    Parameters,
    accepts_parts,
    can_truncate,
    supports_dimensions,
)
from embedroute.routing.folding import fold_text_parts
from embedroute.routing.generations import keep_generations
from embedroute.routing.health import (
    NO_FIELDS,
    SAMPLES,
    SHORTEST_COOLDOWN,
    SUSPECTS,
    WINDOW,
    EndpointHealth,
    HealthRegistry,
)
from embedroute.routing.hedging import CallTimes, HedgeBudget, hedge_delay
from embedroute.routing.ordering import SelectionContext, draw_weights, order_endpoints
from embedroute.routing.planning import (
    EmbeddedInput,
    Plan,
    assemble,
    cut,
    make_plan,
    make_plan_in_steps,
    pair_with_keys,
    sum_modalities,
    text_before,
)
from embedroute.routing.registry import (
    ModelRegistry,
    ResolvedEndpoint,
    Route,
    is_known,
    normalise,
    unknown_model,
)
from embedroute.routing.registry_builder import build_registry, resolve_key_models
from embedroute.routing.retry import (
    OVERLOADED,
    RetryDecision,
    allows_last_resort,
    decide_next,
    decide_without_retry,
    depends_on_inputs,
    error_to_report,
    full_endpoints,
    is_at_capacity,
    may_be_broken_by_input,
    may_be_caused_by_input,
    may_concern_request,
    rate_limited_endpoints,
    wait_before,
    was_rate_limited,
)
from embedroute.routing.retry_budget import RetryBudget
from embedroute.routing.selection import select_endpoints
from embedroute.routing.selection_cache import PROBING, PreparedSelection, SelectionCache
from embedroute.routing.splitting import (
    count_bytes,
    halves,
    measure_inputs,
    measure_inputs_in_steps,
    split,
    split_in_steps,
)
from embedroute.routing.text_cutting import (
    CAUTIOUS,
    LIKELY,
    MOST_PIECES,
    OverLength,
    Pieces,
    estimate_tokens,
    find_overlong,
    split_overlong,
)
from embedroute.routing.token_shares import share_out

__all__ = [
    "CAUTIOUS",
    "ENVELOPE",
    "GROWS_EVERY",
    "LAST",
    "LEAST",
    "LIKELY",
    "MOST",
    "MOST_PIECES",
    "NO_FIELDS",
    "OVERLOADED",
    "PERIOD",
    "PIECE",
    "PROBING",
    "SAMPLES",
    "SHORTEST_COOLDOWN",
    "SUSPECTS",
    "WINDOW",
    "BoundedMap",
    "BreakerPolicy",
    "CacheKey",
    "CallHistory",
    "CallTimes",
    "CallerKeys",
    "CircuitBreaker",
    "Dropped",
    "EmbeddedInput",
    "EndpointHealth",
    "HealthRegistry",
    "HedgeBudget",
    "ModelRegistry",
    "OverLength",
    "Parameters",
    "Pieces",
    "Plan",
    "PreparedSelection",
    "ResolvedEndpoint",
    "RetryBudget",
    "RetryDecision",
    "RetryPolicy",
    "Route",
    "SelectionCache",
    "SelectionContext",
    "State",
    "accepts_parts",
    "allows_last_resort",
    "assemble",
    "build_registry",
    "can_truncate",
    "count_bytes",
    "cut",
    "decide_next",
    "decide_without_retry",
    "depends_on_inputs",
    "draw_weights",
    "encode_fields",
    "error_to_report",
    "estimate_tokens",
    "find_overlong",
    "fold_text_parts",
    "full_endpoints",
    "halves",
    "hedge_delay",
    "is_at_capacity",
    "is_known",
    "keep_generations",
    "list_headers",
    "make_key_prefix",
    "make_plan",
    "make_plan_in_steps",
    "may_be_broken_by_input",
    "may_be_caused_by_input",
    "may_concern_request",
    "measure_inputs",
    "measure_inputs_in_steps",
    "normalise",
    "order_endpoints",
    "pair_with_keys",
    "rate_limited_endpoints",
    "rekeyed",
    "rekeyed_in_steps",
    "resolve_key_models",
    "select_endpoints",
    "share_out",
    "split",
    "split_in_steps",
    "split_overlong",
    "sum_modalities",
    "supports_dimensions",
    "text_before",
    "unknown_model",
    "wait_before",
    "was_rate_limited",
]
