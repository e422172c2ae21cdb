"""Opens the resources of each event loop, and makes what the event loops share.

``RuntimeFactory.open`` registers what must be closed, such as the connections. ``PerLoop``
(``runtime/per_loop.py``) closes it at the end of the lifespan, or else of the event loop.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from embedroute.backend import BackendBase
from embedroute.bootstrap import make_transport_config
from embedroute.cache import MemoryCache, TieredCache
from embedroute.config import Config, RateLimits, Settings
from embedroute.errors import ConfigError, InternalError
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
from embedroute.limits import Limiter, RateLimiter, SharedRateLimiter
from embedroute.log_records import InvalidConfiguration, LogLimit, write
from embedroute.routing import (
    CacheKey,
    HealthRegistry,
    ResolvedEndpoint,
    RetryBudget,
)
from embedroute.runtime import time_limits
from embedroute.stores import Store, StoredKeys, StoreWorker, place_of
from embedroute.telemetry import Counts, Observer
from embedroute.transport import (
    TraceContextTransport,
    Transport,
    create_transport,
    transport_mistakes,
)

if TYPE_CHECKING:
    import httpx2

Claim = Callable[[Mapping[CacheKey, int], str], None]
"""Adds owners to cached vectors of a model."""


class Sharing(msgspec.Struct, frozen=True, kw_only=True):
    """What the event loops of a gateway share, and with a store other processes too.

    ``cache`` is the cache with the store behind it, if the store is used for vectors. ``limiter``
    keeps the rate limits. ``stored_keys`` are those that were made at run time. ``store_results``
    stores vectors wherever they are cached; None if they are not. ``ledger`` records what requests
    use.
    """

    store: StoreWorker | None
    cache: TieredCache | None
    limiter: Limiter
    stored_keys: StoredKeys | None
    budgets: BudgetedEmbed
    store_results: StoreResults | None
    ledger: Ledger
    claim: Claim
    counts: Counts | None

    def change(self, config: Config) -> None:
        """Apply the limits, budgets and times of another config. What was used remains used."""
        self.limiter.change(config.gateway.limits, _limits_of_models(config))
        self.budgets.change(config)
        self.ledger.change(config.store.usage_days)


def share(
    store: Store | None,
    memory: MemoryCache,
    config: Config,
    clock: Callable[[], float],
    counts: Counts | None,
) -> Sharing:
    """Choose what keeps vectors, budgets and usage. Nothing connects before it is used.

    Failed calls of the store are counted in ``counts``.
    """
    worker = None
    if store is not None and config.store.url is not None:
        place = place_of(config.store.url.reveal())
        worker = StoreWorker(store, place, config.store.timeout)
        if counts is not None:
            worker.on_failure = partial(counts.count_store_error, place.partition(":")[0])
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
        budgets=BudgetedEmbed(config, worker, stored_keys),
        store_results=cache.store if tiered or memory.limit else None,
        ledger=Ledger(worker, config.store.usage_days),
        claim=cache.claim,
        counts=counts,
    )


def _limits_of_models(config: Config) -> Mapping[str, RateLimits]:
    limits = {name: model.limits for name, model in config.models.items()}
    return {name: each for name, each in limits.items() if each is not None}


def _make_limiter(
    config: Config, worker: StoreWorker | None, clock: Callable[[], float]
) -> Limiter:
    """Make what keeps the limits of a config; those of keys come with their callers."""
    models = _limits_of_models(config)
    if worker is None:
        return RateLimiter(config.gateway.limits, models, clock)
    fail_open = config.limits.on_store_failure != "closed"
    return SharedRateLimiter(
        config.gateway.limits, models, worker, fail_open=fail_open, clock=clock
    )


class LoopRuntime(msgspec.Struct, eq=False):
    """The resources of one event loop: its dispatcher and its single-flight group.

    ``embed`` is that of the dispatcher, within the budgets if there are any.
    """

    embed: Embed
    dispatcher: Dispatcher
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
        make_transport: Callable[[], Transport] | None,
        clock: Callable[[], float],
        observers: Sequence[Observer],
        sharing: Sharing,
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
        self._runtimes: list[LoopRuntime] = []
        self._store = sharing.store
        self._budgets = sharing.budgets
        self._counts = sharing.counts

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
        if self._settings.opentelemetry:
            transport = TraceContextTransport(transport)
        attempts = AttemptRunner(
            transport=transport,
            local=self._local,
            widths=self._widths,
            models=self._models,
            watchdog=self._watchdog,
            log_limit=self._log_limit,
            clock=self._clock,
            observers=self._observers,
            counts=self._counts,
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
        embed = self._budgets.wrap(dispatcher.embed)
        runtime = LoopRuntime(embed, dispatcher, SingleFlight(attempts.expect))
        self._runtimes.append(runtime)
        stack.callback(self._runtimes.remove, runtime)
        return runtime

    def change(self, settings: Settings, backends: Collection[BackendBase]) -> None:
        """Use other settings, and forget the local models of other backends than ``backends``."""
        self._settings = settings
        self._local.keep(backends)
        for runtime in self._runtimes:
            runtime.dispatcher.rate_limit_wait = settings.rate_limit_wait
            runtime.embed = self._budgets.wrap(runtime.dispatcher.embed)

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
