"""What in a config cannot be true, or names what is not there: each with its place, so that none starts quietly wrong.

Joins what the operator says with what is shipped into the directory of all models; built once, mistakes named.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, cast, get_args

import msgspec

from embedroute.backend import Accepts, BackendBase
from embedroute.config import (
    ALL_READ,
    ApiKey,
    Config,
    Endpoint,
    KnownProvider,
    Modality,
    Model,
    Provider,
    UnknownFields,
    convert_fields,
    quoted,
)
from embedroute.errors import EmbedrouteError
from embedroute.protocol import NEUTRAL, SPELLINGS, Dtype, EmbeddingOptions
from embedroute.routing.registry import ModelRegistry, ResolvedEndpoint, Route, is_known, normalise
from embedroute.text import did_you_mean, echo

SLUG: Final = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9._-]+)?")


def width_faults(model: Model) -> Iterable[str]:
    """Name the widths of a model that are over its own."""
    for field, width in (
        ("dimensions_allowed", max(model.dimensions_allowed or [0])),
        ("dimensions_min", model.dimensions_min),
    ):
        if model.dimensions and width and width > model.dimensions:
            yield f"{field} holds a width over dimensions = {model.dimensions}"


def contradictions(
    route: Route, known_width: Callable[[ResolvedEndpoint], int | None]
) -> Iterable[str]:
    """Name the endpoints whose facts cannot be true together with the model's, or with each other's."""
    due = route.model.dimensions
    modalities = route.model.modalities or ()
    names = [it.name for it in route.candidates]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"two endpoints are {name}; name it once"
    for it in route.candidates:
        if modalities and not set(modalities) & set(it.accepts.modalities):
            yield f"the endpoint {it.name} takes {_listed(it.accepts.modalities)}, the model {_listed(modalities)}"
        if not (it.accepts.texts or it.accepts.tokens or len(it.accepts.modalities) > 1):
            yield f"the endpoint {it.name} accepts no kind of input"
        width = known_width(it)
        due = due or width
        if width and width != due:
            yield f"the endpoint {it.name} gives vectors of {width} numbers, not {due}: another vector space"


def check_names(config: Config, directory: ModelRegistry, unread: UnknownFields) -> Iterable[str]:
    """Name the slugs that are not well formed or alike, and the lists and fallbacks that name nobody."""
    slugs: dict[str, str] = {}
    for slug in config.providers:
        place = f"[providers.{quoted(slug)}]"
        if not SLUG.fullmatch(slug):
            yield f"{place} a slug is lower-case letters, digits, '.', '_' and '-', with at most one '/'"
        if (other := slugs.setdefault(normalise(slug), slug)) != slug:
            yield f'{place} is the same name as "{other}": case, dots, spaces and underscores do not count'
    for name, model in config.models.items():
        hidden = unread.at("providers") or unread.at("models")
        if model.fallback == name or not (
            model.fallback is None or model.fallback in directory.routes or hidden
        ):
            yield f'[models.{quoted(name)}] fallback "{model.fallback}" is not another model of this config'
    if any(unread.at("providers", slug, "vendor") for slug in ("", *config.providers)):
        return
    tables = {
        "gateway": config.gateway,
        **{f"keys.{quoted(name)}": key for name, key in config.keys.items()},
    }
    for place, table in tables.items():
        for field, names in (("only", table.only), ("ignore", table.ignore)):
            yield from (
                f"[{place}] {field}: {fault}" for fault in _unknown(names, directory.known_names)
            )


def check_key_models(
    config: Config, directory: ModelRegistry, unread: UnknownFields
) -> Iterable[str]:
    """Name the models that a key may use and that do not exist."""
    for name, key in config.keys.items():
        for model in () if _unsure(unread) else key.models or ():
            try:
                _meant(directory, model)
            except EmbedrouteError as error:
                yield f"[keys.{quoted(name)}] models: {error.message}"


def _unsure(unread: UnknownFields) -> bool:
    """Whether an endpoint may be unknown, and with it what its provider calls a model."""
    return unread.at("providers") or any(
        it[0] == "models" and it[2:3] in ((), ("endpoints",)) for it in unread.places
    )


def resolve_key_models(config: Config, directory: ModelRegistry) -> Mapping[str, ApiKey]:
    """The keys, each with the models that its list means by their own names, to which every request's name comes down."""
    return {
        name: msgspec.structs.replace(
            key, models=None if key.models is None else [_meant(directory, it) for it in key.models]
        )
        for name, key in config.keys.items()
    }


