"""Which endpoints may serve a request, in what order, and why each other one may not. Pure: time and chance are arguments."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import accumulate
from typing import Final

import msgspec

from embedroute.access import Caller
from embedroute.errors import EmbedrouteError, InvalidRequest, NoEligibleProvider, echo
from embedroute.inputs import ImagePart, Kind, modalities_of
from embedroute.journal import Journal
from embedroute.models import Model
from embedroute.routing.directory import Candidate, Route, normalise
from embedroute.routing.health import Health
from embedroute.wire.decode import Job
from embedroute.wire.preferences import Preferences, cutoffs
from embedroute.wire.vocabulary import GOOGLE_TASKS

NAMESPACES: Final = ("google", "mistral")


class Dropped(msgspec.Struct, frozen=True):
    """An endpoint that may not serve a request: which filter took it out, and why."""

    candidate: Candidate
    filter: str
    reason: str


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """What of a request changes its vectors.

    ``width`` is the width due, None for an undeclared model that was not asked for one; ``dimensions`` is the
    width asked for where it is not the model's own. ``namespace`` is the part of ``embedding_options`` that acts.
    """

    width: int | None = None
    dimensions: int | None = None
    input_type: str | None = None
    dtype: str = "float"
    namespace: str | None = None
    title: str | None = None

    def uncut(self, model: Model) -> "Parameters | None":
        """The same at the model's own width, if vectors of that width can be cut to the one asked for."""
        if self.dimensions is None or model.dimensions is None or self.dtype != "float":
            return None
        return msgspec.structs.replace(self, width=model.dimensions, dimensions=None)


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """The endpoints to try, in order, and those that were dropped on the way."""

    candidates: Sequence[Candidate]
    dropped: Sequence[Dropped]
    parameters: Parameters
    unspoken: Sequence[str] = ()

    def terms(self) -> tuple[str, ...]:
        """What two requests must have in common to share each other's failure."""
        return tuple(candidate.name for candidate in sorted(self.candidates, key=lambda it: it.name))

    def tell(self, journal: Journal) -> None:
        """Write the decision into a trace."""
        if journal.events is None:
            return
        for it in self.dropped:
            journal.note("select", "filtered", endpoint=it.candidate.name, filter=it.filter, reason=it.reason)
        for name in self.unspoken:
            journal.note("select", "dropped parameter", parameter=f"embedding_options.{name}")
        journal.note("select", "ordered", endpoints=[candidate.name for candidate in self.candidates])


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What selection knows beside the request: the gateway's own lists, health, and chance in [0, 1)."""

    only: Sequence[str] = ()
    ignore: Sequence[str] = ()
    known_names: frozenset[str] = frozenset()
    health: Callable[[Candidate], Health]
    now: float
    random: Callable[[], float]


def select(route: Route, job: Job, caller: Caller, around: Surroundings) -> Selection:
    """Filter and order a route's candidates for one request.

    Raises:
        InvalidRequest: a name in a list is unknown, or no endpoint honours a parameter that changes the vector.
        NoEligibleProvider: the preferences leave nobody; the message names the filter that took out the last.
    """
    wishes = job.preferences
    _refuse_unknown_names(wishes, around.known_names)
    sieve = _Sieve(route.candidates)
    _filter_by_preferences(sieve, wishes, caller, around)
    parameters = _parameters(sieve, route.model, job)
    _filter_by_parameters(sieve, route.model, job, parameters)
    ordered = order(sieve.left, job, route.sort, around)
    unspoken = [name for name in NAMESPACES if _given(job, name) and name != parameters.namespace]
    return Selection(candidates=ordered, dropped=sieve.dropped, parameters=parameters, unspoken=unspoken)


def _refuse_unknown_names(wishes: Preferences, known: frozenset[str]) -> None:
    for field in ("order", "only", "ignore"):
        for name in getattr(wishes, field) or ():
            if normalise(name) not in known and normalise(name.partition("/")[0]) not in known:
                raise InvalidRequest(
                    f"'provider.{field}' names {echo(name)}, which is no provider that is known here; check its spelling.",
                    param=f"provider.{field}",
                )


