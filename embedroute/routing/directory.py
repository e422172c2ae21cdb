"""What can be asked for: public model names, each with the endpoints that may serve it; built once from the config."""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec

from embedroute.backend import Accepts, BackendBase
from embedroute.config import Config
from embedroute.errors import InvalidRequest, ModelNotFound, did_you_mean, echo
from embedroute.models import Endpoint, KnownProvider, Model, Provider, Stage
from embedroute.reading import quoted

SLUG: Final = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9._-]+)?")
_RUNS: Final = re.compile(r"[ ._]+")

SUFFIXES: Final = {":floor": "price", ":nitro": "throughput"}
"""Model suffix → what it sorts by (OpenRouter's shorthands)."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An endpoint that may serve a request, with every fact that a decision needs.

    ``prices`` are USD per million tokens (``prompt``, ``completion``) or per unit; empty when unknown.
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

    @property
    def name(self) -> str:
        """Provider and upstream model, which together name the endpoint in traces and logs."""
        return f"{self.provider}:{self.model}"

    def named(self, name: str) -> bool:
        """Whether a name of a client's list means this endpoint: its slug, the slug's base, or its vendor."""
        plain = normalise(name)
        return plain in (normalise(self.provider), normalise(self.provider.partition("/")[0]), normalise(self.vendor))


class Route(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A model with its facts and candidates; ``sort`` is what a suffix of the name asks for.

    ``name`` is the vector space's identity, ``public`` what an answer calls the model. They differ only for an
    undeclared model, whose space is the provider's own.
    """

    name: str
    public: str
    model: Model
    candidates: Sequence[Candidate]
    sort: str | None = None


def normalise(name: str) -> str:
    """Fold a provider's name: lower case, every run of spaces, dots and underscores a hyphen."""
    return _RUNS.sub("-", name.strip().lower())