def _meant(directory: ModelRegistry, name: str) -> str:
    route = directory.resolve(name)
    whole = directory.routes.get(route.name, route)
    if len(route.candidates) < len(whole.candidates):
        raise EmbedrouteError(
            f"{echo(name)} is only some of the endpoints of {echo(route.name)}; name the model itself, and providers in 'only'"
        )
    return route.name


def _unknown(names: Sequence[str], known: frozenset[str]) -> Iterable[str]:
    return (
        f'"{name}" is no known provider{did_you_mean(name, sorted(known))}'
        for name in names
        if not is_known(name, known)
    )


def _listed(words: Iterable[str]) -> str:
    return " and ".join(words)


WORDS: Final[Mapping[str, Sequence[str]]] = {
    "modalities": get_args(Modality),
    "input_types": tuple(SPELLINGS),
    "dtypes": get_args(Dtype),
    "options": EmbeddingOptions.__struct_fields__,
}
"""The words that each list of ``accepts`` may hold."""


PLACEHOLDER: Final = BackendBase()
"""For what could not be made, whose mistake is told already: all that names it is found, none of it is judged."""


def build_registry(
    config: Config,
    backends: Mapping[str, BackendBase],
    shipped: Mapping[str, Model],
    known: Mapping[str, KnownProvider],
    bases: Mapping[str, str],
    unread: UnknownFields = ALL_READ,
) -> tuple[ModelRegistry, list[str]]:
    """Join what the operator says with what is shipped; mistakes are named in the second part, with their place.

    ``backends`` maps each configured slug to its backend; one that could not be made has its mistake already, as has
    what is ``unread``. ``bases`` maps a slug to that of the known row about it, if there is one.
    """
    building = _RegistryBuilder(config, backends, known, bases, shipped, unread)
    routes = {name: building.declared(name, model) for name, model in config.models.items()}
    for name, facts in shipped.items():
        if name not in routes and any(
            endpoint.provider in config.providers for endpoint in facts.endpoints
        ):
            routes[name] = building.route(name, facts)
    directory = ModelRegistry(
        routes=routes,
        providers={
            slug: building.candidate(Endpoint(provider=slug), slug) for slug in config.providers
        },
        known_names=building.known_names(),
        shipped=frozenset(shipped),
    )
    return directory, [
        *building.mistakes,
        *check_names(config, directory, unread),
        *check_key_models(config, directory, unread),
    ]


