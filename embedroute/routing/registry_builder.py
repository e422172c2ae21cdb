"""Builds the model registry from the config and the shipped catalogue, and reports all mistakes.

Each mistake is one line that starts with its place in the config.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, cast, get_args

import msgspec

from embedroute.backend import Accepts, BackendBase, Truncate, list_fields
from embedroute.config import (
    ApiKey,
    BreakerPolicy,
    Config,
    Endpoint,
    KnownProvider,
    Mistake,
    Modality,
    Model,
    Provider,
    RetryPolicy,
    TablePath,
    convert_fields,
    format_path,
    quoted,
)
from embedroute.errors import EmbedrouteError
from embedroute.protocol import NEUTRAL, SPELLINGS, CreateEmbeddingRequest, Dtype
from embedroute.routing.caller_keys import find_headers
from embedroute.routing.registry import ModelRegistry, ResolvedEndpoint, Route, is_known, normalise
from embedroute.text import did_you_mean, echo

SLUG: Final = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9._-]+)?")


def check_widths(model: Model) -> Iterable[str]:
    """Report widths of a model that exceed its ``dimensions``."""
    for field, width in (
        ("dimensions_allowed", max(model.dimensions_allowed or [0])),
        ("dimensions_min", model.dimensions_min),
    ):
        if model.dimensions and width and width > model.dimensions:
            yield f"{field} must not exceed dimensions = {model.dimensions}"


def check_endpoints(
    route: Route, known_width: Callable[[ResolvedEndpoint], int | None]
) -> Iterable[str]:
    """Report endpoints whose facts contradict those of the model or of each other."""
    expected_width = route.model.dimensions
    modalities = route.model.modalities or ()
    names = [endpoint.name for endpoint in route.candidates]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"the endpoint {name} is listed twice; list it once"
    for endpoint in route.candidates:
        accepts = endpoint.accepts
        if modalities and not set(modalities) & set(accepts.modalities):
            yield (
                f"the endpoint {endpoint.name} accepts {_join(accepts.modalities)}, "
                f"the model {_join(modalities)}"
            )
        if not (accepts.texts or accepts.tokens or len(accepts.modalities) > 1):
            yield f"the endpoint {endpoint.name} accepts no kind of input"
        width = known_width(endpoint)
        expected_width = expected_width or width
        if width and width != expected_width:
            yield (
                f"the endpoint {endpoint.name} has {width} dimensions, expected {expected_width} "
                "(different vector space)"
            )


def check_names(
    config: Config, directory: ModelRegistry, suggestions: Sequence[str]
) -> Iterable[str]:
    """Report invalid or ambiguous provider slugs, and unknown names in lists and fallbacks.

    ``suggestions`` are the names of providers that a config can use.
    """
    slugs: dict[str, str] = {}
    for slug in config.providers:
        place = f"[providers.{quoted(slug)}]"
        if not SLUG.fullmatch(slug):
            yield (
                f"{place} a slug may hold only lower-case letters, digits, '.', '_' and '-', "
                "and at most one '/'"
            )
        if (other := slugs.setdefault(normalise(slug), slug)) != slug:
            yield (
                f'{place} is the same name as "{other}": '
                "case, dots, spaces and underscores are ignored"
            )
    for name, model in config.models.items():
        is_another = model.fallback != name and model.fallback in directory.routes
        if model.fallback is not None and not is_another:
            yield Mistake(
                f'[models.{quoted(name)}] fallback "{model.fallback}" '
                f"is not another model of this config{_what_to_add(directory, model.fallback)}",
                ("providers",),
            )
    vendors = [("providers", slug, "vendor") for slug in config.providers]
    tables = {
        "gateway": config.gateway,
        **{f"keys.{quoted(name)}": key for name, key in config.keys.items()},
    }
    for place, table in tables.items():
        for field, names in (("only", table.only), ("ignore", table.ignore)):
            yield from (
                Mistake(f"[{place}] {field}: {mistake}", ("providers",), *vendors)
                for mistake in _unknown(names, directory.known_names, suggestions)
            )


def check_key_models(config: Config, directory: ModelRegistry) -> Iterable[str]:
    """Report models in the lists of keys that do not exist."""
    paths: list[TablePath] = [("providers",), ("models",)]
    for name, model in config.models.items():
        paths += _endpoint_paths(name, model)
    for name, key in config.keys.items():
        for model in key.models or ():
            try:
                _canonical_name(directory, model)
            except EmbedrouteError as error:
                advice = _what_to_add(directory, model)
                message = (
                    f'"{model}" is not a model of this config{advice}' if advice else error.message
                )
                yield Mistake(f"[keys.{quoted(name)}] models: {message}", *paths)


def _what_to_add(directory: ModelRegistry, model: str) -> str:
    """Return the end of a message about a model that does not exist."""
    tables = directory.missing_tables(model)
    return f"; it is in the catalogue, so add {tables}" if tables else ""


def _endpoint_paths(name: str, model: Model) -> list[TablePath]:
    """Return the paths of the values that identify a model's endpoints and what they accept."""
    endpoints = ("models", name, "endpoints")
    return [endpoints] + [
        (*endpoints, str(index), field)
        for index in range(len(model.endpoints))
        for field in ("provider", "model", "accepts")
    ]


