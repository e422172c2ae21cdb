"""Answers the health checks.

Liveness says that the event loop runs. Readiness says that the gateway can serve requests: it can
open its transport, its stores are reachable, each model has an endpoint that is not resting, and
the host is not shutting down. The reasons are only for callers that may debug.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from embedroute.protocol import ENCODER
from embedroute.reasons import describe
from embedroute.runtime import time_limits
from embedroute.telemetry import GatewayState

LIVE: Final = b'{"status":"live"}'
READY: Final = b'{"status":"ready"}'
NOT_READY: Final = b'{"status":"not ready"}'
STOPPING: Final = b'{"status":"stopping"}'
STORE_TIMEOUT: Final = 1.0
"""Seconds in which a store must answer."""

StoreChecks = Mapping[str, Callable[[], Awaitable[None]]]
"""Name of a store → raises an exception if the store cannot be reached."""


class EndpointReadiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an endpoint rests, for how many seconds from now, and why."""

    endpoint: str
    rests_for: float
    reason: str | None


class ModelReadiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a model has an endpoint that does not rest."""

    model: str
    ready: bool
    endpoints: Sequence[EndpointReadiness]


class StoreReadiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a store is reachable, and why not."""

    store: str
    ready: bool
    reason: str | None


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """The reasons why a gateway is ready or not."""

    status: Literal["ready", "not ready"]
    models: Sequence[ModelReadiness]
    stores: Sequence[StoreReadiness]

    def encode(self, *, with_reasons: bool) -> tuple[int, bytes]:
        """Return the status and the body of the response."""
        is_ready = self.status == "ready"
        bare = READY if is_ready else NOT_READY
        return 200 if is_ready else 503, ENCODER.encode(self) if with_reasons else bare


async def check_readiness(
    state: GatewayState, stores: StoreChecks, *, needs_models: bool
) -> Readiness:
    """Check the stores and the endpoints of a gateway. ``needs_models``: each must be available."""
    models = _check_models(state)
    checked = [await _check_store(name, check) for name, check in stores.items()]
    is_ready = all(store.ready for store in checked)
    is_ready = is_ready and (not needs_models or all(model.ready for model in models))
    return Readiness(status="ready" if is_ready else "not ready", models=models, stores=checked)


def _check_models(state: GatewayState) -> Sequence[ModelReadiness]:
    by_model: dict[str, list[EndpointReadiness]] = {}
    for endpoint in state.endpoints:
        by_model.setdefault(endpoint.model, []).append(
            EndpointReadiness(
                endpoint=endpoint.name,
                rests_for=round(endpoint.rests_for, 3),
                reason=endpoint.reason,
            )
        )
    return [
        ModelReadiness(
            model=model,
            ready=any(endpoint.rests_for <= 0 for endpoint in endpoints),
            endpoints=endpoints,
        )
        for model, endpoints in by_model.items()
    ]


async def _check_store(name: str, check: Callable[[], Awaitable[None]]) -> StoreReadiness:
    reason = None
    try:
        with time_limits.fail_after(STORE_TIMEOUT):
            await check()
    except Exception as error:  # noqa: BLE001 - any failure means that the store is not reachable
        reason = describe(error) or "failed"
    return StoreReadiness(store=name, ready=reason is None, reason=reason)
