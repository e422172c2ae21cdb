"""Candidates passing through filters: who is left, and why each of the others is not.

What of a request changes its vectors, and which endpoints can honour it; such a parameter is never dropped silently.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec

from embedroute.backend import Accepts
from embedroute.config import Model
from embedroute.errors import EmbedrouteError, InvalidRequest, NoEligibleProvider
from embedroute.inputs import ImagePart, Input, Kind, list_modalities
from embedroute.protocol import GOOGLE_TASKS, EmbeddingRequest, GoogleOptions, MistralOptions
from embedroute.routing.registry import ResolvedEndpoint


class Dropped(msgspec.Struct, frozen=True):
    """An endpoint that may not serve a request: which filter took it out, and why."""

    candidate: ResolvedEndpoint
    filter: str
    reason: str


class EndpointFilter:
    """The candidates that are left after each filter; the filter that takes out the last one words the refusal."""

    def __init__(self, candidates: Sequence[ResolvedEndpoint]) -> None:
        """Begin with all of them."""
        self.left = list(candidates)
        self.dropped: list[Dropped] = []

    def apply(
        self,
        name: str,
        predicate: Callable[[ResolvedEndpoint], bool],
        reason: str,
        refusal: EmbedrouteError | None = None,
    ) -> None:
        """Drop the candidates that do not fit.

        Raises:
            EmbedrouteError: ``refusal``, or ``NoEligibleProvider``, because none is left.
        """
        kept = [candidate for candidate in self.left if predicate(candidate)]
        if len(kept) == len(self.left):
            return
        self.dropped += [
            Dropped(candidate, name, reason) for candidate in self.left if candidate not in kept
        ]
        self.left = kept
        if not kept:
            raise refusal or NoEligibleProvider(
                f"No provider of this model is left: '{name}' took out the last ({reason}).",
                param="provider",
            )


NAMESPACES: Final = ("google", "mistral")


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """What of a request changes its vectors.

    ``width`` is the width due, None for an undeclared model that was not asked for one; ``dimensions`` is the
    width asked for where it is not the model's own. ``namespaces`` are the parts of ``embedding_options`` that act.
    """

    width: int | None = None
    dimensions: int | None = None
    input_type: str | None = None
    dtype: str = "float"
    namespaces: tuple[str, ...] = ()
    title: str | None = None

    def uncut(self, model: Model) -> "Parameters | None":
        """The same at the model's own width, if vectors of that width can be cut to the one asked for."""
        if self.dimensions is None or not can_truncate(model) or self.dtype != "float":
            return None
        return msgspec.structs.replace(self, width=model.dimensions, dimensions=None)


def resolve_parameters(
    sieve: EndpointFilter, model: Model, request: EmbeddingRequest
) -> Parameters:
    """Fold the namespaces that are spoken into the neutral parameters; candidates that do not speak the first drop out.

    Raises:
        InvalidRequest: the model has no such width, two namespaces contradict each other, or one that must be honoured
            is spoken by nobody.
    """
    spoken = tuple(
        it
        for it in NAMESPACES
        if _given(request, it) and any(it in one.accepts.options for one in sieve.left)
    )
    if request.preferences.require_parameters and (lost := ignored_options(request, spoken)):
        param = f"embedding_options.{lost[0]}"
        raise InvalidRequest(
            f"'{param}' names an API that no provider of this model speaks.", param=param
        )
    # Only the first has what another API has no word for, a title; what the second asks is asked of the first's speakers.
    for name in spoken[:1]:
        sieve.apply(
            "embedding_options",
            lambda it, name=name: name in it.accepts.options,
            f"does not speak {name}",
        )
    google = request.options.google if "google" in spoken else None
    mistral = request.options.mistral if "mistral" in spoken else None
    task = google and google.task_type
    wanted = Parameters(
        input_type=request.input_type or (GOOGLE_TASKS[task] if task else None),
        dtype=(mistral and mistral.output_dtype) or "float",
        namespaces=spoken,
        title=google and google.title,
    )
    return _checked(model, wanted, *_size(request.dimensions, google, mistral))


def _size(
    asked: int | None, google: GoogleOptions | None, mistral: MistralOptions | None
) -> tuple[int | None, str]:
    """Tell the width that is asked for, and the parameter that asks."""
    sizes = {
        "dimensions": asked,
        "embedding_options.google.output_dimensionality": google and google.output_dimensionality,
        "embedding_options.mistral.output_dimension": mistral and mistral.output_dimension,
    }
    given = [(size, param) for param, size in sizes.items() if size]
    for size, param in given[1:]:
        if size != given[0][0]:
            raise InvalidRequest(
                f"'{param}' contradicts '{given[0][1]}'; send one of them.", param=param
            )
    return given[0] if given else (None, "dimensions")


def ignored_options(request: EmbeddingRequest, spoken: Collection[str]) -> list[str]:
    """The namespaces of ``embedding_options`` that were given and have no effect."""
    return [name for name in NAMESPACES if _given(request, name) and name not in spoken]


def _given(request: EmbeddingRequest, namespace: str) -> bool:
    options = getattr(request.options, namespace)
    return options is not None and any(
        it not in (None, "TASK_TYPE_UNSPECIFIED") for it in msgspec.structs.astuple(options)
    )