def resolve_key_models(config: Config, directory: ModelRegistry) -> Mapping[str, ApiKey]:
    """Return the API keys, with their model lists resolved to canonical model names."""
    return {
        name: msgspec.structs.replace(
            key,
            models=None
            if key.models is None
            else [_canonical_name(directory, model) for model in key.models],
        )
        for name, key in config.keys.items()
    }


def _canonical_name(directory: ModelRegistry, name: str) -> str:
    route = directory.resolve(name)
    full_route = directory.routes.get(route.name, route)
    if len(route.candidates) < len(full_route.candidates):
        raise EmbedrouteError(
            f"{echo(name)} refers to one provider's endpoint of model {echo(route.name)}; "
            "list the model itself and restrict providers with 'only'"
        )
    return route.name


def _unknown(
    names: Sequence[str], known: frozenset[str], suggestions: Sequence[str]
) -> Iterable[str]:
    return (
        f'unknown provider "{name}"{did_you_mean(name, suggestions)}'
        for name in names
        if not is_known(name, known)
    )


def _join(words: Iterable[str]) -> str:
    return " and ".join(words)


WORDS: Final[Mapping[str, Sequence[str]]] = {
    "modalities": get_args(Modality),
    "input_types": tuple(SPELLINGS),
    "dtypes": get_args(Dtype),
    "truncate": get_args(Truncate),
}
"""The valid words of each list in ``accepts``."""


COMPARED: Final = ("dimensions", "dimensions_allowed", "dimensions_min", "modalities")
"""The fields of a model that are compared with each other and with the facts of its endpoints."""

PLACEHOLDER: Final = BackendBase()
"""Replaces a backend that could not be built and whose mistake is reported already.

Names that refer to it resolve, but its endpoints are not checked.
"""


def build_registry(
    config: Config,
    backends: Mapping[str, BackendBase],
    shipped: Mapping[str, Model],
    known: Mapping[str, KnownProvider],
    bases: Mapping[str, str],
    *,
    namespaces: Collection[str] = (),
    retries: RetryPolicy | None = None,
    breaker: BreakerPolicy | None = None,
) -> tuple[ModelRegistry, list[str]]:
    """Return the registry of the config and the ``shipped`` models, and the list of mistakes.

    ``backends`` maps each configured slug to its backend. A backend that could not be built is
    missing, and its mistake is reported already. ``bases`` maps a slug to the slug of the known
    provider it belongs to, if there is one. ``namespaces`` are those of ``embedding_options``.
    ``retries`` and ``breaker`` replace all policies of the config.
    """
    words = {**WORDS, "options": tuple(namespaces)}
    builder = _RegistryBuilder(config, backends, known, bases, shipped, words, retries, breaker)
    routes = {name: builder.declared(name, model) for name, model in config.models.items()}
    for name, facts in shipped.items():
        if name not in routes and any(
            endpoint.provider in config.providers for endpoint in facts.endpoints
        ):
            routes[name] = builder.route(name, facts)
    directory = ModelRegistry(
        routes=routes,
        providers={
            slug: builder.candidate(Endpoint(provider=slug), slug) for slug in config.providers
        },
        known_names=builder.known_names(),
        shipped={
            name: [endpoint.provider for endpoint in facts.endpoints]
            for name, facts in shipped.items()
        },
    )
    return directory, [
        *builder.mistakes,
        *check_allowed_fields(config, backends),
        *check_names(config, directory, builder.suggestions()),
        *check_key_models(config, directory),
    ]


def _range_problem(model: Model) -> str | None:
    """Return why the range of quantised numbers cannot be used, or None."""
    bounds = model.quantize_range
    if bounds is not None and not bounds[0] < bounds[1]:
        return "quantize_range must be [LEAST, GREATEST], the first less than the second"
    if bounds is None and {"int8", "uint8"} & set(model.quantize or ()):
        return "quantize needs quantize_range for int8 and uint8, such as [-0.2, 0.2]"
    return None


