"""The endpoint filter, and the filters by input and by the parameters that change vectors.

``selection.py`` applies them, after the filters by preferences.

A parameter that changes the vectors is never dropped silently: an endpoint that cannot honour it is
excluded, and the request fails if no endpoint remains.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, get_args

import msgspec

from embedroute.backend import Accepts, Truncate
from embedroute.config import Model
from embedroute.errors import EmbedrouteError, InvalidRequest, NoEligibleProvider
from embedroute.inputs import ImagePart, Input, Kind, list_modalities
from embedroute.protocol import NO_OPTIONS, EmbeddingRequest
from embedroute.routing.options import MergedOptions, Option, list_options, merge_options
from embedroute.routing.registry import ResolvedEndpoint


class Dropped(msgspec.Struct, frozen=True):
    """An endpoint that may not serve a request: which filter excluded it, and why."""

    candidate: ResolvedEndpoint
    filter: str
    reason: str


class EndpointFilter:
    """The candidates that passed all filters so far, and those that were dropped.

    The filter that excludes the last candidate determines the error.
    """

    def __init__(self, candidates: Sequence[ResolvedEndpoint]) -> None:
        """Start with all ``candidates``."""
        self.remaining: list[ResolvedEndpoint] = list(candidates)
        self.dropped: list[Dropped] = []

    def apply(
        self,
        name: str,
        predicate: Callable[[ResolvedEndpoint], bool],
        reason: str,
        refusal: EmbedrouteError | None = None,
    ) -> None:
        """Drop the candidates for which ``predicate`` is false.

        Raises:
            EmbedrouteError: no candidate remains: ``refusal``, or else ``NoEligibleProvider``.
        """
        kept = [candidate for candidate in self.remaining if predicate(candidate)]
        if len(kept) == len(self.remaining):
            return
        self.dropped += [
            Dropped(candidate, name, reason)
            for candidate in self.remaining
            if candidate not in kept
        ]
        self.remaining: list[ResolvedEndpoint] = kept
        if not kept:
            raise refusal or NoEligibleProvider(
                f"No provider can serve this model: '{name}' excluded the last one ({reason}).",
                param="provider",
            )


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of a request that change its vectors.

    ``width`` is the number of dimensions to return; None for an undeclared model if the request
    does not specify it. ``dimensions`` is the requested width if it differs from the model's own.
    ``dtype`` is what the endpoints are asked for: float, if the gateway quantises the vectors.
    ``options`` maps each namespace of ``embedding_options`` to what its backends get unchanged; the
    namespace "" holds top-level fields that are passed on. ``options_key`` encodes those that
    change the vectors.
    """

    width: int | None = None
    dimensions: int | None = None
    input_type: str | None = None
    dtype: str = "float"
    title: str | None = None
    truncate: Truncate | None = None
    options: Mapping[str, Mapping[str, Any]] = {}
    options_key: str = ""

    def uncut(self, model: Model) -> "Parameters | None":
        """Return these parameters at the model's own width.

        Returns None if the request is for that width already, or if vectors cannot be truncated.
        """
        if self.dimensions is None or not can_truncate(model) or self.dtype != "float":
            return None
        return msgspec.structs.replace(self, width=model.dimensions, dimensions=None)


def resolve_parameters(
    endpoints: EndpointFilter, model: Model, request: EmbeddingRequest
) -> tuple[Parameters, MergedOptions]:
    """Return the parameters that change the vectors, and the merged ``embedding_options``.

    If a candidate supports a namespace of ``embedding_options``, those that do not are dropped.

    Raises:
        InvalidRequest: the model does not have the requested width, two parameters contradict each
            other, or an option that no candidate supports would change the vectors.
    """
    if request.options is NO_OPTIONS:
        merged = merge_options((), request, model, ())
        return _make_parameters(model, merged), merged
    options = list_options(request, endpoints.remaining)
    known = {name for candidate in endpoints.remaining for name in candidate.accepts.options}
    supported = sorted({option.namespace for option in options} & known)
    merged = merge_options(options, request, model, supported)
    for namespace in _restricting(supported, merged):
        _filter_by_namespace(endpoints, namespace, merged.native.get(namespace, {}))
    for name in request.options.fields:
        endpoints.apply(
            name,
            lambda candidate, name=name: name in candidate.allow_fields,
            f"its provider does not allow {name}",
        )
    return _make_parameters(model, merged), merged


