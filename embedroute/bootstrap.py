"""Builds the parts of a gateway from its config, at its start and when the config is reloaded.

A config is processed in two phases. Phase 1 (``embedroute.config``) reads each table to a struct.
Phase 2 (``_resolve``) builds backends, routes and keys from the structs, and checks what depends on
several tables. It also runs on what phase 1 could read of an invalid config, so that one error
reports the mistakes of both phases. Mistakes that follow from those of phase 1 are left out.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, TypedDict, TypeVar

import msgspec

from embedroute.auth import ApiKeys, access_mistakes
from embedroute.backend import BackendBase
from embedroute.config import (
    BreakerPolicy,
    Config,
    Mistake,
    PartialConfig,
    RetryPolicy,
    Settings,
    catalogue,
    environment_config,
    known_providers,
    read_config,
    read_secrets,
)
from embedroute.errors import ConfigError, EmbedrouteError
from embedroute.execution import ActiveConfig, Ledger
from embedroute.limits import admission_mistakes
from embedroute.plugins import Namespaces, build_backends, map_known_providers
from embedroute.protocol import Limits
from embedroute.reload import find_fixed, keep_backends
from embedroute.routing import (
    CallerKeys,
    HealthRegistry,
    ModelRegistry,
    SelectionCache,
    SelectionContext,
    build_registry,
    keep_generations,
    list_headers,
    resolve_key_models,
)
from embedroute.stores import Store, make_store
from embedroute.telemetry import Observer
from embedroute.transport import Transport, TransportConfig, transport_mistakes

if TYPE_CHECKING:
    import httpx2
    from prometheus_client import CollectorRegistry

DEFAULT_FILE: Final = "embedroute.toml"
"""The config in the working directory, which is read if no other is named."""

P = ParamSpec("P")
T = TypeVar("T")


def without_frames(build: Callable[P, T]) -> Callable[P, T]:
    """Remove the frames of ``build`` from a ``ConfigError``.

    Local variables of these frames hold the environment and the text of the config.
    """

    @wraps(build)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return build(*args, **kwargs)
        except ConfigError as error:
            del args, kwargs
            raise error.with_traceback(None) from None

    return wrapper


class Options(TypedDict, total=False):
    """The keyword arguments of ``Gateway`` besides its config."""

    http_client: "httpx2.AsyncClient | None"
    transport: Callable[[], Transport] | None
    retries: RetryPolicy | None
    breaker: BreakerPolicy | None
    environ: Mapping[str, str]
    clock: Callable[[], float]
    observers: Sequence[Observer]
    metrics_registry: "CollectorRegistry | None"


class GatewayParts(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a gateway that are built from its config; none of them opens anything.

    ``generation`` is the number of the reload that has built them, or 0.
    """

    config: Config
    generation: int
    backends: Mapping[str, BackendBase]
    settings: Settings
    limits: Limits
    keys: ApiKeys
    models: ModelRegistry
    store: Store | None


def build_parts(
    config: Config,
    environ: Mapping[str, str],
    retries: RetryPolicy | None = None,
    breaker: BreakerPolicy | None = None,
    previous: GatewayParts | None = None,
) -> GatewayParts:
    """Load the backends of a config, and merge the config with the shipped catalogue.

    ``retries`` and ``breaker`` replace all policies of the config. ``previous`` are the parts that
    are replaced; of them, equal backends and the generations of equal endpoints are kept.

    Raises:
        ConfigError: the config has mistakes, or changes that need a restart; one line for each,
            with its place.
    """
    return _resolve(read_secrets(config, environ), environ, retries, breaker, previous)


def _resolve(
    draft: PartialConfig,
    environ: Mapping[str, str],
    retries: RetryPolicy | None = None,
    breaker: BreakerPolicy | None = None,
    previous: GatewayParts | None = None,
) -> GatewayParts:
    """Phase 2: build the parts of a gateway from the structs of a config.

    Raises:
        ConfigError: phase 1 or this phase has found mistakes.
    """
    config = draft.config
    settings = config.gateway
    built = _build_models(config, environ, retries, breaker, previous)
    store, store_mistakes = _make_store(config)
    mistakes = draft.report(
        [
            *store_mistakes,
            *(find_fixed(previous.config, config) if previous else ()),
            *access_mistakes(config),
            *admission_mistakes(config),
            *transport_mistakes(settings.transport, make_transport_config(settings, environ)),
            *built.mistakes,
        ]
    )
    if mistakes:
        raise ConfigError(mistakes)
    return GatewayParts(
        config=config,
        generation=built.generation,
        backends=built.backends,
        settings=settings,
        limits=_make_limits(config, built.namespaces),
        keys=ApiKeys(resolve_key_models(config, built.models)),
        models=built.models,
        store=store,
    )


class _BuiltModels(msgspec.Struct, frozen=True, kw_only=True):
    generation: int
    backends: Mapping[str, BackendBase]
    namespaces: Namespaces
    models: ModelRegistry
    mistakes: Sequence[str]


