"""Joins what the operator says with what is shipped into the directory of all models; built once, mistakes named."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, cast, get_args

import msgspec

from embedroute.backend import Accepts, BackendBase
from embedroute.config import Config
from embedroute.models import Endpoint, KnownProvider, Modality, Model, Provider
from embedroute.reading import ALL_READ, Unread, fit, quoted
from embedroute.routing.checks import contradictions, misheld, misnamed, width_faults
from embedroute.routing.routes import Candidate, Directory, Route, normalise
from embedroute.wire.requests import Dtype, EmbeddingOptions
from embedroute.wire.vocabulary import NEUTRAL, SPELLINGS
from embedroute.wording import did_you_mean

WORDS: Final[Mapping[str, Sequence[str]]] = {
    "modalities": get_args(Modality),
    "input_types": tuple(SPELLINGS),
    "dtypes": get_args(Dtype),
    "options": EmbeddingOptions.__struct_fields__,
}
"""The words that each list of ``accepts`` may hold."""


STAND_IN: Final = BackendBase()
"""For what could not be made, whose mistake is told already: all that names it is found, none of it is judged."""


def build_directory(
    config: Config,
    backends: Mapping[str, BackendBase],
    shipped: Mapping[str, Model],
    known: Mapping[str, KnownProvider],
    bases: Mapping[str, str],
    unread: Unread = ALL_READ,
) -> tuple[Directory, list[str]]:
    """Join what the operator says with what is shipped; mistakes are named in the second part, with their place.

    ``backends`` maps each configured slug to its backend; one that could not be made has its mistake already, as has
    what is ``unread``. ``bases`` maps a slug to that of the known row about it, if there is one.
    """
    building = _Building(config, backends, known, bases, shipped, unread)
    routes = {name: building.declared(name, model) for name, model in config.models.items()}
    for name, facts in shipped.items():
        if name not in routes and any(endpoint.provider in config.providers for endpoint in facts.endpoints):
            routes[name] = building.route(name, facts)
    directory = Directory(
        routes=routes,
        providers={slug: building.candidate(Endpoint(provider=slug), slug) for slug in config.providers},
        known_names=building.known_names(),
        shipped=frozenset(shipped),
    )
    return directory, [*building.mistakes, *misnamed(config, directory, unread), *misheld(config, directory, unread)]


class _Building:
    """One pass over a config that gathers its mistakes."""

    def __init__(
        self,
        config: Config,
        backends: Mapping[str, BackendBase],
        known: Mapping[str, KnownProvider],
        bases: Mapping[str, str],
        shipped: Mapping[str, Model],
        unread: Unread,
    ) -> None:
        self.config = config
        self.backends = backends
        self.known = known
        self.bases = bases
        self.shipped = shipped
        self.unread = unread
        self.widths = {
            (endpoint.provider, endpoint.model or name): facts.dimensions
            for name, facts in shipped.items()
            for endpoint in facts.endpoints
        }
        self.mistakes: list[str] = []

    def declared(self, name: str, said: Model) -> Route:
        """Make the route of a model that the config names."""
        place = f"models.{quoted(name)}"
        # What is said and cannot be read must not be taken for what is shipped.
        lost = {it: getattr(Model(), it) for it in Model.__struct_fields__ if self.unread.at("models", name, it)}
        model = msgspec.structs.replace(said.over(self.shipped.get(name, Model()), self.bases), **lost)
        route = self.route(name, self.in_neutral_words(place, model), said.endpoints)
        if not route.candidates and not self.unread.at("models", name, "endpoints") and not self.unread.at("providers"):
            self.mistakes.append(f"[{place}] has no endpoint: name at least one configured provider")
        judged = msgspec.structs.replace(route, candidates=[it for it in route.candidates if it.backend is not STAND_IN])
        faults = (*self.strangers(said), *width_faults(model), *contradictions(judged, self.known_width))
        self.mistakes += [f"[{place}] {fault}" for fault in faults]
        return route

    def strangers(self, said: Model) -> Iterable[str]:
        """Name the providers of endpoints that are not configured."""
        slugs = [it.provider for it in said.endpoints if it.provider and it.provider not in self.config.providers]
        for slug in () if self.unread.at("providers") else slugs:
            advice = did_you_mean(slug, list(self.config.providers))
            yield f'endpoint names the provider "{slug}", which no [providers] table configures{advice}'

    def in_neutral_words(self, place: str, model: Model) -> Model:
        """Fold the vendor spellings in ``input_types`` and ``prefixes``."""
        types, prefixes = model.input_types, model.prefixes or {}
        for field, words in (("input_types", types or ()), ("prefixes", prefixes)):
            wrong = [word for word in words if word.lower() not in NEUTRAL]
            self.mistakes += [f'[{place}] {field}: "{it}" is no input type{_choose(it, tuple(SPELLINGS))}' for it in wrong]
        if types == [] and any(prefixes.values()):
            self.mistakes.append(f"[{place}] prefixes make no sense for a model whose input_types are []")
        return msgspec.structs.replace(
            model,
            input_types=None if types is None else [NEUTRAL.get(word.lower(), word) for word in types],
            prefixes=None if model.prefixes is None else {NEUTRAL.get(it.lower(), it): text for it, text in prefixes.items()},
        )

    def route(self, name: str, model: Model, said: Sequence[Endpoint] = ()) -> Route:
        """Make a route; of endpoints that are not ``said``, only those of configured providers belong to it."""
        endpoints = [it for it in model.endpoints if said or it.provider in self.config.providers]
        found = [self.candidate(it, name, str(at) if said else None) for at, it in enumerate(endpoints)]
        return Route(name=name, public=name, model=model, candidates=found)

    def candidate(self, endpoint: Endpoint, name: str, at: str | None = None) -> Candidate:
        slug = endpoint.provider
        provider = self.config.providers.get(slug, Provider())
        known = self.known.get(slug.partition("/")[0]) or self.row(slug)
        return Candidate(
            provider=slug,
            model=endpoint.model or name,
            backend=STAND_IN if at and self.unread.within("models", name, "endpoints", at) else self.backend(slug),
            accepts=self.accepts(endpoint, name),
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
            rest=provider.connection_rest_ms / 1000,
        )

    def backend(self, slug: str) -> BackendBase:
        return self.backends.get(slug, STAND_IN)

    def row(self, slug: str) -> KnownProvider | None:
        return self.known.get(self.bases.get(slug, ""))

    def accepts(self, endpoint: Endpoint, name: str) -> Accepts:
        backend, row = self.backend(endpoint.provider), self.row(endpoint.provider)
        shipped: Mapping[str, object] = row.accepts if row else {}
        place = f"models.{quoted(name)}.endpoints.{quoted(endpoint.provider)}.accepts"
        found = fit(place, {**shipped, **endpoint.accepts}, Accepts, {})
        fitted, mistakes = found.values, found.mistakes
        for field, words in WORDS.items():
            wrong = [word for word in cast("Sequence[str]", fitted.get(field, ())) if word not in words]
            mistakes += [f'[{place}] {field}: "{word}" is not known{_choose(word, words)}' for word in wrong]
        accepts = backend.accepts
        for field, value in fitted.items():
            try:
                accepts = msgspec.structs.replace(accepts, **{field: value})
            except ValueError as error:
                mistakes.append(f"[{place}] {error}")
        self.mistakes += mistakes
        return accepts

    def known_width(self, it: Candidate) -> int | None:
        provider = self.config.providers.get(it.provider, Provider())
        # What is shipped holds for the provider's own service, not for what else an operator put under its slug.
        own = "base_url" not in provider.options
        return self.widths.get((self.bases.get(it.provider, ""), it.model)) if own else None

    def known_names(self) -> frozenset[str]:
        shipped = {name for slug, row in self.known.items() for name in (slug, row.vendor)}
        own = {
            name
            for slug, provider in self.config.providers.items()
            for name in (slug, slug.partition("/")[0], provider.vendor or slug)
        }
        return frozenset(map(normalise, shipped | own))


def _choose(word: str, words: Sequence[str]) -> str:
    return did_you_mean(word, words) or f"; use {', '.join(words)}"