def _restricting(supported: Sequence[str], merged: MergedOptions) -> Collection[str]:
    """Return the namespaces that a candidate must support.

    They are those with an option that no other API has. Neutral parameters are checked as such, so
    of namespaces that hold nothing else only the first restricts the candidates.
    """
    return [name for name in supported if name in merged.native] or supported[:1]


def _filter_by_namespace(
    endpoints: EndpointFilter, namespace: str, native: Mapping[str, Any]
) -> None:
    refusal = None
    if native:
        param = f"embedding_options.{namespace}"
        refusal = InvalidRequest(
            f"'{param}' is not supported by any provider that supports the other parameters.",
            param=param,
        )
    endpoints.apply(
        "embedding_options",
        lambda candidate: namespace in candidate.accepts.options,
        f"does not support {namespace} options",
        refusal,
    )


def _encode_options(options: Sequence[Option]) -> str:
    """Encode options unambiguously, for cache keys."""
    if not options:
        return ""
    values = [(option.namespace, option.field, option.value) for option in options]
    return msgspec.json.encode(sorted(values), order="deterministic").decode()


def _make_parameters(model: Model, merged: MergedOptions) -> Parameters:
    own = model.dimensions
    size = merged.size
    if size is not None and own is not None and (problem := _size_problem(model, own, size)):
        param = merged.fields["dimensions"]
        raise InvalidRequest(f"'{param}' {problem}", param=param)
    return Parameters(
        width=size or own,
        dimensions=None if size == own else size,
        # A model without input types returns the same vector for all of them: share cache entries.
        input_type=None if model.input_types == [] else merged.input_type,
        dtype="float" if merged.dtype in (model.quantize or ()) else merged.dtype,
        title=merged.title,
        truncate=merged.truncate,
        options=merged.native,
        options_key=_encode_options(merged.native_vectors),
    )


def supports_dimensions(model: Model) -> bool:
    """Return whether a request may ask for another width than the model's own."""
    own = model.dimensions
    if own is None or not model.matryoshka:
        return own is None
    return any(size != own for size in model.dimensions_allowed or [model.dimensions_min or 1])


def can_truncate(model: Model) -> bool:
    """Return whether the model's vectors can be truncated and scaled to length 1."""
    return model.dimensions is not None and bool(model.matryoshka)


def _size_problem(model: Model, own: int, size: int) -> str | None:
    """Return why the model has no vectors of ``size`` dimensions, or None if it has."""
    if not model.matryoshka:
        if size == own:
            return None
        return f"must be {own} for this model; its vectors cannot be shortened."
    if model.dimensions_allowed:
        allowed = sorted(model.dimensions_allowed)
        if size in allowed:
            return None
        return f"must be one of {', '.join(map(str, allowed))} for this model."
    least = model.dimensions_min or 1
    if least <= size <= own:
        return None
    return f"must be from {least} to {own} for this model."


def filter_by_parameters(
    endpoints: EndpointFilter,
    model: Model,
    request: EmbeddingRequest,
    parameters: Parameters,
    fields: Mapping[str, str],
) -> None:
    """Drop the endpoints that cannot honour the request's parameters.

    ``fields`` maps each parameter to the field of the request that sets it.

    Raises:
        InvalidRequest: no endpoint remains; ``param`` names the parameter that none supports.
        NoEligibleProvider: ``require_parameters`` excluded the last endpoint.
    """
    _filter_by_input(endpoints, model, request)
    endpoints.apply(
        "dimensions",
        lambda candidate: _supports_width(candidate, model, parameters),
        "cannot return this width",
        _unsupported(fields.get("dimensions")),
    )
    endpoints.apply(
        "input_type",
        lambda candidate: (
            parameters.input_type is None
            or honours_type(candidate, model, parameters.input_type, request.kind)
        ),
        "does not support this input type",
        _unsupported(fields.get("input_type")),
    )
    endpoints.apply(
        "output_dtype",
        lambda candidate: parameters.dtype in candidate.accepts.dtypes,
        "does not support this output_dtype",
        _unsupported(fields.get("dtype")),
    )
    if parameters.truncate is not None:
        _filter_by_truncate(endpoints, parameters.truncate, fields["truncate"])
    if request.preferences.require_parameters and request.user is not None:
        _filter_by_user(endpoints)


def _filter_by_truncate(endpoints: EndpointFilter, truncate: Truncate, param: str) -> None:
    known = {word for candidate in endpoints.remaining for word in candidate.accepts.truncate}
    advice = "Omit it."
    if words := [word for word in get_args(Truncate) if word in known]:
        advice = f"Use {' or '.join(words)}, or omit it."
    endpoints.apply(
        "truncate",
        lambda candidate: truncate in candidate.accepts.truncate,
        f"does not support {truncate}",
        InvalidRequest(
            f"'{param}' asks for '{truncate}', which no provider of this model supports. {advice}",
            param=param,
        ),
    )


