"""Orders the candidates of a request: weighted by price, or as the client lists or sorts them.

Time and randomness are arguments.
"""

from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import accumulate
from typing import Final

import msgspec

from embedroute.protocol import Preferences, cutoffs
from embedroute.routing.caller_keys import CallerKeys
from embedroute.routing.health import EndpointHealth
from embedroute.routing.registry import ResolvedEndpoint


class SelectionContext(msgspec.Struct, frozen=True, kw_only=True):
    """What selection depends on besides the request: the gateway's lists, health, time and chance.

    ``caller_keys`` are those of the gateway. ``now`` is in seconds of a monotonic clock; ``random``
    returns a number in [0, 1).
    """

    only: Sequence[str] = ()
    ignore: Sequence[str] = ()
    known_names: frozenset[str] = frozenset()
    health: Callable[[ResolvedEndpoint], EndpointHealth]
    caller_keys: CallerKeys = msgspec.field(default_factory=CallerKeys)
    now: float
    random: Callable[[], float]


def order_endpoints(
    candidates: Sequence[ResolvedEndpoint],
    preferences: Preferences,
    suffix: str | None,
    context: SelectionContext,
) -> list[ResolvedEndpoint]:
    """Return the candidates in the order in which they are tried.

    ``suffix`` is the sort key that a suffix of the model name names. These decide, in this order:

    1. the position in ``order``
    2. whether the endpoint is as fast as the client prefers
    3. whether it is stable
    4. the sort key, or the price if there is an ``order``, or the weighted draw
    """
    names = preferences.order or []
    sort = preferences.sort_key() or suffix
    if sort:
        ranked = sorted(candidates, key=lambda candidate: _rank(candidate, sort, context))
    elif names:
        ranked = sorted(candidates, key=lambda candidate: _rank(candidate, "price", context))
    else:
        ranked = _balanced(candidates, context)
    # Sorting is stable, so the last of these sorts decides first.
    ranked = sorted(ranked, key=lambda candidate: candidate.stage != "stable")
    ranked = sorted(
        ranked, key=lambda candidate: not _as_fast_as_preferred(candidate, preferences, context)
    )
    ranked = sorted(
        ranked,
        key=lambda candidate: next(
            (index for index, name in enumerate(names) if candidate.named(name)), len(names)
        ),
    )
    if preferences.allow_fallbacks is False and not names:
        return ranked[:1]
    return ranked


_LAST: Final = float("inf")


def _rank(
    candidate: ResolvedEndpoint, sort: str, context: SelectionContext
) -> tuple[float | Decimal, ...]:
    health = context.health(candidate)
    price = candidate.prices.get("prompt", Decimal("Infinity"))
    if sort == "latency":
        latency = health.latency(50, context.now)
        return (_LAST if latency is None else latency,)
    if sort == "throughput":
        throughput = health.throughput(50, context.now)
        return (_LAST if throughput is None else -throughput,)
    if sort == "exacto":
        return (-candidate.quality, price)
    return (price,)


def _balanced(
    candidates: Sequence[ResolvedEndpoint], context: SelectionContext
) -> list[ResolvedEndpoint]:
    if len(candidates) == 1:
        return list(candidates)
    outages = {
        candidate.name: round(context.health(candidate).outage(context.now), 1)
        for candidate in candidates
    }
    # Sorting is stable: endpoints without an outage, and equally failing ones, stay as drawn.
    return sorted(_drawn(candidates, context.random), key=lambda candidate: outages[candidate.name])


def _drawn(
    candidates: Sequence[ResolvedEndpoint], random: Callable[[], float]
) -> list[ResolvedEndpoint]:
    """Draw without replacement with weight 1/price²; free endpoints come before all others."""
    remaining = list(candidates)
    drawn: list[ResolvedEndpoint] = []
    while remaining:
        bounds = list(accumulate(draw_weights(remaining)))
        point = random() * bounds[-1]
        index = next(
            (index for index, bound in enumerate(bounds) if point < bound), len(remaining) - 1
        )
        drawn.append(remaining.pop(index))
    return drawn


def draw_weights(candidates: Sequence[ResolvedEndpoint]) -> list[float]:
    """Return the weight of each candidate in a draw: 1/price², relative to the lowest price.

    An unknown price counts as the highest known one. If no price is known, the configured weights
    are used. If an endpoint is free, only free endpoints have a weight.
    """
    known = [candidate.prices["prompt"] for candidate in candidates if "prompt" in candidate.prices]
    if not known:
        return [candidate.weight for candidate in candidates]
    prices = [candidate.prices.get("prompt", max(known)) for candidate in candidates]
    if not all(prices):
        return [float(price == 0) for price in prices]
    return [float((min(known) / price) ** 2) for price in prices]


def _as_fast_as_preferred(
    candidate: ResolvedEndpoint, preferences: Preferences, context: SelectionContext
) -> bool:
    if preferences.preferred_max_latency is None and preferences.preferred_min_throughput is None:
        return True
    health = context.health(candidate)
    now = context.now
    too_slow = any(
        (latency := health.latency(percentile, now)) is not None and latency > maximum
        for percentile, maximum in cutoffs(preferences.preferred_max_latency).items()
    )
    too_weak = any(
        (throughput := health.throughput(percentile, now)) is not None and throughput < minimum
        for percentile, minimum in cutoffs(preferences.preferred_min_throughput).items()
    )
    return not too_slow and not too_weak
