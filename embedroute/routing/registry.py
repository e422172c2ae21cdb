"""Resolves model names: public, ``provider/upstream-model``, with suffixes or a provider."""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

import msgspec

from embedroute.backend import Accepts, BackendBase
from embedroute.config import BreakerPolicy, Model, RetryPolicy, Stage, quoted
from embedroute.errors import InvalidRequest, ModelNotFound, NoEligibleProvider
from embedroute.protocol import LONGEST_NAME
from embedroute.text import did_you_mean, echo

_RUNS: Final = re.compile(r"[ ._]+")

SORTS: Final = {":floor": "price", ":nitro": "throughput"}
"""Model suffix → sort key (OpenRouter's shorthands)."""
INPUT_TYPES: Final = {":query": "query", ":document": "document"}
"""Model suffix → input type."""
SUFFIXES: Final = (*SORTS, *INPUT_TYPES)
MOST_SUFFIXES: Final = 3
"""Maximum number of suffixes of a model name."""


class ResolvedEndpoint(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An endpoint that may serve a request, with all facts that selection needs.

    ``prices`` are USD per million tokens (``prompt``, ``completion``) or per unit; empty when
    unknown. ``rest`` is how many seconds a connection must be idle before it is reused.
    ``max_connections`` is the maximum number of connections to the provider's host, or to each of
    its addresses if ``all_addresses`` are used. ``max_concurrent`` is the maximum number of calls
    in flight, on each event loop. ``attempt_timeout`` is how many seconds a call may take, or None
    if that is learned. ``checks_model`` is false if the name of the model in an answer means
    nothing. ``name`` is ``provider:model``, for traces, logs and metrics.

    ``generation`` is the number of the reload since which the endpoint is what it is, or 0. ``key``
    is the name with it: what is learned of an endpoint, such as its health, is kept under this key,
    so that a changed endpoint starts without it.

    ``allow_fields`` are the top-level fields of a request that are passed on.

    ``caller_keys`` maps the options of the backend that each caller sets to the header with the
    value. An endpoint whose backend has a caller's values has their ``key_digest``, which is part
    of its name, and ``origin``, the endpoint without them.
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
    max_connections: int = 512
    max_concurrent: int | None = None
    attempt_timeout: float | None = None
    checks_model: bool = True
    all_addresses: bool = False
    allow_fields: Sequence[str] = ()
    retries: RetryPolicy = RetryPolicy()
    breaker: BreakerPolicy = BreakerPolicy()
    caller_keys: Mapping[str, str] = {}
    key_digest: str = ""
    origin: "ResolvedEndpoint | None" = None
    generation: int = 0
    name: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        """Set ``name`` and ``key``."""
        name = f"{self.provider}:{self.model}"
        if self.key_digest:
            name += f"#{self.key_digest}"
        key = f"{name} (reload {self.generation})" if self.generation else name
        msgspec.structs.force_setattr(self, "name", name)
        msgspec.structs.force_setattr(self, "key", key)

    def named(self, name: str) -> bool:
        """Return whether ``name`` is this endpoint's slug, the base of its slug, or its vendor."""
        normalised = normalise(name)
        return normalised in (
            normalise(self.provider),
            normalise(self.provider.partition("/")[0]),
            normalise(self.vendor),
        )


class Route(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A model with its facts and candidate endpoints.

    ``name`` is the name in model lists and keys, ``public_name`` the name in responses. They differ
    only for an undeclared model. ``sort`` and ``input_type`` come from suffixes of the requested
    name. ``vector_space`` identifies the vector space. It is ``name``, except for an undeclared
    model: its space belongs to one provider. ``generation`` is the number of the last reload that
    changed an endpoint or the dimensions of the model, or 0.
    """

    name: str
    public_name: str
    model: Model
    candidates: Sequence[ResolvedEndpoint]
    sort: str | None = None
    input_type: str | None = None
    vector_space: str = ""
    generation: int = 0

    def __post_init__(self) -> None:
        """Default the vector space to the model's name."""
        if not self.vector_space:
            msgspec.structs.force_setattr(self, "vector_space", self.name)


def normalise(name: str) -> str:
    """Return ``name`` in lower case, with runs of spaces, dots and underscores as one hyphen."""
    return _RUNS.sub("-", name.strip().lower())


def _begins(name: str, prefix: str) -> bool:
    return name[len(prefix) : len(prefix) + 1] == "/" and normalise(
        name[: len(prefix)]
    ) == normalise(prefix)


def is_known(name: str, known: frozenset[str]) -> bool:
    """Return whether a name in a list of providers is valid; ``known`` are normalised names.

    A variant that is not configured is valid only if its base has no configured variants. Otherwise
    a typo in ``ignore`` (``tei/ue`` for ``tei/eu``) would send text to the provider to be avoided.
    """
    normalised = normalise(name)
    base, _, variant = normalised.partition("/")
    if normalised in known or not variant:
        return normalised in known
    return base in known and not any(entry.startswith(f"{base}/") for entry in known)


class ParsedName(msgspec.Struct, frozen=True):
    """One way to parse a model name: ``name`` followed by ``suffixes``."""

    name: str
    suffixes: tuple[str, ...] = ()

    def applied(self, route: Route) -> Route:
        """Return ``route`` with the sort key and input type of the suffixes; the last sort wins.

        Raises:
            InvalidRequest: two suffixes set different input types.
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


def _parse_name(name: str) -> list[ParsedName]:
    """List the ways to parse a model name: unchanged, or without its last one to three suffixes."""
    parsed_names = [ParsedName(name)]
    while len(parsed_names) <= MOST_SUFFIXES and (suffix := _parse_suffix(parsed_names[-1].name)):
        longer = parsed_names[-1]
        parsed_names.append(
            ParsedName(longer.name.removesuffix(suffix), (suffix, *longer.suffixes))
        )
    return parsed_names


def _parse_suffix(name: str) -> str | None:
    return next(
        (suffix for suffix in SUFFIXES if name.endswith(suffix) and len(name) > len(suffix)), None
    )


def unknown_model(name: str, known: Sequence[str]) -> ModelNotFound:
    """Make the error for a model that does not exist; it suggests the most similar of ``known``."""
    advice = did_you_mean(name, known) or "; see GET /v1/models."
    error = ModelNotFound(f"The model {echo(name)} does not exist{advice}", param="model")
    error.requested = name
    return error


class ModelRegistry(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The models of a gateway by public name, and its providers for ``provider/model`` names.

    ``shipped`` maps all models in the catalogue, with a configured provider or without, to the
    slugs of their providers.
    """

    routes: Mapping[str, Route]
    providers: Mapping[str, ResolvedEndpoint]
    known_names: frozenset[str]
    shipped: Mapping[str, Sequence[str]] = {}

    def missing_tables(self, model: str) -> str:
        """Return the tables of which a config needs one to serve a model of the catalogue.

        Empty if the config serves the model, or if the catalogue does not know it.
        """
        slugs = () if model in self.routes else self.shipped.get(model, ())
        return " or ".join(f"[providers.{quoted(slug)}]" for slug in slugs)

    def resolve(self, name: str, provider: str | None = None) -> Route:
        """Return the route for a model name and an optional provider name.

        Raises:
            InvalidRequest: the provider is not configured, there are too many suffixes, or
                the suffixes contradict each other.
            ModelNotFound: the model is unknown.
            NoEligibleProvider: the named provider does not serve this model.
        """
        if provider is None and name in self.routes:
            return self.routes[name]
        parsed_names = _parse_name(name)
        declared = next((parsed for parsed in parsed_names if parsed.name in self.routes), None)
        if declared is None and _parse_suffix(parsed_names[-1].name):
            raise InvalidRequest(
                f"'model' has more than {MOST_SUFFIXES} suffixes; send fewer.", param="model"
            )
        if provider is not None:
            parsed = declared or parsed_names[-1]
            return parsed.applied(self._at_provider(parsed.name, provider))
        if declared is not None:
            return declared.applied(self.routes[declared.name])
        # Shortest name first: a suffix is part of an upstream model name only as a last resort.
        for parsed in reversed(parsed_names):
            if route := self._by_prefix(parsed.name) or self._by_upstream_name(parsed.name):
                return parsed.applied(route)
        raise unknown_model(name, list(self.routes))

    def _at_provider(self, name: str, provider_name: str) -> Route:
        """Return the route for a model name at the named provider.

        The name may or may not start with the provider (``openai/text-embedding-3-small``).
        """
        slugs = [slug for slug, provider in self.providers.items() if provider.named(provider_name)]
        if not slugs:
            raise InvalidRequest(
                f"'provider' {echo(provider_name)} is not configured; "
                f"use one of {', '.join(self.providers)}.",
                param="provider",
            )
        prefix = max(
            (slug for slug in (provider_name, *slugs) if _begins(name, slug)), key=len, default=""
        )
        bare = name[len(prefix) + 1 :] if prefix else name
        for public_name in filter(None, (name, bare)):
            route = self.routes.get(public_name)
            if route and (
                pinned := [
                    candidate for candidate in route.candidates if candidate.named(provider_name)
                ]
            ):
                return msgspec.structs.replace(route, candidates=pinned)
        slug = next(
            (slug for slug in slugs if normalise(slug) == normalise(prefix or provider_name)),
            slugs[0],
        )
        served = self._served_by(slug, bare or name)
        return served or self._undeclared_at_provider(slug, bare or name, provider_name)

    def _undeclared_at_provider(self, slug: str, upstream: str, provider: str) -> Route:
        full_name = f"{slug}/{upstream}"
        if declared := {upstream, full_name} & self.routes.keys():
            # The provider's model of that name may have another vector space, so the request must
            # use its full name.
            advice = ""
            if full_name not in declared:
                advice = f", or use {echo(full_name)} for the model of that provider"
            raise NoEligibleProvider(
                f"'provider' {echo(provider)} does not serve the model {echo(max(declared))}; "
                f"omit 'provider'{advice}.",
                param="provider",
            )
        return self._undeclared(slug, upstream)

    def _by_prefix(self, name: str) -> Route | None:
        """Return the route for a ``provider/upstream-model`` name."""
        slugs = [
            slug
            for slug in self.providers
            if name.startswith(f"{slug}/") and len(name) > len(slug) + 1
        ]
        if not slugs:
            return None
        slug = max(slugs, key=len)
        upstream = name[len(slug) + 1 :]
        return self._served_by(slug, upstream) or self._undeclared(slug, upstream)

    def _served_by(self, slug: str, upstream: str) -> Route | None:
        """Return the declared model that a provider serves under this public or upstream name.

        The route holds only the endpoints of that provider.
        """
        named = self.routes.get(upstream)
        for route in [*([named] if named else []), *self.routes.values()]:
            pinned = [
                candidate
                for candidate in route.candidates
                if candidate.provider == slug and (route is named or candidate.model == upstream)
            ]
            if pinned:
                return msgspec.structs.replace(route, candidates=pinned)
        return None

    def _by_upstream_name(self, upstream: str) -> Route | None:
        """Return the declared model with this upstream name at a provider, if there is only one.

        For example, OpenRouter names a model ``openai/text-embedding-3-small``.
        """
        routes = [
            route
            for route in self.routes.values()
            if any(candidate.model == upstream for candidate in route.candidates)
        ]
        return routes[0] if len(routes) == 1 else None

    def _undeclared(self, slug: str, upstream: str) -> Route:
        if len(upstream) > LONGEST_NAME:
            raise ModelNotFound(
                f"'model' is not a configured model and is longer than {LONGEST_NAME} characters.",
                param="model",
            )
        full_name = f"{slug}/{upstream}"
        # A known model of the same name has another vector space: use the full name to tell them
        # apart.
        is_known_model = upstream in self.routes or upstream in self.shipped
        return Route(
            name=full_name,
            public_name=full_name if is_known_model else upstream,
            # Slugs and models may hold slashes: "a/b" at "c" is not "b/c" at "a".
            vector_space=f"\0{slug}\0{upstream}",
            model=Model(),
            candidates=[msgspec.structs.replace(self.providers[slug], model=upstream)],
            generation=self.providers[slug].generation,
        )