def _build_models(
    config: Config,
    environ: Mapping[str, str],
    retries: RetryPolicy | None,
    breaker: BreakerPolicy | None,
    previous: GatewayParts | None,
) -> _BuiltModels:
    known = known_providers()
    bases = map_known_providers(config, known)
    backends, backend_mistakes = build_backends(config, known, bases, environ)
    if previous is not None:
        backends = keep_backends(config, previous.backends, backends)
    namespaces, namespace_mistakes = _find_namespaces(backends)
    models, registry_mistakes = build_registry(
        config,
        backends,
        catalogue(),
        known,
        bases,
        namespaces=namespaces,
        retries=retries,
        breaker=breaker,
    )
    generation = 0
    if previous is not None:
        generation = previous.generation + 1
        models = keep_generations(previous.models, models, generation)
    return _BuiltModels(
        generation=generation,
        backends=backends,
        namespaces=namespaces,
        models=models,
        mistakes=[*backend_mistakes, *namespace_mistakes, *registry_mistakes],
    )


def _make_limits(config: Config, namespaces: Namespaces) -> Limits:
    allowed = [name for each in config.providers.values() for name in each.allow_fields]
    return Limits.of(config.gateway, namespaces, frozenset(allowed))


def _find_namespaces(backends: Mapping[str, BackendBase]) -> tuple[Namespaces, Sequence[str]]:
    try:
        return Namespaces(backends.values()), ()
    except EmbedrouteError as error:
        return Namespaces(), [error.message]


def _make_store(config: Config) -> tuple[Store | None, Sequence[str]]:
    try:
        return make_store(config.store), ()
    except ConfigError as error:
        return None, [Mistake(each, ("store", "url")) for each in error.mistakes]


def make_active_config(
    parts: GatewayParts,
    healths: HealthRegistry,
    caller_keys: CallerKeys,
    ledger: Ledger,
    clock: Callable[[], float],
) -> ActiveConfig:
    """Return what requests read of ``parts``, with what all configs of a gateway share."""

    def make_context() -> SelectionContext:
        return SelectionContext(
            caller_keys=caller_keys,
            only=parts.settings.only,
            ignore=parts.settings.ignore,
            known_names=parts.models.known_names,
            health=healths.get,
            now=clock(),
            random=random.random,
        )

    selections = SelectionCache(
        parts.models,
        make_context,
        shared_cache=parts.config.cache.shared,
        debug=parts.settings.debug,
    )
    return ActiveConfig(
        settings=parts.settings,
        limits=parts.limits,
        keys=parts.keys,
        models=parts.models,
        selections=selections,
        caller_key_headers=list_headers(parts.models),
        ledger=ledger if parts.settings.usage else None,
    )


def make_transport_config(settings: Settings, environ: Mapping[str, str]) -> TransportConfig:
    """Return the settings of connections. Of the environment, only certificates are used."""
    return TransportConfig(
        proxy=settings.proxy,
        ca_file=settings.ca_file,
        tls_trust=settings.tls_trust,
        environment_file=environ.get("SSL_CERT_FILE"),
        environment_dir=environ.get("SSL_CERT_DIR"),
        http2=settings.http2,
        dns_ttl=settings.dns_ttl,
    )


def config_from_file(path: str | PathLike[str] | None, environ: Mapping[str, str]) -> Config:
    """Read ``path``, or the file named by ``EMBEDROUTE_CONFIG``, or ``embedroute.toml``.

    Raises:
        ConfigError: the file cannot be read, or it has mistakes. The valid rest of the config is
            built too, so that all mistakes are reported at once.
    """
    file = Path(path or environ.get("EMBEDROUTE_CONFIG") or DEFAULT_FILE)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError([_cannot_read(file, environ, error)]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"The config {file} is not valid UTF-8."]) from None
    draft = read_config(text, environ, str(file))
    if draft.mistakes:
        _resolve(draft, environ)  # raises, with the mistakes of both phases
    return draft.config


def _cannot_read(file: Path, environ: Mapping[str, str], error: OSError) -> str:
    """Say why a config cannot be read, and where its path comes from."""
    message = f"The config {file} cannot be read: {error.strerror}"
    if str(file) == environ.get("EMBEDROUTE_CONFIG"):
        return f"{message}. EMBEDROUTE_CONFIG names it."
    if isinstance(error, FileNotFoundError) and not file.is_absolute():
        return f"{message} in {Path.cwd()}."
    return f"{message}."


def config_from_environment(environ: Mapping[str, str]) -> Config:
    """Create a config from environment variables.

    It enables each provider whose key variable is set, and the local model if it is installed.

    Raises:
        ConfigError: ``EMBEDROUTE_AUTH`` is missing or invalid.
    """
    return environment_config(environ, local=find_spec("wordllama") is not None)
