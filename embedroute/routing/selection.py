"""Which endpoints may serve a request, in what order, and why each other one may not. Pure: time and chance are arguments."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal

import msgspec

from embedroute.auth import Caller
from embedroute.errors import InvalidRequest, RequestError
from embedroute.protocol import EmbeddingRequest, Preferences, with_input_type
from embedroute.routing.filters import (
    Dropped,
    EndpointFilter,
    Parameters,
    filter_by_parameters,
    ignored_options,
    resolve_parameters,
)
from embedroute.routing.ordering import SelectionContext, order_endpoints
from embedroute.routing.registry import ResolvedEndpoint, Route, is_known
from embedroute.text import echo
from embedroute.trace import RequestTrace


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """The endpoints to try, in order, and those that were dropped on the way."""

    candidates: Sequence[ResolvedEndpoint]
    dropped: Sequence[Dropped]
    parameters: Parameters
    ignored_options: Sequence[str] = ()
    endpoint_names: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Set what two requests must have in common to share each other's failure: the endpoints they may try."""
        msgspec.structs.force_setattr(
            self, "endpoint_names", frozenset([candidate.name for candidate in self.candidates])
        )

    def tell(self, trace: RequestTrace, user: str | None = None) -> None:
        """Write the decision into a trace; ``user`` is what the request says of its own, if anything."""
        if trace.events is None:
            return
        tell_dropped(self.dropped, trace)
        for name in self.ignored_options:
            trace.add_event("select", "dropped parameter", parameter=f"embedding_options.{name}")
        deaf = [
            candidate.name
            for candidate in self.candidates
            if user is not None and not candidate.accepts.user
        ]
        for name in deaf:
            trace.add_event("select", "dropped parameter", parameter="user", endpoint=name)
        trace.add_event(
            "select", "ordered", endpoints=[candidate.name for candidate in self.candidates]
        )


def tell_dropped(dropped: Iterable[Dropped], trace: RequestTrace) -> None:
    """Write into a trace which endpoints were filtered, and why."""
    for it in dropped:
        trace.add_event(
            "select", "filtered", endpoint=it.candidate.name, filter=it.filter, reason=it.reason
        )


def select_endpoints(
    route: Route,
    request: EmbeddingRequest,
    caller: Caller,
    context: SelectionContext,
    trace: RequestTrace | None = None,
) -> Selection:
    """Filter and order a route's candidates for one request; ``trace`` is told of the filters that leave nobody.

    Raises:
        InvalidRequest: a name in a list is unknown, or no endpoint honours a parameter that changes the vector.
        NoEligibleProvider: the preferences leave nobody; the message names the filter that took out the last.
    """
    wishes = request.preferences
    if route.input_type is not None:
        request = with_input_type(request, route.input_type)
    _refuse_unknown_names(wishes, context.known_names)
    sieve = EndpointFilter(route.candidates)
    try:
        _filter_by_preferences(sieve, wishes, caller, context)
        parameters = resolve_parameters(sieve, route.model, request)
        filter_by_parameters(sieve, route.model, request, parameters)
    except RequestError:
        if trace is not None:
            tell_dropped(sieve.dropped, trace)
        raise
    ordered = order_endpoints(sieve.left, wishes, route.sort, context)
    why = "not the first pick, and allow_fallbacks is false"
    spare = [Dropped(it, "allow_fallbacks", why) for it in sieve.left if it not in ordered]
    lost = ignored_options(request, parameters.namespaces)
    return Selection(
        candidates=ordered,
        dropped=[*sieve.dropped, *spare],
        parameters=parameters,
        ignored_options=lost,
    )


def _refuse_unknown_names(preferences: Preferences, known: frozenset[str]) -> None:
    for field in ("order", "only", "ignore"):
        for name in getattr(preferences, field) or ():
            if not is_known(name, known):
                raise InvalidRequest(
                    f"'provider.{field}' names {echo(name)}, which is no provider that is known here; check its spelling.",
                    param=f"provider.{field}",
                )


def _filter_by_preferences(
    sieve: EndpointFilter, preferences: Preferences, caller: Caller, context: SelectionContext
) -> None:
    for names in (preferences.only, caller.only or None, context.only or None):
        if names is not None:
            sieve.apply("only", lambda it, names=names: _among(it, names), "not in the list")
    ignored = (*(preferences.ignore or ()), *caller.ignore, *context.ignore)
    sieve.apply("ignore", lambda it: not _among(it, ignored), "in the list")
    listed = preferences.order
    if preferences.allow_fallbacks is False and listed is not None:
        sieve.apply(
            "order", lambda it: _among(it, listed), "not in the list, and allow_fallbacks is false"
        )
    if not preferences.include_alpha:
        sieve.apply("include_alpha", lambda it: it.stage != "alpha", "alpha stage")
    for name, wanted, fits, reason in _policies(preferences):
        if wanted:
            sieve.apply(name, fits, reason)


def _among(candidate: ResolvedEndpoint, names: Iterable[str]) -> bool:
    return any(candidate.named(name) for name in names)


def _policies(
    preferences: Preferences,
) -> Iterable[tuple[str, bool, Callable[[ResolvedEndpoint], bool], str]]:
    caps = preferences.max_price.given() if preferences.max_price else {}
    quantizations = preferences.quantizations or ()
    return (
        (
            "data_collection",
            preferences.data_collection == "deny",
            lambda it: it.data_collection == "deny",
            "not declared to deny it",
        ),
        (
            "zdr",
            bool(preferences.zdr),
            lambda it: it.zdr is True,
            "not declared zero data retention",
        ),
        (
            "enforce_distillable_text",
            bool(preferences.enforce_distillable_text),
            lambda it: it.distillable is True,
            "not declared distillable",
        ),
        (
            "quantizations",
            bool(quantizations),
            lambda it: it.quantization in quantizations,
            "another quantization",
        ),
        (
            "max_price",
            bool(caps),
            lambda it: affordable(it.prices, caps),
            "dearer than the cap, or of unknown price",
        ),
    )


def affordable(prices: Mapping[str, Decimal], caps: Mapping[str, Decimal]) -> bool:
    """Whether known prices stay within all caps; without a prompt price nothing does, kinds not named cost 0."""
    return "prompt" in prices and all(
        prices.get(kind, Decimal(0)) <= cap for kind, cap in caps.items()
    )