def _checked(model: Model, wanted: Parameters, size: int | None, param: str) -> Parameters:
    own = model.dimensions
    if size is not None and own is not None and (fault := _width_fault(model, own, size)):
        raise InvalidRequest(f"'{param}' {fault}", param=param)
    return msgspec.structs.replace(
        wanted,
        width=size or own,
        dimensions=None if size == own else size,
        # A model that tells no types apart gives the same vector for all of them, so they share one.
        input_type=None if model.input_types == [] else wanted.input_type,
    )


def supports_dimensions(model: Model) -> bool:
    """Whether vectors of another width than the model's own may be asked for."""
    own = model.dimensions
    if own is None or not model.matryoshka:
        return own is None
    return any(it != own for it in model.dimensions_allowed or [model.dimensions_min or 1])


def can_truncate(model: Model) -> bool:
    """Whether a vector of the model's own width can be cut to a shorter one of length 1."""
    return model.dimensions is not None and bool(model.matryoshka)


def _width_fault(model: Model, own: int, size: int) -> str | None:
    if not model.matryoshka:
        return (
            None
            if size == own
            else f"must be {own} for this model; its vectors cannot be shortened."
        )
    if model.dimensions_allowed:
        allowed = sorted(model.dimensions_allowed)
        return (
            None
            if size in allowed
            else f"must be one of {', '.join(map(str, allowed))} for this model."
        )
    least = model.dimensions_min or 1
    return None if least <= size <= own else f"must be from {least} to {own} for this model."


def filter_by_parameters(
    sieve: EndpointFilter, model: Model, request: EmbeddingRequest, wanted: Parameters
) -> None:
    """Drop the endpoints that cannot honour what was asked.

    Raises:
        InvalidRequest: none is left; ``param`` names what nobody honours.
        NoEligibleProvider: ``require_parameters`` took out the last.
    """
    _filter_by_input(sieve, model, request)
    refusal = InvalidRequest(
        "'dimensions' is honoured by no provider of this model.", param="dimensions"
    )
    sieve.apply(
        "dimensions", lambda it: _gives_width(it, model, wanted), "cannot give this width", refusal
    )
    refusal = InvalidRequest(
        "'input_type' is honoured by no provider of this model; leave it out.", param="input_type"
    )
    sieve.apply(
        "input_type",
        lambda it: (
            wanted.input_type is None or honours_type(it, model, wanted.input_type, request.kind)
        ),
        "takes no such input type",
        refusal,
    )
    param = "embedding_options.mistral.output_dtype"
    refusal = InvalidRequest(
        f"'{param}' is honoured by no provider of this model that honours the rest.", param=param
    )
    sieve.apply(
        "output_dtype",
        lambda it: wanted.dtype in it.accepts.dtypes,
        "does not give such numbers",
        refusal,
    )
    if request.preferences.require_parameters and request.user is not None:
        sieve.apply("require_parameters", lambda it: it.accepts.user, "does not take 'user'")


def _filter_by_input(sieve: EndpointFilter, model: Model, request: EmbeddingRequest) -> None:
    needs = list_modalities(request.inputs)
    said = (
        "token ids"
        if request.kind is Kind.TOKENS
        else f"{' and '.join(sorted(needs))} {request.kind}".replace("text text", "text")
    )
    refusal = InvalidRequest(
        f"'input' holds {said}, which no provider of this model takes.",
        param="input",
        code="unsupported_modality",
    )
    # A model that lists no modalities is a text model, as it is to whoever asks for the list of models.
    sieve.apply(
        "input",
        lambda _: needs <= set(model.modalities or ("text",)),
        "the model has no such modality",
        refusal,
    )
    sieve.apply(
        "input",
        lambda it: _takes(it.accepts, request.kind, needs),
        f"does not take {said}",
        refusal,
    )
    if "image" in needs and any(
        map(_is_remote, (part for item in request.inputs for part in item))
    ):
        sieve.apply("input", lambda it: it.accepts.fetches, "does not fetch https images", refusal)
    if request.kind is Kind.TOKENS and model.max_input_tokens is not None:
        _refuse_overlong(request.inputs, model.max_input_tokens)


def _takes(accepts: Accepts, kind: Kind, needs: frozenset[str]) -> bool:
    if kind is Kind.TEXT:
        return accepts.texts
    if kind is Kind.TOKENS:
        return accepts.tokens
    # Content parts are a multimodal API's way to speak; a text API has no room even for text parts.
    return len(accepts.modalities) > 1 and needs <= set(accepts.modalities)


def _is_remote(part: object) -> bool:
    return isinstance(part, ImagePart) and not part.image_url.url.startswith("data:")


def _refuse_overlong(inputs: Sequence[Input], most: int) -> None:
    for position, ids in enumerate(inputs):
        if len(ids) > most:
            param = f"input[{position}]" if len(inputs) > 1 else "input"
            raise InvalidRequest(
                f"'{param}' holds {len(ids)} token ids; the maximum context length of this model is {most}.",
                param=param,
                code="context_length_exceeded",
            )


def _gives_width(candidate: ResolvedEndpoint, model: Model, wanted: Parameters) -> bool:
    if wanted.dimensions is None or candidate.accepts.dimensions:
        return True
    return wanted.uncut(model) is not None


def honours_type(candidate: ResolvedEndpoint, model: Model, input_type: str, kind: Kind) -> bool:
    """Whether the API takes an input type itself, or the model's config gives a text prefix for it."""
    return input_type in candidate.accepts.input_types or (
        kind is Kind.TEXT and input_type in (model.prefixes or {})
    )
