"""Builds the parts of a gateway from its config, and its resources for each event loop.

A config is processed in two phases. Phase 1 (``embedroute.config``) reads each table to a struct.
Phase 2 (``_resolve``) builds backends, routes and keys from the structs, and checks what depends on
several tables. It also runs on what phase 1 could read of an invalid config, so that one error
reports the mistakes of both phases. Mistakes that follow from those of phase 1 are left out.

``RuntimeFactory.open`` registers what must be closed, such as the connections. ``PerLoop``
(``runtime/per_loop.py``) closes it at the end of the lifespan, or else of the event loop.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import wraps
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, TypedDict, TypeVar

import msgspec

from embedroute.auth import ApiKeys, access_mistakes
from embedroute.backend import BackendBase
from embedroute.cache import MemoryCache, TieredCache
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
from embedroute.errors import ConfigError, EmbedrouteError, InternalError
from embedroute.execution import (
    AttemptRunner,
    BudgetedEmbed,
    DispatchContext,
    Dispatcher,
    EchoedModels,
    Embed,
    Ledger,
    LocalModels,
    LoopSlots,
    SingleFlight,
    StoreResults,
    Watchdog,
    WidthRegistry,
)
from embedroute.limits import Limiter, RateLimiter, SharedRateLimiter, admission_mistakes
from embedroute.log_records import InvalidConfiguration, LogLimit, write
from embedroute.plugins import Namespaces, build_backends, map_known_providers
from embedroute.protocol import Limits
from embedroute.routing import (
    CacheKey,
    CallerKeys,
    HealthRegistry,
    ModelRegistry,
    ResolvedEndpoint,
    RetryBudget,
    SelectionContext,
    build_registry,
    resolve_key_models,
)
from embedroute.runtime import time_limits
from embedroute.stores import Store, StoredKeys, StoreWorker, make_store, place_of
from embedroute.telemetry import Observer
from embedroute.transport import Transport, TransportConfig, create_transport, transport_mistakes

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
    """The parts of a gateway that are built from its config; none of them opens anything."""

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
) -> GatewayParts:
    """Load the backends of a config, and merge the config with the shipped catalogue.

    ``retries`` and ``breaker`` replace all policies of the config.

    Raises:
        ConfigError: the config has mistakes; one line for each, with its place.
    """
    return _resolve(read_secrets(config, environ), environ, retries, breaker)


def _resolve(
    draft: PartialConfig,
    environ: Mapping[str, str],
    retries: RetryPolicy | None = None,
    breaker: BreakerPolicy | None = None,
) -> GatewayParts:
    """Phase 2: build the parts of a gateway from the structs of a config.

    Raises:
        ConfigError: phase 1 or this phase has found mistakes.
    """
    config = draft.config
    settings = config.gateway
    known = known_providers()
    bases = map_known_providers(config, known)
    backends, backend_mistakes = build_backends(config, known, bases, environ)
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
    store, store_mistakes = _make_store(config)
    mistakes = draft.report(
        [
            *store_mistakes,
            *access_mistakes(config),
            *admission_mistakes(config),
            *transport_mistakes(settings.transport, make_transport_config(settings, environ)),
            *backend_mistakes,
            *namespace_mistakes,
            *registry_mistakes,
        ]
    )
    if mistakes:
        raise ConfigError(mistakes)
    return GatewayParts(
        settings=settings,
        limits=_make_limits(config, namespaces),
        keys=ApiKeys(resolve_key_models(config, models)),
        models=models,
        store=store,
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


Claim = Callable[[Mapping[CacheKey, int], str], None]
"""Adds owners to cached vectors of a model."""


class Sharing(msgspec.Struct, frozen=True, kw_only=True):
    """What the event loops of a gateway share, and with a store other processes too.

    ``cache`` is the cache with the store behind it, if the store is used for vectors. ``limiter``
    keeps the rate limits. ``stored_keys`` are those that were made at run time. ``store_results``
    stores vectors wherever they are cached; None if they are not. ``ledger`` records
    what requests use, if the config says so.
    """

    store: StoreWorker | None
    cache: TieredCache | None
    limiter: Limiter
    stored_keys: StoredKeys | None
    budgets: BudgetedEmbed | None
    store_results: StoreResults | None
    ledger: Ledger | None
    claim: Claim


def share(
    store: Store | None, memory: MemoryCache, config: Config, clock: Callable[[], float]
) -> Sharing:
    """Choose what keeps vectors, budgets and usage. Nothing connects before it is used."""
    worker = None
    if store is not None and config.store.url is not None:
        place = place_of(config.store.url.reveal())
        worker = StoreWorker(store, place, config.store.timeout)
    stored_keys = None
    if worker is not None and config.gateway.auth == "keys":
        stored_keys = StoredKeys(worker, clock)
    tiered = None
    if worker is not None and config.store.cache:
        tiered = TieredCache(memory, worker, config.cache.ttl, clock)
    cache = tiered or memory
    return Sharing(
        store=worker,
        cache=tiered,
        limiter=_make_limiter(config, worker, clock),
        stored_keys=stored_keys,
        budgets=BudgetedEmbed.for_config(config, worker, stored_keys),
        store_results=cache.store if tiered or memory.limit else None,
        ledger=Ledger(worker, config.store.usage_days) if config.gateway.usage else None,
        claim=cache.claim,
    )


def _make_limiter(
    config: Config, worker: StoreWorker | None, clock: Callable[[], float]
) -> Limiter:
    """Make what keeps the limits of a config; those of keys come with their callers."""
    limits = {name: model.limits for name, model in config.models.items()}
    models = {name: each for name, each in limits.items() if each is not None}
    if worker is None:
        return RateLimiter(config.gateway.limits, models, clock)
    fail_open = config.limits.on_store_failure != "closed"
    return SharedRateLimiter(
        config.gateway.limits, models, worker, fail_open=fail_open, clock=clock
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


def make_selection_context(
    parts: GatewayParts, healths: HealthRegistry, clock: Callable[[], float]
) -> Callable[[], SelectionContext]:
    """Return a function that creates the selection context of the current moment."""
    caller_keys = CallerKeys()

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

    return make_context


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


class LoopRuntime(msgspec.Struct, frozen=True):
    """The resources of one event loop: its dispatcher's ``embed``, and its single-flight group."""

    embed: Embed
    singleflight: SingleFlight[Sequence[ResolvedEndpoint], DispatchContext]


