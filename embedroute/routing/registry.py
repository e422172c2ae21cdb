"""What can be asked for: public model names and ``provider/upstream-model`` names, and how both are read."""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

import msgspec

from embedroute.backend import Accepts, BackendBase
from embedroute.config import Model, Stage
from embedroute.errors import InvalidRequest, ModelNotFound, NoEligibleProvider
from embedroute.protocol import LONGEST_NAME
from embedroute.text import did_you_mean, echo

_RUNS: Final = re.compile(r"[ ._]+")

SORTS: Final = {":floor": "price", ":nitro": "throughput"}
"""Model suffix → what it sorts by (OpenRouter's shorthands)."""
INPUT_TYPES: Final = {":query": "query", ":document": "document"}
"""Model suffix → the input type that it asks for."""
SUFFIXES: Final = (*SORTS, *INPUT_TYPES)
MOST_SUFFIXES: Final = 3
"""Suffixes that one model name may have."""


class ResolvedEndpoint(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An endpoint that may serve a request, with every fact that a decision needs.

    ``prices`` are USD per million tokens (``prompt``, ``completion``) or per unit; empty when unknown. ``rest`` is the
    silence in seconds that a connection must have kept before it is used again.
    """

    provider: str
    model: str
    backend: BackendBase
    accepts: Accepts
    vendor: str = ""
    prices: Mapping[str, Decimal] = {}
    data_collection: str | None = None
    zdr: bool | None = None
    distillable: bool | None = None
    stage: Stage = "stable"
    quantization: str = "unknown"
    weight: float = 1.0
    quality: float = 1.0
    micro_batch_ms: float | None = None
    rest: float = 0.05
    name: str = ""

    def __post_init__(self) -> None:
        """Name the endpoint, for traces, logs and its health: provider and upstream model."""
        msgspec.structs.force_setattr(self, "name", f"{self.provider}:{self.model}")

    def named(self, name: str) -> bool:
        """Whether a name of a client's list means this endpoint: its slug, the slug's base, or its vendor."""
        plain = normalise(name)
        return plain in (
            normalise(self.provider),
            normalise(self.provider.partition("/")[0]),
            normalise(self.vendor),
        )


class Route(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A model with its facts and candidates; ``sort`` and ``input_type`` are what suffixes of the name ask for.

    ``name`` is what lists and keys call it, ``public_name`` what an answer does; they differ only for an undeclared model.
    ``vector_space`` is its vector space's identity: the name, but for an undeclared model, whose space is the provider's own.
    """

    name: str
    public_name: str
    model: Model
    candidates: Sequence[ResolvedEndpoint]
    sort: str | None = None
    input_type: str | None = None
    vector_space: str = ""

    def __post_init__(self) -> None:
        """A declared model is its own space."""
        if not self.vector_space:
            msgspec.structs.force_setattr(self, "vector_space", self.name)


def normalise(name: str) -> str:
    """Fold a provider's name: lower case, every run of spaces, dots and underscores a hyphen."""
    return _RUNS.sub("-", name.strip().lower())


def _begins(name: str, prefix: str) -> bool:
    return name[len(prefix) : len(prefix) + 1] == "/" and normalise(
        name[: len(prefix)]
    ) == normalise(prefix)


def is_known(name: str, known: frozenset[str]) -> bool:
    """Whether a name of a client's or an operator's list can mean a provider; ``known`` are normalised names.

    A variant that is not configured passes only where its base has no configured variants: beside
    ``tei/eu``, a ``tei/ue`` in ``ignore`` would send text to the very provider that it meant to avoid.
    """
    plain = normalise(name)
    base, _, variant = plain.partition("/")
    if plain in known or not variant:
        return plain in known
    return base in known and not any(it.startswith(f"{base}/") for it in known)


class Reading(msgspec.Struct, frozen=True):
    """One way to read a model's name: the ``name`` that is left without its last ``suffixes``, in their order."""

    name: str
    suffixes: tuple[str, ...] = ()

    def applied(self, route: Route) -> Route:
        """Add to ``route`` what the suffixes ask for; the last one sorts.

        Raises:
            InvalidRequest: two suffixes ask for different input types.
        """
        if not self.suffixes:
            return route
        types = {INPUT_TYPES[suffix] for suffix in self.suffixes if suffix in INPUT_TYPES}
        if len(types) > 1:
            raise InvalidRequest(
                "'model' ends in both ':query' and ':document'; send one of them.", param="model"
            )
        sorts = [SORTS[suffix] for suffix in self.suffixes if suffix in SORTS]
        return msgspec.structs.replace(
            route, sort=sorts[-1] if sorts else None, input_type=next(iter(types), None)
        )


def _readings(name: str) -> list[Reading]:
    """List the ways to read a model's name: as it is, and without its last one to three suffixes."""
    readings = [Reading(name)]
    while len(readings) <= MOST_SUFFIXES and (suffix := _parse_suffix(readings[-1].name)):
        longer = readings[-1]
        readings.append(Reading(longer.name.removesuffix(suffix), (suffix, *longer.suffixes)))
    return readings


def _parse_suffix(name: str) -> str | None:
    return next(
        (suffix for suffix in SUFFIXES if name.endswith(suffix) and len(name) > len(suffix)), None
    )


class ModelRegistry(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Public model names → routes, plus what is needed to read ``provider/upstream-model`` names.

    ``shipped`` are the models of the catalogue, whether or not a provider of theirs is configured.
    """

    routes: Mapping[str, Route]
    providers: Mapping[str, ResolvedEndpoint]
    known_names: frozenset[str]
    shipped: frozenset[str] = frozenset()

    def resolve(self, name: str, provider: str | None = None) -> Route:
        """Find the route that a model name, with an optional provider hint, stands for.

        Raises:
            InvalidRequest: the hint is no configured provider, or the suffixes are too many or contradict each other.
            ModelNotFound: the model is unknown.
            NoEligibleProvider: the hint is a provider that does not serve this model.
        """
        if provider is None and name in self.routes:
            return self.routes[name]
        readings = _readings(name)
        declared = next((reading for reading in readings if reading.name in self.routes), None)
        if declared is None and _parse_suffix(readings[-1].name):
            raise InvalidRequest(
                f"'model' has more than {MOST_SUFFIXES} suffixes; send fewer.", param="model"
            )
        if provider is not None:
            reading = declared or readings[-1]
            return reading.applied(self._hinted(reading.name, provider))
        if declared is not None:
            return declared.applied(self.routes[declared.name])
        # The shortest reading comes first: a suffix is part of a provider's own name only if nothing else fits.
        for reading in reversed(readings):
            if route := self._prefixed(reading.name) or self._called(reading.name):
                return reading.applied(route)
        advice = did_you_mean(name, list(self.routes)) or "; GET /v1/models lists those that do."
        raise ModelNotFound(f"The model {echo(name)} does not exist here{advice}", param="model")

    def _hinted(self, name: str, hint: str) -> Route:
        slugs = [slug for slug, provider in self.providers.items() if provider.named(hint)]
        if not slugs:
            raise InvalidRequest(
                f"'provider' {echo(hint)} is not configured here; use one of {', '.join(self.providers)}.",
                param="provider",
            )
        prefix = max((it for it in (hint, *slugs) if _begins(name, it)), key=len, default="")
        bare = name[len(prefix) + 1 :] if prefix else name
        for called in filter(None, (name, bare)):
            route = self.routes.get(called)
            if route and (
                pinned := [candidate for candidate in route.candidates if candidate.named(hint)]
            ):
                return msgspec.structs.replace(route, candidates=pinned)
        slug = next(
            (slug for slug in slugs if normalise(slug) == normalise(prefix or hint)), slugs[0]
        )
        own = self._served(slug, bare or name)
        return own or self._own_of(slug, bare or name, hint)

    def _own_of(self, slug: str, upstream: str, provider: str) -> Route:
        whole = f"{slug}/{upstream}"
        if known := {upstream, whole} & self.routes.keys():
            # Its own model of that name may be another space, which must be asked for by its own name.
            advice = (
                f", or name that provider's own model as {echo(whole)}"
                if whole not in known
                else ""
            )
            raise NoEligibleProvider(
                f"'provider' {echo(provider)} does not serve the model {echo(max(known))}; leave 'provider' out{advice}.",
                param="provider",
            )
        return self._undeclared(slug, upstream)

    def _prefixed(self, name: str) -> Route | None:
        slugs = [
            slug
            for slug in self.providers
            if name.startswith(f"{slug}/") and len(name) > len(slug) + 1
        ]
        if not slugs:
            return None
        slug = max(slugs, key=len)
        upstream = name[len(slug) + 1 :]
        return self._served(slug, upstream) or self._undeclared(slug, upstream)

    def _served(self, slug: str, upstream: str) -> Route | None:
        """Find the model that a provider serves under a name, public or its own, and pin the provider."""
        own = self.routes.get(upstream)
        for route in [*([own] if own else []), *self.routes.values()]:
            pinned = [
                it
                for it in route.candidates
                if it.provider == slug and (route is own or it.model == upstream)
            ]
            if pinned:
                return msgspec.structs.replace(route, candidates=pinned)
        return None

    def _called(self, upstream: str) -> Route | None:
        """Find the one model that a provider calls so; ``openai/text-embedding-3-small`` is OpenRouter's name for one."""
        routes = [
            route
            for route in self.routes.values()
            if any(it.model == upstream for it in route.candidates)
        ]
        return routes[0] if len(routes) == 1 else None

    def _undeclared(self, slug: str, upstream: str) -> Route:
        if len(upstream) > LONGEST_NAME:
            raise ModelNotFound(
                f"'model' names nothing that is declared here, and is longer than {LONGEST_NAME} characters.",
                param="model",
            )
        return Route(
            name=f"{slug}/{upstream}",
            # A known model of that name is another space, so then the whole name is the public one.
            public_name=f"{slug}/{upstream}"
            if upstream in self.routes or upstream in self.shipped
            else upstream,
            # Slugs and models may hold slashes: "a/b" at "c" is not "b/c" at "a".
            vector_space=f"\0{slug}\0{upstream}",
            model=Model(),
            candidates=[msgspec.structs.replace(self.providers[slug], model=upstream)],
        )