class _Sieve:
    """Candidates passing through filters; the filter that takes out the last one words the refusal."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.left = list(candidates)
        self.dropped: list[Dropped] = []

    def keep(self, name: str, fits: Callable[[Candidate], bool], reason: str, refusal: EmbedrouteError | None = None) -> None:
        kept = [candidate for candidate in self.left if fits(candidate)]
        if len(kept) == len(self.left):
            return
        self.dropped += [Dropped(candidate, name, reason) for candidate in self.left if candidate not in kept]
        self.left = kept
        if not kept:
            raise refusal or NoEligibleProvider(
                f"No provider of this model is left: '{name}' took out the last ({reason}).", param="provider"
            )


def _filter_by_preferences(sieve: _Sieve, wishes: Preferences, caller: Caller, around: Surroundings) -> None:
    for names in (wishes.only, caller.only or None, around.only or None):
        if names is not None:
            sieve.keep("only", lambda it, names=names: _among(it, names), "not in the list")
    ignored = (*(wishes.ignore or ()), *caller.ignore, *around.ignore)
    sieve.keep("ignore", lambda it: not _among(it, ignored), "in the list")
    listed = wishes.order
    if wishes.allow_fallbacks is False and listed is not None:
        sieve.keep("order", lambda it: _among(it, listed), "not in the list, and allow_fallbacks is false")
    if not wishes.include_alpha:
        sieve.keep("include_alpha", lambda it: it.stage != "alpha", "alpha stage")
    for name, wanted, fits, reason in _policies(wishes):
        if wanted:
            sieve.keep(name, fits, reason)


def _among(candidate: Candidate, names: Iterable[str]) -> bool:
    return any(candidate.named(name) for name in names)


def _policies(wishes: Preferences) -> Iterable[tuple[str, bool, Callable[[Candidate], bool], str]]:
    caps = wishes.max_price.given() if wishes.max_price else {}
    quantizations = wishes.quantizations or ()
    return (
        (
            "data_collection",
            wishes.data_collection == "deny",
            lambda it: it.data_collection == "deny",
            "not declared to deny it",
        ),
        ("zdr", bool(wishes.zdr), lambda it: it.zdr is True, "not declared zero data retention"),
        (
            "enforce_distillable_text",
            bool(wishes.enforce_distillable_text),
            lambda it: it.distillable is True,
            "not declared distillable",
        ),
        ("quantizations", bool(quantizations), lambda it: it.quantization in quantizations, "another quantization"),
        ("max_price", bool(caps), lambda it: affordable(it.prices, caps), "dearer than the cap, or of unknown price"),
    )


def affordable(prices: Mapping[str, Decimal], caps: Mapping[str, Decimal]) -> bool:
    """Whether known prices stay within all caps; without a prompt price nothing does, kinds not named cost 0."""
    return "prompt" in prices and all(prices.get(kind, Decimal(0)) <= cap for kind, cap in caps.items())


def _parameters(sieve: _Sieve, model: Model, job: Job) -> Parameters:
    """Fold the namespace that acts into the neutral parameters; the candidates that do not speak it drop out."""
    spoken = next(
        (name for name in NAMESPACES if _given(job, name) and any(name in it.accepts.options for it in sieve.left)),
        None,
    )
    if spoken is None:
        if job.preferences.require_parameters and (_given(job, "google") or _given(job, "mistral")):
            raise InvalidRequest(
                "'embedding_options' name an API that no provider of this model speaks.", param="embedding_options"
            )
        return _checked(model, job.dimensions, job.input_type)
    sieve.keep("embedding_options", lambda it: spoken in it.accepts.options, f"does not speak {spoken}")
    google, mistral = job.options.google, job.options.mistral
    if spoken == "google" and google:
        task = GOOGLE_TASKS[google.task_type] if google.task_type else None
        size = google.output_dimensionality
        return _checked(model, job.dimensions or size, job.input_type or task, namespace="google", title=google.title)
    size, dtype = (mistral.output_dimension, mistral.output_dtype) if mistral else (None, None)
    return _checked(model, job.dimensions or size, job.input_type, dtype or "float", namespace="mistral")


def _given(job: Job, namespace: str) -> bool:
    options = getattr(job.options, namespace)
    return options is not None and any(value is not None for value in msgspec.structs.astuple(options))


def _checked(
    model: Model,
    size: int | None,
    input_type: str | None,
    dtype: str = "float",
    *,
    namespace: str | None = None,
    title: str | None = None,
) -> Parameters:
    own = model.dimensions
    if size is not None and own is not None and (fault := _width_fault(model, own, size)):
        raise InvalidRequest(f"'dimensions' {fault}", param="dimensions")
    return Parameters(
        width=size or own,
        dimensions=None if size == own else size,
        # A model that tells no types apart gives the same vector for all of them, so they share one.
        input_type=None if model.input_types == [] else input_type,
        dtype=dtype,
        namespace=namespace,
        title=title,
    )


def _width_fault(model: Model, own: int, size: int) -> str | None:
    if size == own:
        return None
    if model.dimensions_allowed:
        allowed = sorted({*model.dimensions_allowed, own})
        return None if size in allowed else f"must be one of {', '.join(map(str, allowed))} for this model."
    if not model.matryoshka:
        return f"must be {own} for this model; its vectors cannot be shortened."
    least = model.dimensions_min or 1
    return None if least <= size <= own else f"must be from {least} to {own} for this model."


def _filter_by_parameters(sieve: _Sieve, model: Model, job: Job, wanted: Parameters) -> None:
    needs = modalities_of(job.inputs)
    if job.kind is Kind.PARTS:
        _filter_by_modality(sieve, model, job, needs)
    elif job.kind is Kind.TOKENS:
        refusal = InvalidRequest(
            "'input' holds token ids, which no provider of this model takes; send text.",
            param="input",
            code="unsupported_modality",
        )
        sieve.keep("input", lambda it: it.accepts.tokens, "takes no token ids", refusal)
    refusal = InvalidRequest("'dimensions' is honoured by no provider of this model.", param="dimensions")
    sieve.keep("dimensions", lambda it: _gives_width(it, model, wanted), "cannot give this width", refusal)
    refusal = InvalidRequest("'input_type' is honoured by no provider of this model; leave it out.", param="input_type")
    sieve.keep(
        "input_type",
        lambda it: wanted.input_type is None or honours_type(it, model, wanted.input_type, job.kind),
        "takes no such input type",
        refusal,
    )
    param = "embedding_options.mistral.output_dtype"
    refusal = InvalidRequest(f"'{param}' is honoured by no provider of this model.", param=param)
    sieve.keep("output_dtype", lambda it: wanted.dtype in it.accepts.dtypes, "does not give such numbers", refusal)
    if job.preferences.require_parameters and job.user is not None:
        sieve.keep("require_parameters", lambda it: it.accepts.user, "does not take 'user'")


def _filter_by_modality(sieve: _Sieve, model: Model, job: Job, needs: frozenset[str]) -> None:
    refusal = InvalidRequest(
        f"'input' holds {' and '.join(sorted(needs))} parts, which no provider of this model takes.",
        param="input",
        code="unsupported_modality",
    )
    declared = frozenset(model.modalities) if model.modalities else None
    if declared is not None and not needs <= declared:
        sieve.keep("input", lambda _: False, "the model has no such modality", refusal)
    # Content parts are a multimodal API's way to speak; a text API has no room even for text parts.
    sieve.keep(
        "input",
        lambda it: len(it.accepts.modalities) > 1 and needs <= set(it.accepts.modalities),
        "has no such modality",
        refusal,
    )
    if any(isinstance(part, ImagePart) and part.image_url.url.startswith("https:") for item in job.inputs for part in item):
        sieve.keep("input", lambda it: it.accepts.fetches, "does not fetch https images", refusal)


def _gives_width(candidate: Candidate, model: Model, wanted: Parameters) -> bool:
    if wanted.dimensions is None or candidate.accepts.dimensions:
        return True
    return model.dimensions is not None and wanted.dtype == "float"


def honours_type(candidate: Candidate, model: Model, input_type: str, kind: Kind) -> bool:
    """Whether the API takes an input type itself, or the model's config gives a text prefix for it."""
    return input_type in candidate.accepts.input_types or (kind is Kind.TEXT and input_type in (model.prefixes or {}))