def check_allowed_fields(config: Config, backends: Mapping[str, BackendBase]) -> Iterable[str]:
    """Report fields in ``allow_fields`` that the gateway reads itself, or that are not sent."""
    for slug, provider in config.providers.items():
        place = f"[providers.{quoted(slug)}] allow_fields"
        cls = type(backends.get(slug, PLACEHOLDER))
        known = [field.name for struct in cls.request_options for field in list_fields(struct)]
        for name in provider.allow_fields:
            if name in CreateEmbeddingRequest.__struct_fields__:
                yield f'{place}: "{name}" is a field of every request; leave it out'
            elif not cls.forwards_fields and cls is not BackendBase and name not in known:
                yield (
                    f'{place}: this backend does not send "{name}"'
                    f"{did_you_mean(name, known) or f'; it sends {_join_or_nothing(known)}'}"
                )


def _join_or_nothing(words: Sequence[str]) -> str:
    return ", ".join(words) or "no such field"


class _RegistryBuilder:
    """Builds the routes of one config and collects its mistakes."""

    def __init__(
        self,
        config: Config,
        backends: Mapping[str, BackendBase],
        known: Mapping[str, KnownProvider],
        bases: Mapping[str, str],
        shipped: Mapping[str, Model],
        words: Mapping[str, Sequence[str]],
        retries: RetryPolicy | None,
        breaker: BreakerPolicy | None,
    ) -> None:
        self.config = config
        self.backends = backends
        self.known = known
        self.bases = bases
        self.shipped = shipped
        self.words = words
        self.retries = retries
        self.breaker = breaker
        self.widths = {
            (endpoint.provider, endpoint.model or name): facts.dimensions
            for name, facts in shipped.items()
            for endpoint in facts.endpoints
        }
        self.mistakes: list[str] = []

    def declared(self, name: str, configured: Model) -> Route:
        """Build the route of a model that the config declares, and check it."""
        place = f"models.{quoted(name)}"
        model = configured.over(self.shipped.get(name, Model()), self.bases)
        route = self.route(name, self.in_neutral_words(name, model), configured.endpoints)
        if not route.candidates:
            mistake = f"[{place}] has no endpoint: list at least one configured provider"
            self.mistakes.append(Mistake(mistake, ("models", name, "endpoints"), ("providers",)))
        if problem := _range_problem(model):
            path = ("models", name, "quantize_range")
            self.mistakes.append(Mistake(f"[{place}] {problem}", path))
        if model.over_length in ("truncate", "pool") and model.max_input_tokens is None:
            mistake = (
                f'[{place}] over_length = "{model.over_length}" needs max_input_tokens, the length '
                "from which inputs are cut"
            )
            path = ("models", name, "max_input_tokens")
            self.mistakes.append(Mistake(mistake, path))
        built = msgspec.structs.replace(
            route,
            candidates=[
                candidate for candidate in route.candidates if candidate.backend is not PLACEHOLDER
            ],
        )
        self.mistakes += [
            Mistake(f"[{place}] {mistake}", ("providers",))
            for mistake in self.unknown_providers(configured)
        ]
        compared = [
            *(("models", name, field) for field in COMPARED),
            *(("providers", endpoint.provider, "options") for endpoint in configured.endpoints),
            *_endpoint_paths(name, configured),
        ]
        self.mistakes += [
            Mistake(f"[{place}] {mistake}", *compared)
            for mistake in (*check_widths(model), *check_endpoints(built, self.known_width))
        ]
        return route

    def unknown_providers(self, configured: Model) -> Iterable[str]:
        """Report endpoints whose provider is not configured."""
        for endpoint in configured.endpoints:
            slug = endpoint.provider
            if slug and slug not in self.config.providers:
                advice = did_you_mean(slug, list(self.config.providers))
                yield (
                    f'endpoint refers to unknown provider "{slug}" '
                    f"(no [providers.{quoted(slug)}] table){advice}"
                )

    def in_neutral_words(self, name: str, model: Model) -> Model:
        """Replace vendor spellings in ``input_types`` and ``prefixes`` by the neutral ones."""
        place = f"models.{quoted(name)}"
        input_types = model.input_types
        prefixes = model.prefixes or {}
        for field, words in (("input_types", input_types or ()), ("prefixes", prefixes)):
            unknown = [word for word in words if word.lower() not in NEUTRAL]
            self.mistakes += [
                f'[{place}] {field}: unknown input type "{word}"{_choose(word, tuple(SPELLINGS))}'
                for word in unknown
            ]
        if input_types == [] and any(prefixes.values()):
            mistake = f"[{place}] prefixes cannot be used when input_types = []"
            paths = [("models", name, field) for field in ("input_types", "prefixes")]
            self.mistakes.append(Mistake(mistake, *paths))
        if input_types is not None:
            input_types = [NEUTRAL.get(word.lower(), word) for word in input_types]
        neutral_prefixes = None
        if model.prefixes is not None:
            neutral_prefixes = {
                NEUTRAL.get(word.lower(), word): text for word, text in prefixes.items()
            }
        return msgspec.structs.replace(model, input_types=input_types, prefixes=neutral_prefixes)

    def route(self, name: str, model: Model, configured: Sequence[Endpoint] = ()) -> Route:
        """Build a route from ``model.endpoints``.

        Without ``configured`` endpoints the model is a shipped one, and endpoints of providers that
        are not configured are left out.
        """
        endpoints = [
            endpoint
            for endpoint in model.endpoints
            if configured or endpoint.provider in self.config.providers
        ]
        candidates = [self.candidate(endpoint, name) for endpoint in endpoints]
        return Route(name=name, public_name=name, model=model, candidates=candidates)

    def candidate(self, endpoint: Endpoint, name: str) -> ResolvedEndpoint:
        slug = endpoint.provider
        provider = self.config.providers.get(slug, Provider())
        gateway = self.config.gateway
        known = self.known.get(slug.partition("/")[0]) or self.known_provider(slug)
        return ResolvedEndpoint(
            provider=slug,
            model=endpoint.model or name,
            backend=self.backend(slug),
            caller_keys=find_headers(self.backend(slug)),
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
            max_connections=provider.max_connections,
            max_concurrent=(
                endpoint.max_concurrent or provider.max_concurrent or gateway.max_concurrent
            ),
            attempt_timeout=endpoint.attempt_timeout or provider.attempt_timeout,
            checks_model=endpoint.model_echo == "check",
            all_addresses=provider.resolve == "all",
            allow_fields=provider.allow_fields,
            retries=self.retries or msgspec.structs.replace(gateway.retries, **provider.retries),
            breaker=self.breaker or msgspec.structs.replace(gateway.breaker, **provider.breaker),
        )

    def backend(self, slug: str) -> BackendBase:
        return self.backends.get(slug, PLACEHOLDER)

    def known_provider(self, slug: str) -> KnownProvider | None:
        return self.known.get(self.bases.get(slug, ""))

    def accepts(self, endpoint: Endpoint, name: str) -> Accepts:
        """Merge what the backend accepts with the shipped facts and the config, in this order."""
        backend = self.backend(endpoint.provider)
        known = self.known_provider(endpoint.provider)
        shipped: Mapping[str, object] = known.accepts if known else {}
        path = ("models", name, "endpoints", endpoint.provider, "accepts")
        place = format_path(path)
        result = convert_fields(path, {**shipped, **endpoint.accepts}, Accepts, {})
        values = result.values
        mistakes = result.mistakes
        for field, words in self.words.items():
            unknown = [
                word for word in cast("Sequence[str]", values.get(field, ())) if word not in words
            ]
            mistakes += [
                f'[{place}] {field}: unknown value "{word}"{_choose(word, words)}'
                for word in unknown
            ]
        accepts = backend.accepts
        for field, value in values.items():
            try:
                accepts = msgspec.structs.replace(accepts, **{field: value})
            except ValueError as error:
                mistakes.append(f"[{place}] {error}")
        self.mistakes += mistakes
        return accepts

    def known_width(self, endpoint: ResolvedEndpoint) -> int | None:
        """Return the shipped number of dimensions of an endpoint's model."""
        provider = self.config.providers.get(endpoint.provider, Provider())
        # Shipped facts hold for the provider's own service, not for another server at base_url.
        if "base_url" in provider.options:
            return None
        return self.widths.get((self.bases.get(endpoint.provider, ""), endpoint.model))

    def suggestions(self) -> list[str]:
        """Return the normalised names of all providers that are configured or could be."""
        usable = {
            name
            for slug, provider in self.known.items()
            if provider.backend is not None
            for name in (slug, provider.vendor)
        }
        return sorted({*map(normalise, usable), *self.configured_names()})

    def configured_names(self) -> frozenset[str]:
        """Return the normalised names of the configured providers and of their vendors."""
        return frozenset(
            normalise(name)
            for slug, provider in self.config.providers.items()
            for name in (slug, slug.partition("/")[0], provider.vendor or slug)
        )

    def known_names(self) -> frozenset[str]:
        """Return the normalised names of all shipped and configured providers and vendors."""
        shipped = {
            name for slug, provider in self.known.items() for name in (slug, provider.vendor)
        }
        return self.configured_names().union(map(normalise, shipped))


def _choose(word: str, words: Sequence[str]) -> str:
    return did_you_mean(word, words) or f"; use {', '.join(words)}"