class _RegistryBuilder:
    """One pass over a config that gathers its mistakes."""

    def __init__(
        self,
        config: Config,
        backends: Mapping[str, BackendBase],
        known: Mapping[str, KnownProvider],
        bases: Mapping[str, str],
        shipped: Mapping[str, Model],
        unread: UnknownFields,
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
        lost = {
            it: getattr(Model(), it)
            for it in Model.__struct_fields__
            if self.unread.at("models", name, it)
        }
        model = msgspec.structs.replace(
            said.over(self.shipped.get(name, Model()), self.bases), **lost
        )
        route = self.route(name, self.in_neutral_words(place, model), said.endpoints)
        if (
            not route.candidates
            and not self.unread.at("models", name, "endpoints")
            and not self.unread.at("providers")
        ):
            self.mistakes.append(
                f"[{place}] has no endpoint: name at least one configured provider"
            )
        judged = msgspec.structs.replace(
            route, candidates=[it for it in route.candidates if it.backend is not PLACEHOLDER]
        )
        faults = (
            *self.unknown_providers(said),
            *width_faults(model),
            *contradictions(judged, self.known_width),
        )
        self.mistakes += [f"[{place}] {fault}" for fault in faults]
        return route

    def unknown_providers(self, said: Model) -> Iterable[str]:
        """Name the providers of endpoints that are not configured."""
        slugs = [
            it.provider
            for it in said.endpoints
            if it.provider and it.provider not in self.config.providers
        ]
        for slug in () if self.unread.at("providers") else slugs:
            advice = did_you_mean(slug, list(self.config.providers))
            yield f'endpoint names the provider "{slug}", which no [providers] table configures{advice}'

    def in_neutral_words(self, place: str, model: Model) -> Model:
        """Fold the vendor spellings in ``input_types`` and ``prefixes``."""
        types, prefixes = model.input_types, model.prefixes or {}
        for field, words in (("input_types", types or ()), ("prefixes", prefixes)):
            wrong = [word for word in words if word.lower() not in NEUTRAL]
            self.mistakes += [
                f'[{place}] {field}: "{it}" is no input type{_choose(it, tuple(SPELLINGS))}'
                for it in wrong
            ]
        if types == [] and any(prefixes.values()):
            self.mistakes.append(
                f"[{place}] prefixes make no sense for a model whose input_types are []"
            )
        return msgspec.structs.replace(
            model,
            input_types=None
            if types is None
            else [NEUTRAL.get(word.lower(), word) for word in types],
            prefixes=None
            if model.prefixes is None
            else {NEUTRAL.get(it.lower(), it): text for it, text in prefixes.items()},
        )

    def route(self, name: str, model: Model, said: Sequence[Endpoint] = ()) -> Route:
        """Make a route; of endpoints that are not ``said``, only those of configured providers belong to it."""
        endpoints = [it for it in model.endpoints if said or it.provider in self.config.providers]
        found = [
            self.candidate(it, name, str(at) if said else None) for at, it in enumerate(endpoints)
        ]
        return Route(name=name, public_name=name, model=model, candidates=found)

    def candidate(self, endpoint: Endpoint, name: str, at: str | None = None) -> ResolvedEndpoint:
        slug = endpoint.provider
        provider = self.config.providers.get(slug, Provider())
        known = self.known.get(slug.partition("/")[0]) or self.row(slug)
        return ResolvedEndpoint(
            provider=slug,
            model=endpoint.model or name,
            backend=PLACEHOLDER
            if at and self.unread.within("models", name, "endpoints", at)
            else self.backend(slug),
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
        return self.backends.get(slug, PLACEHOLDER)

    def row(self, slug: str) -> KnownProvider | None:
        return self.known.get(self.bases.get(slug, ""))

    def accepts(self, endpoint: Endpoint, name: str) -> Accepts:
        backend, row = self.backend(endpoint.provider), self.row(endpoint.provider)
        shipped: Mapping[str, object] = row.accepts if row else {}
        place = f"models.{quoted(name)}.endpoints.{quoted(endpoint.provider)}.accepts"
        found = convert_fields(place, {**shipped, **endpoint.accepts}, Accepts, {})
        fitted, mistakes = found.values, found.mistakes
        for field, words in WORDS.items():
            wrong = [
                word for word in cast("Sequence[str]", fitted.get(field, ())) if word not in words
            ]
            mistakes += [
                f'[{place}] {field}: "{word}" is not known{_choose(word, words)}' for word in wrong
            ]
        accepts = backend.accepts
        for field, value in fitted.items():
            try:
                accepts = msgspec.structs.replace(accepts, **{field: value})
            except ValueError as error:
                mistakes.append(f"[{place}] {error}")
        self.mistakes += mistakes
        return accepts

    def known_width(self, it: ResolvedEndpoint) -> int | None:
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
