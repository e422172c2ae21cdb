"""Reads the state of endpoints from their health and from the slots of all event loops."""

from collections.abc import Iterable, Mapping, Sequence

from embedroute.limits import CallSlots
from embedroute.routing import HealthRegistry, ResolvedEndpoint, Route
from embedroute.telemetry import EndpointState

LoopSlots = Mapping[str, CallSlots]
"""The slots of one event loop, by the name of the endpoint."""


def read_endpoint_states(
    routes: Iterable[Route], healths: HealthRegistry, loops: Sequence[LoopSlots], now: float
) -> Sequence[EndpointState]:
    """Return the state of each endpoint of ``routes``; ``now`` is the gateway's time in seconds."""
    return [
        _read_state(route, candidate, healths, loops, now)
        for route in routes
        for candidate in route.candidates
    ]


def _read_state(
    route: Route,
    candidate: ResolvedEndpoint,
    healths: HealthRegistry,
    loops: Sequence[LoopSlots],
    now: float,
) -> EndpointState:
    health = healths.get(candidate)
    slots = [found for loop in loops if (found := loop.get(candidate.key)) is not None]
    rests_for = health.available_at(now) - now
    price = candidate.prices.get("prompt")
    error_at = health.last_error_at
    return EndpointState(
        name=candidate.name,
        provider=candidate.provider,
        model=route.public_name,
        upstream_model=candidate.model,
        price=None if price is None else f"{price:f}",
        breaker=health.state(now).value,
        rests_for=rests_for,
        reason=health.reason_to_rest(now) if rests_for > 0 else None,
        last_error=health.last_error or None,
        error_age=None if error_at is None else now - error_at,
        failed_share=health.failure_share(now),
        p50=health.latency(50, now),
        p95=health.latency(95, now),
        p99=health.latency(99, now),
        throughput=health.throughput(50, now),
        in_flight=sum(each.calls.in_flight for each in slots),
        waiting=sum(each.waiting for each in slots),
        caps={
            measure.value: most
            for measure, cap in health.learned.items()
            if (most := cap.at(now)) is not None
        },
        omitted=sorted(health.omitted(now)),
    )