def apply_over_length(
    endpoints: EndpointFilter, model: Model, parameters: Parameters
) -> Parameters:
    """Make the endpoints refuse texts that are too long, so that none cuts them by itself.

    If the gateway cuts texts, endpoints that cannot be told so may remain.

    Raises:
        InvalidRequest: the model refuses such texts, and no endpoint does.
    """
    refusing = [each for each in endpoints.remaining if "none" in each.accepts.truncate]
    if model.over_length == "refuse":
        endpoints.apply(
            "over_length",
            refusing.__contains__,
            "may cut a text that is too long",
            InvalidRequest(
                "This model refuses a text that is too long, and no provider can be told so.",
                param="model",
            ),
        )
    elif len(refusing) < len(endpoints.remaining):
        return parameters
    return msgspec.structs.replace(parameters, truncate="none")


def _filter_by_user(endpoints: EndpointFilter) -> None:
    endpoints.apply(
        "require_parameters",
        lambda candidate: candidate.accepts.user,
        "does not accept 'user'",
    )


def _unsupported(param: str | None) -> InvalidRequest | None:
    """Create the error if no endpoint supports a parameter; None if the request omits it."""
    if param is None:
        return None
    return InvalidRequest(
        f"'{param}' is not supported by any provider that supports the other parameters.",
        param=param,
    )


def _filter_by_input(endpoints: EndpointFilter, model: Model, request: EmbeddingRequest) -> None:
    modalities = list_modalities(request.inputs)
    if request.kind is Kind.TOKENS:
        content = "token ids"
    else:
        content = f"{' and '.join(sorted(modalities))} {request.kind}".replace("text text", "text")
    refusal = InvalidRequest(
        f"'input' holds {content}, which no provider of this model accepts.",
        param="input",
        code="unsupported_modality",
    )
    # A model that lists no modalities is a text model, as in GET /v1/models.
    endpoints.apply(
        "input",
        lambda _: modalities <= set(model.modalities or ("text",)),
        "the model does not support this modality",
        refusal,
    )
    endpoints.apply(
        "input",
        lambda candidate: _accepts_kind(candidate.accepts, request.kind, modalities),
        f"does not accept {content}",
        refusal,
    )
    if "image" in modalities and any(
        map(_is_remote, (part for item in request.inputs for part in item))
    ):
        endpoints.apply(
            "input",
            lambda candidate: candidate.accepts.fetches,
            "does not fetch https images",
            refusal,
        )
    is_cut = model.over_length in ("truncate", "pool")
    if request.kind is Kind.TOKENS and model.max_input_tokens is not None and not is_cut:
        _refuse_overlong(request.inputs, model.max_input_tokens)


def _accepts_kind(accepts: Accepts, kind: Kind, modalities: frozenset[str]) -> bool:
    if kind is Kind.TEXT:
        return accepts.texts
    if kind is Kind.TOKENS:
        return accepts.tokens
    return accepts_parts(accepts) and modalities <= set(accepts.modalities)


def accepts_parts(accepts: Accepts) -> bool:
    """Return whether an API takes content parts; a text API does not take even text parts."""
    return len(accepts.modalities) > 1


def _is_remote(part: object) -> bool:
    return isinstance(part, ImagePart) and not part.image_url.url.startswith("data:")


def _refuse_overlong(inputs: Sequence[Input], most: int) -> None:
    for position, ids in enumerate(inputs):
        if len(ids) > most:
            param = f"input[{position}]" if len(inputs) > 1 else "input"
            raise InvalidRequest(
                f"'{param}' holds {len(ids)} token ids; "
                f"the maximum context length of this model is {most}.",
                param=param,
                code="context_length_exceeded",
            )


def _supports_width(candidate: ResolvedEndpoint, model: Model, parameters: Parameters) -> bool:
    if parameters.dimensions is None or candidate.accepts.dimensions:
        return True
    return parameters.uncut(model) is not None


def honours_type(candidate: ResolvedEndpoint, model: Model, input_type: str, kind: Kind) -> bool:
    """Return whether the API accepts ``input_type``, or the model config has a prefix for it."""
    return input_type in candidate.accepts.input_types or (
        kind is Kind.TEXT and input_type in (model.prefixes or {})
    )
