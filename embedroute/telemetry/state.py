"""Describes the state of a gateway's endpoints, for metrics, readiness and the dashboard."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

BreakerState = Literal["closed", "half_open", "open"]


class EndpointState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one endpoint of one model. Durations are in seconds.

    ``rests_for`` is the rest of its cool-down, or 0, and ``reason`` says why it rests.
    ``last_error`` says why its last failed call failed, ``error_age`` seconds ago. ``failed_share``
    is the share of the calls of the last 30 s that failed. ``p50`` to ``p99`` are percentiles of
    the latency, and ``throughput`` the median of tokens per second; None without recent calls.
    ``in_flight`` and ``waiting`` count calls on all event loops. ``caps`` are learned limits of one
    call, and ``omitted`` fields that the upstream rejects. ``price`` is in USD per million tokens.
    """

    name: str
    provider: str
    model: str
    upstream_model: str
    price: str | None
    breaker: BreakerState
    rests_for: float
    reason: str | None
    last_error: str | None
    error_age: float | None
    failed_share: float
    p50: float | None
    p95: float | None
    p99: float | None
    throughput: float | None
    in_flight: int
    waiting: int
    caps: Mapping[str, int]
    omitted: Sequence[str]


class GatewayState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a gateway: requests in flight, and its endpoints in the order of the config."""

    in_flight: int
    endpoints: Sequence[EndpointState]
