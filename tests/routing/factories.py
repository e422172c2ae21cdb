"""Factories for candidates, routes, requests and selection contexts, with simple defaults."""

from collections.abc import Sequence
from decimal import Decimal

import msgspec

from embedroute.auth import Caller
from embedroute.backend import Accepts
from embedroute.config import Model
from embedroute.plugins import Namespaces
from embedroute.protocol import EmbeddingRequest, Limits, Preferences, decode_request
from embedroute.routing import (
    BreakerPolicy,
    EndpointHealth,
    ResolvedEndpoint,
    Route,
    SelectionContext,
    normalise,
    select_endpoints,
)
from embedroute.testing import ScriptedBackend

NOW = 1000.0
SOMEONE = Caller(name="someone")


def candidate(
    provider="a", price=None, *, accepts=None, model="upstream-model", **facts
) -> ResolvedEndpoint:
    """An endpoint of ``provider``, at ``price`` USD per million prompt tokens."""
    prices = price if isinstance(price, dict) else {} if price is None else {"prompt": price}
    return ResolvedEndpoint(
        provider=provider,
        model=model,
        backend=ScriptedBackend(),
        accepts=Accepts(**(accepts or {})),
        prices={kind: Decimal(str(value)) for kind, value in prices.items()},
        **{"vendor": provider, **facts},
    )


def route(*candidates, sort=None, **facts) -> Route:
    return Route(name="m", public_name="m", model=Model(**facts), candidates=candidates, sort=sort)


def job(**fields) -> EmbeddingRequest:
    """Decode a request as it would arrive over HTTP."""
    body = msgspec.json.encode({"model": "m", "input": "text", **fields})
    return decode_request(body, Limits(namespaces=Namespaces()))


def make_preferences(**fields) -> Preferences:
    return msgspec.json.decode(msgspec.json.encode(fields), type=Preferences)


def context_for(
    candidates: Sequence[ResolvedEndpoint] = (),
    *,
    random=lambda: 0.0,
    now=NOW,
    healths=None,
    **lists,
) -> SelectionContext:
    """A context in which every candidate is healthy, except those in ``healths`` (by provider)."""
    healths = healths or {}
    known = {
        normalise(name)
        for item in candidates
        for name in (item.provider, item.provider.partition("/")[0], item.vendor)
    }
    return SelectionContext(
        health=lambda item: healths.get(item.provider) or EndpointHealth(BreakerPolicy()),
        known_names=frozenset(known | {"openai", "azure", "google-vertex", "deepinfra"}),
        now=now,
        random=random,
        **lists,
    )


def chosen(
    candidates,
    *,
    caller=SOMEONE,
    suffix=None,
    facts=None,
    context=None,
    fields=None,
    **preferences,
) -> list[str]:
    """Return the providers selected for a request with ``preferences``, in order."""
    request = job(**(fields or {}), provider=preferences) if preferences else job(**(fields or {}))
    found = select_endpoints(
        route(*candidates, sort=suffix, **(facts or {})),
        request,
        caller,
        context or context_for(candidates),
    )
    return [item.provider for item in found.candidates]


def failed(seconds_ago: float) -> EndpointHealth:
    """The health of an endpoint whose only two calls failed, ``seconds_ago``."""
    health = EndpointHealth(BreakerPolicy())
    for _ in range(2):
        health.record_failure(health.acquire(NOW - seconds_ago), NOW - seconds_ago)
    return health


def measured(*latencies: float, tokens: int = 100) -> EndpointHealth:
    """The health of an endpoint whose last calls took ``latencies`` seconds."""
    health = EndpointHealth(BreakerPolicy())
    for latency in latencies:
        health.record_success(health.acquire(NOW - 1), NOW - 1, latency, tokens)
    return health
