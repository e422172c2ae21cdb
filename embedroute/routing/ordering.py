"""In what order endpoints are tried: drawn by price, or as the client lists or sorts them. Chance and time are arguments."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import accumulate
from typing import Final

import msgspec

from embedroute.protocol import Preferences, cutoffs
from embedroute.routing.health import EndpointHealth
from embedroute.routing.registry import ResolvedEndpoint


class SelectionContext(msgspec.Struct, frozen=True, kw_only=True):
    """What selection knows beside the request: the gateway's own lists, health, and chance in [0, 1)."""

    only: Sequence[str] = ()
    ignore: Sequence[str] = ()
    known_names: frozenset[str] = frozenset()
    health: Callable[[ResolvedEndpoint], EndpointHealth]
    now: float
    random: Callable[[], float]


def order_endpoints(
    candidates: Sequence[ResolvedEndpoint],
    preferences: Preferences,
    suffix: str | None,
    context: SelectionContext,
) -> list[ResolvedEndpoint]:
    """Put candidates in the order in which they are tried; ``suffix`` is what the model's name sorts by."""
    listed = preferences.order or []
    sort = preferences.sort_key() or suffix
    if sort:
        ranked = sorted(candidates, key=lambda it: _rank(it, sort, context))
    elif listed:
        ranked = sorted(candidates, key=lambda it: _rank(it, "price", context))
    else:
        ranked = _balanced(candidates, context)
    ranked = sorted(ranked, key=lambda it: it.stage != "stable")
    ranked = sorted(ranked, key=lambda it: not _as_fast_as_preferred(it, preferences, context))
    ranked = sorted(
        ranked,
        key=lambda it: next((at for at, name in enumerate(listed) if it.named(name)), len(listed)),
    )
    return ranked[:1] if preferences.allow_fallbacks is False and not listed else ranked


_LAST: Final = float("inf")


def _rank(
    candidate: ResolvedEndpoint, sort: str, context: SelectionContext
) -> tuple[float | Decimal, ...]:
    health, price = context.health(candidate), candidate.prices.get("prompt", Decimal("Infinity"))
    if sort == "latency":
        return (_LAST if (latency := health.latency(50, context.now)) is None else latency,)
    if sort == "throughput":
        return (_LAST if (rate := health.throughput(50, context.now)) is None else -rate,)
    return (-candidate.quality, price) if sort == "exacto" else (price,)


def _balanced(
    candidates: Sequence[ResolvedEndpoint], context: SelectionContext
) -> list[ResolvedEndpoint]:
    if len(candidates) == 1:
        return list(candidates)
    failing = [it for it in candidates if context.health(it).failing(context.now)]
    stable = [it for it in candidates if it not in failing]
    return [*_drawn(stable, context.random), *_drawn(failing, context.random)]


def _drawn(
    candidates: Sequence[ResolvedEndpoint], random: Callable[[], float]
) -> list[ResolvedEndpoint]:
    """Draw without replacement, each time with weight 1/price²; free endpoints come before all others."""
    left, drawn = list(candidates), list[ResolvedEndpoint]()
    while left:
        marks = list(accumulate(draw_weights(left)))
        mark = random() * marks[-1]
        drawn.append(
            left.pop(next((at for at, end in enumerate(marks) if mark < end), len(left) - 1))
        )
    return drawn


def draw_weights(candidates: Sequence[ResolvedEndpoint]) -> list[float]:
    """The weight of each candidate in a draw: 1/price², an unknown price counting as the dearest known one."""
    known = [it.prices["prompt"] for it in candidates if "prompt" in it.prices]
    if not known:
        return [it.weight for it in candidates]
    prices = [it.prices.get("prompt", max(known)) for it in candidates]
    if not all(prices):
        return [float(price == 0) for price in prices]
    return [float((min(known) / price) ** 2) for price in prices]


def _as_fast_as_preferred(
    candidate: ResolvedEndpoint, preferences: Preferences, context: SelectionContext
) -> bool:
    if preferences.preferred_max_latency is None and preferences.preferred_min_throughput is None:
        return True
    health, now = context.health(candidate), context.now
    slow = any(
        (seen := health.latency(at, now)) is not None and seen > most
        for at, most in cutoffs(preferences.preferred_max_latency).items()
    )
    weak = any(
        (seen := health.throughput(at, now)) is not None and seen < least
        for at, least in cutoffs(preferences.preferred_min_throughput).items()
    )
    return not slow and not weak
