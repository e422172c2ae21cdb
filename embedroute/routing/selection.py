"""Selects the endpoints that may serve a request, in order, and records why others may not.

Time and randomness are arguments.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal

import msgspec

from embedroute.auth import Caller
from embedroute.config import Model
from embedroute.errors import InvalidRequest, RequestError
from embedroute.inputs import Kind
from embedroute.protocol import EmbeddingRequest, Preferences, with_input_type
from embedroute.routing.filters import (
    Dropped,
    EndpointFilter,
    Parameters,
    apply_over_length,
    filter_by_parameters,
    resolve_parameters,
)
from embedroute.routing.options import Option
from embedroute.routing.ordering import SelectionContext, order_endpoints
from embedroute.routing.planning import text_before
from embedroute.routing.registry import ResolvedEndpoint, Route, is_known
from embedroute.routing.text_cutting import OverLength, estimate_tokens
from embedroute.text import echo
from embedroute.trace import RequestTrace


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """The endpoints to try, in order, and those that were dropped.

    ``quantized`` is the dtype that the gateway computes from the floats of the endpoints.
    ``is_adapted`` is whether the gateway may change inputs or vectors: by that, or by cutting long
    inputs.

    Two requests share each other's failures only if their ``endpoint_keys`` are equal.
    """

    candidates: Sequence[ResolvedEndpoint]
    dropped: Sequence[Dropped]
    parameters: Parameters
    ignored_options: Sequence[Option] = ()
    over_length: OverLength | None = None
    quantized: str | None = None
    endpoint_keys: frozenset[str] = frozenset()
    is_adapted: bool = False

    def __post_init__(self) -> None:
        """Set once what every request reads: ``endpoint_keys`` and ``is_adapted``."""
        is_adapted = self.over_length is not None or self.quantized is not None
        msgspec.structs.force_setattr(self, "is_adapted", is_adapted)
        msgspec.structs.force_setattr(
            self, "endpoint_keys", frozenset([candidate.key for candidate in self.candidates])
        )

    def write_to_trace(self, trace: RequestTrace, user: str | None = None) -> None:
        """Write the selection into a trace; ``user`` is the request's ``user`` field, if any."""
        if trace.events is None:
            return
        trace_dropped(self.dropped, trace)
        for option in self.ignored_options:
            trace.add_event(
                "select", "dropped parameter", {"value": option.value}, parameter=option.name
            )
        without_user = [
            candidate.name
            for candidate in self.candidates
            if user is not None and not candidate.accepts.user
        ]
        for name in without_user:
            trace.add_event(
                "select", "dropped parameter", {"value": user}, parameter="user", endpoint=name
            )
        prices = [
            {kind: f"{price:f}" for kind, price in candidate.prices.items()}
            for candidate in self.candidates
        ]
        trace.add_event(
            "select",
            "ordered",
            {"prices": prices},
            endpoints=[candidate.name for candidate in self.candidates],
        )


def trace_dropped(dropped: Iterable[Dropped], trace: RequestTrace) -> None:
    """Write into a trace which endpoints were filtered, and why."""
    for drop in dropped:
        trace.add_event(
            "select",
            "filtered",
            endpoint=drop.candidate.name,
            filter=drop.filter,
            reason=drop.reason,
        )


def select_endpoints(
    route: Route,
    request: EmbeddingRequest,
    caller: Caller,
    context: SelectionContext,
    trace: RequestTrace | None = None,
) -> Selection:
    """Filter and order a route's candidates for one request.

    If no candidate remains, the dropped ones are written into ``trace``.

    Raises:
        InvalidRequest: a list names an unknown provider, or no endpoint supports a parameter that
            changes the vector.
        NoEligibleProvider: the preferences exclude all candidates; the message names the filter
            that excluded the last one.
    """
    preferences = request.preferences
    if route.input_type is not None:
        request = with_input_type(request, route.input_type)
    _refuse_unknown_names(preferences, context.known_names)
    endpoints = EndpointFilter(route.candidates)
    try:
        _filter_by_preferences(endpoints, preferences, caller, context)
        parameters, merged = resolve_parameters(endpoints, route.model, request)
        filter_by_parameters(endpoints, route.model, request, parameters, merged.fields)
        over_length = None
        if route.model.over_length is not None and parameters.truncate is None:
            parameters = apply_over_length(endpoints, route.model, parameters)
            over_length = _make_over_length(endpoints.remaining, route.model, request, parameters)
        context.caller_keys.apply(endpoints, caller)
    except RequestError:
        if trace is not None:
            trace_dropped(endpoints.dropped, trace)
        raise
    ordered = order_endpoints(endpoints.remaining, preferences, route.sort, context)
    return Selection(
        candidates=ordered,
        dropped=[*endpoints.dropped, *_drop_alternatives(endpoints.remaining, ordered)],
        parameters=parameters,
        ignored_options=merged.dropped,
        over_length=over_length,
        quantized=merged.dtype if merged.dtype != parameters.dtype else None,
    )