class Directory(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Public model names → routes, plus what is needed to read ``provider/upstream-model`` names."""

    routes: Mapping[str, Route]
    providers: Mapping[str, Candidate]
    known_names: frozenset[str]

    def resolve(self, name: str, hint: str | None = None) -> Route:
        """Find the route that a model name, with an optional provider hint, stands for.

        Raises:
            InvalidRequest: the hint is no configured provider.
            ModelNotFound: nobody knows the model.
        """
        if hint is not None:
            return self._hinted(name, hint)
        route = self.routes.get(name) or self._suffixed(name, None) or self._prefixed(name)
        if route is None:
            hint = did_you_mean(name, list(self.routes)) or "; GET /v1/models lists those that do."
            raise ModelNotFound(f"The model {echo(name)} does not exist here{hint}", param="model")
        return route

    def _hinted(self, name: str, hint: str) -> Route:
        slugs = [slug for slug, provider in self.providers.items() if provider.named(hint)]
        if not slugs:
            raise InvalidRequest(
                f"'provider' {echo(hint)} is not configured here; use one of {', '.join(self.providers)}.", param="provider"
            )
        bare = next((name[len(slug) + 1 :] for slug in slugs if name.startswith(f"{slug}/")), name)
        for called in (name, bare):
            route = self.routes.get(called) or self._suffixed(called, hint)
            if route and (pinned := [candidate for candidate in route.candidates if candidate.named(hint)]):
                return msgspec.structs.replace(route, candidates=pinned)
        return self._undeclared(slugs[0], bare)

    def _suffixed(self, name: str, hint: str | None) -> Route | None:
        for suffix, sort in SUFFIXES.items():
            if name.endswith(suffix) and len(name) > len(suffix):
                try:
                    route = self.resolve(name.removesuffix(suffix), hint)
                except ModelNotFound:
                    return None
                return msgspec.structs.replace(route, sort=sort)
        return None

    def _prefixed(self, name: str) -> Route | None:
        slugs = [slug for slug in self.providers if name.startswith(f"{slug}/") and len(name) > len(slug) + 1]
        if not slugs:
            return None
        slug = max(slugs, key=len)
        upstream = name[len(slug) + 1 :]
        for route in self.routes.values():
            pinned = [
                candidate
                for candidate in route.candidates
                if candidate.provider == slug and upstream in (route.name, candidate.model)
            ]
            if pinned:
                return msgspec.structs.replace(route, candidates=pinned)
        return self._undeclared(slug, upstream)

    def _undeclared(self, slug: str, upstream: str) -> Route:
        return Route(
            name=f"{slug}/{upstream}",
            public=upstream,
            model=Model(),
            candidates=[msgspec.structs.replace(self.providers[slug], model=upstream)],
        )


def build_directory(
    config: Config,
    backends: Mapping[str, BackendBase],
    shipped: Mapping[str, Model],
    known: Mapping[str, KnownProvider],
) -> tuple[Directory, list[str]]:
    """Join what the operator says with what is shipped; mistakes are named in the second part, with their place.

    ``backends`` maps each configured slug to its backend; one that could not be made has its mistake already.
    """
    building = _Building(config, backends, known)
    declared = {name: model.over(shipped.get(name, Model())) for name, model in config.models.items()}
    routes = {
        name: building.route(name, model, explicit=bool(config.models[name].endpoints)) for name, model in declared.items()
    }
    for name, facts in shipped.items():
        if name not in routes and any(endpoint.provider in backends for endpoint in facts.endpoints):
            routes[name] = building.route(name, facts, explicit=False)
    building.check(routes)
    names = {normalise(name) for slug, row in known.items() for name in (slug, row.vendor)}
    names |= {
        normalise(part)
        for slug, provider in config.providers.items()
        for part in (slug, slug.partition("/")[0], provider.vendor or slug)
    }
    providers = {slug: building.candidate(Endpoint(provider=slug), slug) for slug in backends}
    return Directory(routes=routes, providers=providers, known_names=frozenset(names)), building.mistakes


class _Building:
    """One pass over a config that gathers its mistakes."""

    def __init__(self, config: Config, backends: Mapping[str, BackendBase], known: Mapping[str, KnownProvider]) -> None:
        self.config = config
        self.backends = backends
        self.known = known
        self.mistakes: list[str] = []

    def route(self, name: str, model: Model, *, explicit: bool) -> Route:
        place = f"models.{quoted(name)}"
        endpoints = [endpoint for endpoint in model.endpoints if endpoint.provider in self.backends]
        if explicit:
            self.mistakes += [
                f'[{place}] endpoint names the provider "{endpoint.provider}", which no [providers] table configures'
                f"{did_you_mean(endpoint.provider, list(self.backends))}"
                for endpoint in model.endpoints
                if endpoint.provider not in self.config.providers
            ]
        elif not endpoints and len(self.backends) == len(self.config.providers):
            self.mistakes.append(f"[{place}] has no endpoint: name at least one configured provider")
        allowed = model.dimensions_allowed or []
        if allowed and model.dimensions and max(allowed) > model.dimensions:
            self.mistakes.append(f"[{place}] dimensions_allowed holds a width over dimensions = {model.dimensions}")
        return Route(name=name, public=name, model=model, candidates=[self.candidate(endpoint, name) for endpoint in endpoints])

    def candidate(self, endpoint: Endpoint, name: str) -> Candidate:
        slug = endpoint.provider
        provider = self.config.providers.get(slug, Provider())
        known = self.known.get(slug.partition("/")[0])
        return Candidate(
            provider=slug,
            model=endpoint.model or name,
            backend=self.backends[slug],
            accepts=self.accepts(endpoint, name, known),
            vendor=provider.vendor or (known.vendor if known else slug),
            prices=endpoint.prices(),
            data_collection=provider.data_collection,
            zdr=provider.zdr,
            distillable=provider.distillable,
            stage=provider.stage,
            quantization=endpoint.quantization,
            weight=endpoint.weight,
            quality=endpoint.quality,
            micro_batch_ms=endpoint.micro_batch_ms,
        )

    def accepts(self, endpoint: Endpoint, name: str, known: KnownProvider | None) -> Accepts:
        backend = self.backends[endpoint.provider]
        # The table's facts are about the API behind a known slug, not about another backend put there.
        shipped: dict[str, Any] = (
            known.accepts if known and self.config.providers.get(endpoint.provider, Provider()).backend is None else {}
        )
        merged = {**msgspec.structs.asdict(backend.accepts), **shipped, **endpoint.accepts}
        try:
            return msgspec.convert(merged, Accepts)
        except msgspec.ValidationError as error:
            self.mistakes.append(f"[models.{quoted(name)}] accepts of endpoint {endpoint.provider}: {error}".replace("`", ""))
            return backend.accepts

    def check(self, routes: Mapping[str, Route]) -> None:
        for slug in self.config.providers:
            if not SLUG.fullmatch(slug):
                self.mistakes.append(
                    f"[providers.{quoted(slug)}] a slug is lower-case letters, digits, '.', '_' and '-', with at most one '/'"
                )
        for name, model in self.config.models.items():
            if model.fallback is not None and (model.fallback == name or model.fallback not in routes):
                self.mistakes.append(f'[models.{quoted(name)}] fallback "{model.fallback}" is not another model of this config')