def order(candidates: Sequence[Candidate], job: Job, suffix: str | None, around: Surroundings) -> list[Candidate]:
    """Put candidates in the order in which they are tried."""
    wishes = job.preferences
    listed = wishes.order or []
    sort = wishes.sort_key() or suffix
    if sort:
        ranked = sorted(candidates, key=lambda it: _rank(it, sort, around))
    elif listed:
        ranked = sorted(candidates, key=lambda it: _rank(it, "price", around))
    else:
        ranked = _balanced(candidates, around)
    ranked = sorted(ranked, key=lambda it: it.stage != "stable")
    ranked = sorted(ranked, key=lambda it: not _as_fast_as_preferred(it, wishes, around))
    ranked = sorted(ranked, key=lambda it: next((at for at, name in enumerate(listed) if it.named(name)), len(listed)))
    return ranked[:1] if wishes.allow_fallbacks is False and not listed else ranked


_LAST: Final = float("inf")


def _rank(candidate: Candidate, sort: str, around: Surroundings) -> tuple[float | Decimal, ...]:
    health, price = around.health(candidate), candidate.prices.get("prompt", Decimal("Infinity"))
    if sort == "latency":
        return (_LAST if (latency := health.latency(50, around.now)) is None else latency,)
    if sort == "throughput":
        return (_LAST if (rate := health.throughput(50, around.now)) is None else -rate,)
    return (-candidate.quality, price) if sort == "exacto" else (price,)