class RuntimeFactory:
    """Opens the resources of each event loop.

    All loops share the loaded models, health, widths, the names in upstreams' answers, the
    watchdog, the limit of log lines and the retry budget. ``slots`` are those of the open loops.
    """

    def __init__(
        self,
        settings: Settings,
        client: "httpx2.AsyncClient | None",
        healths: HealthRegistry,
        environ: Mapping[str, str],
        make_transport: Callable[[], Transport] | None = None,
        clock: Callable[[], float] = time.monotonic,
        observers: Sequence[Observer] = (),
        sharing: Sharing | None = None,
    ) -> None:
        """Create a factory. ``make_transport`` replaces the transport of the config.

        Raises:
            ConfigError: the configured transport cannot use ``client``.
        """
        self._make_transport = make_transport or self._open_transport
        connect = make_transport_config(settings, environ)
        if mistakes := transport_mistakes(settings.transport, connect, client):
            raise ConfigError(mistakes)
        self._settings = settings
        self._connect = connect
        self._client = client
        self._healths = healths
        self._local = LocalModels(settings.local_threads)
        self._widths = WidthRegistry()
        self._models = EchoedModels()
        self._watchdog = Watchdog()
        self._log_limit = LogLimit()
        self._budget = RetryBudget()
        self._clock = clock
        self._observers = observers
        self.slots: list[LoopSlots] = []
        self._store = sharing.store if sharing else None
        self._budgets = sharing.budgets if sharing else None

    def open(self, stack: AsyncExitStack) -> LoopRuntime:
        """Create this loop's transport and dispatcher; closing ``stack`` closes them.

        Raises:
            InternalError: the configured transport does not support this kind of event loop.
        """
        if self._store is not None:
            self._store.add_user()
            stack.push_async_callback(self._store.remove_user)
        transport = self._make_transport()
        stack.push_async_callback(transport.aclose)
        attempts = AttemptRunner(
            transport=transport,
            local=self._local,
            widths=self._widths,
            models=self._models,
            watchdog=self._watchdog,
            log_limit=self._log_limit,
            clock=self._clock,
            observers=self._observers,
        )
        self.slots.append(attempts.slots)
        stack.callback(self.slots.remove, attempts.slots)
        dispatcher = Dispatcher(
            attempts=attempts,
            healths=self._healths,
            budget=self._budget,
            rate_limit_wait=self._settings.rate_limit_wait,
            clock=self._clock,
            random=random.random,
        )
        embed = self._budgets.wrap(dispatcher.embed) if self._budgets else dispatcher.embed
        return LoopRuntime(embed, SingleFlight(attempts.expect))

    def _open_transport(self) -> Transport:
        try:
            return create_transport(
                self._settings.transport,
                self._connect,
                self._client,
                on_asyncio=time_limits.on_asyncio(),
            )
        except ConfigError as error:
            write(InvalidConfiguration(reason=error.message), exception=error)
            raise InternalError(
                "The gateway cannot run on this event loop; see the server log."
            ) from error