def _make_over_length(
    candidates: Sequence[ResolvedEndpoint],
    model: Model,
    request: EmbeddingRequest,
    parameters: Parameters,
) -> OverLength | None:
    """Return how the gateway cuts long inputs; None if it does not."""
    if model.over_length in (None, "refuse") or request.kind is Kind.PARTS:
        return None
    prefixes = [text_before(each, model, parameters.input_type) for each in candidates]
    longest = max(map(estimate_tokens, prefixes), default=0)
    return OverLength(
        limit=max(1, (model.max_input_tokens or 1) - longest),
        pool=model.over_length == "pool",
        refuses=parameters.truncate == "none",
        is_float=parameters.dtype == "float",
    )


def _drop_alternatives(
    eligible: Sequence[ResolvedEndpoint], ordered: Sequence[ResolvedEndpoint]
) -> list[Dropped]:
    reason = "not the first choice, and allow_fallbacks is false"
    return [
        Dropped(candidate, "allow_fallbacks", reason)
        for candidate in eligible
        if candidate not in ordered
    ]


def _refuse_unknown_names(preferences: Preferences, known: frozenset[str]) -> None:
    for field in ("order", "only", "ignore"):
        for name in getattr(preferences, field) or ():
            if not is_known(name, known):
                raise InvalidRequest(
                    f"'provider.{field}' names the unknown provider {echo(name)}; "
                    "check its spelling.",
                    param=f"provider.{field}",
                )


def _filter_by_preferences(
    endpoints: EndpointFilter, preferences: Preferences, caller: Caller, context: SelectionContext
) -> None:
    for names in (preferences.only, caller.only or None, context.only or None):
        if names is not None:
            endpoints.apply(
                "only",
                lambda candidate, names=names: _is_named(candidate, names),
                "not in the list",
            )
    ignored = (*(preferences.ignore or ()), *caller.ignore, *context.ignore)
    endpoints.apply("ignore", lambda candidate: not _is_named(candidate, ignored), "in the list")
    order = preferences.order
    if preferences.allow_fallbacks is False and order is not None:
        endpoints.apply(
            "order",
            lambda candidate: _is_named(candidate, order),
            "not in the list, and allow_fallbacks is false",
        )
    if not preferences.include_alpha:
        endpoints.apply(
            "include_alpha", lambda candidate: candidate.stage != "alpha", "alpha stage"
        )
    for name, active, predicate, reason in _policies(preferences):
        if active:
            endpoints.apply(name, predicate, reason)


def permitted_endpoints(
    route: Route, caller: Caller, context: SelectionContext
) -> Sequence[ResolvedEndpoint]:
    """Return the endpoints of a route that the lists of the caller and the gateway permit."""
    only = [names for names in (caller.only, context.only) if names]
    ignored = (*caller.ignore, *context.ignore)
    return [
        candidate
        for candidate in route.candidates
        if all(_is_named(candidate, names) for names in only) and not _is_named(candidate, ignored)
    ]


def _is_named(candidate: ResolvedEndpoint, names: Iterable[str]) -> bool:
    return any(candidate.named(name) for name in names)


def _policies(
    preferences: Preferences,
) -> Iterable[tuple[str, bool, Callable[[ResolvedEndpoint], bool], str]]:
    """List the policy filters: name, whether it applies, predicate, and reason for a drop."""
    caps = preferences.max_price.limits() if preferences.max_price else {}
    quantizations = preferences.quantizations or ()
    return (
        (
            "data_collection",
            preferences.data_collection == "deny",
            lambda candidate: candidate.data_collection == "deny",
            "not declared to deny data collection",
        ),
        (
            "zdr",
            bool(preferences.zdr),
            lambda candidate: candidate.zdr is True,
            "not declared zero data retention",
        ),
        (
            "enforce_distillable_text",
            bool(preferences.enforce_distillable_text),
            lambda candidate: candidate.distillable is True,
            "not declared distillable",
        ),
        (
            "quantizations",
            bool(quantizations),
            lambda candidate: candidate.quantization in quantizations,
            "quantization not in the list",
        ),
        (
            "max_price",
            bool(caps),
            lambda candidate: affordable(candidate.prices, caps),
            "above max_price, or price unknown",
        ),
    )


def affordable(prices: Mapping[str, Decimal], caps: Mapping[str, Decimal]) -> bool:
    """Return whether the prices are within all caps.

    Without a prompt price the result is False. A kind without a price costs 0.
    """
    return "prompt" in prices and all(
        prices.get(kind, Decimal(0)) <= cap for kind, cap in caps.items()
    )