def _balanced(candidates: Sequence[Candidate], around: Surroundings) -> list[Candidate]:
    if len(candidates) == 1:
        return list(candidates)
    failing = [it for it in candidates if around.health(it).failing(around.now)]
    stable = [it for it in candidates if it not in failing]
    return [*_drawn(stable, around.random), *_drawn(failing, around.random)]


def _drawn(candidates: Sequence[Candidate], random: Callable[[], float]) -> list[Candidate]:
    """Draw without replacement, each time with weight 1/price²; free endpoints come before all others."""
    left, drawn = list(candidates), list[Candidate]()
    while left:
        marks = list(accumulate(draw_weights(left)))
        mark = random() * marks[-1]
        drawn.append(left.pop(next((at for at, end in enumerate(marks) if mark < end), len(left) - 1)))
    return drawn


def draw_weights(candidates: Sequence[Candidate]) -> list[float]:
    """The weight of each candidate in a draw: 1/price², an unknown price counting as the dearest known one."""
    known = [it.prices["prompt"] for it in candidates if "prompt" in it.prices]
    if not known:
        return [it.weight for it in candidates]
    prices = [it.prices.get("prompt", max(known)) for it in candidates]
    if not all(prices):
        return [float(price == 0) for price in prices]
    return [float((min(known) / price) ** 2) for price in prices]


def _as_fast_as_preferred(candidate: Candidate, wishes: Preferences, around: Surroundings) -> bool:
    if wishes.preferred_max_latency is None and wishes.preferred_min_throughput is None:
        return True
    health, now = around.health(candidate), around.now
    slow = any(
        (seen := health.latency(at, now)) is not None and seen > most
        for at, most in cutoffs(wishes.preferred_max_latency).items()
    )
    weak = any(
        (seen := health.throughput(at, now)) is not None and seen < least
        for at, least in cutoffs(wishes.preferred_min_throughput).items()
    )
    return not slow and not weak
