"""Puts a gateway together: what a config comes to, and what is opened on each event loop."""

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import wraps
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypedDict, TypeVar

import msgspec

from embedroute.auth import ApiKeys, access_mistakes
from embedroute.config import (
    ALL_READ,
    Config,
    Settings,
    UnknownFields,
    catalogue,
    environment_config,
    known_providers,
    read_config,
)
from embedroute.errors import ConfigError, InternalError
from embedroute.execution import (
    AttemptRunner,
    DispatchContext,
    Dispatcher,
    Embed,
    LocalModels,
    SingleFlight,
    WidthRegistry,
)
from embedroute.limits import admission_mistakes
from embedroute.plugins import build_backends, known_provider_of
from embedroute.protocol import Limits
from embedroute.routing import (
    BreakerPolicy,
    HealthRegistry,
    ModelRegistry,
    ResolvedEndpoint,
    RetryBudget,
    RetryPolicy,
    SelectionContext,
    build_registry,
    resolve_key_models,
)
from embedroute.runtime import raise_malloc_trim_threshold, tasks
from embedroute.text import log_fields
from embedroute.transport import Transport, TransportConfig, create_transport, transport_mistakes

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger("embedroute")


P = ParamSpec("P")
T = TypeVar("T")


def frameless(build: Callable[P, T]) -> Callable[P, T]:
    """Let a ``ConfigError`` leave ``build`` without its frames: the environment and a config's text stand in them."""

    @wraps(build)
    def built(*args: P.args, **named: P.kwargs) -> T:
        try:
            return build(*args, **named)
        except ConfigError as error:
            del args, named
            raise error.with_traceback(None) from None

    return built


class Options(TypedDict, total=False):
    """What a gateway takes besides its config."""

    http_client: "httpx2.AsyncClient | None"
    transport: Callable[[], Transport] | None
    retries: RetryPolicy | None
    breaker: BreakerPolicy | None
    environ: Mapping[str, str]


class GatewayParts(msgspec.Struct, frozen=True, kw_only=True):
    """What a config comes to, before anything is opened."""

    settings: Settings
    limits: Limits
    keys: ApiKeys
    directory: ModelRegistry


def assembled(config: Config, environ: Mapping[str, str]) -> GatewayParts:
    """Load the backends that a config names and join it with what is shipped.

    Raises:
        ConfigError: one line per mistake, each with its place.
    """
    directory, mistakes = _build(config, environ, ALL_READ)
    if mistakes:
        raise ConfigError(mistakes)
    settings, keys = config.gateway, ApiKeys(resolve_key_models(config, directory))
    return GatewayParts(
        settings=settings, limits=Limits.of(settings), keys=keys, directory=directory
    )


def _build(
    config: Config, environ: Mapping[str, str], unread: UnknownFields
) -> tuple[ModelRegistry, list[str]]:
    known = known_providers()
    bases = known_provider_of(config, known)
    backends, mistakes = build_backends(config, known, bases, environ, unread)
    directory, more = build_registry(config, backends, catalogue(), known, bases, unread)
    settings = config.gateway
    general = [*access_mistakes(config, unread), *admission_mistakes(config, unread)]
    general += transport_mistakes(settings.engine, _connect(settings))
    return directory, [*general, *mistakes, *more]


def _connect(settings: Settings) -> TransportConfig:
    return TransportConfig(proxy=settings.proxy, ca_file=settings.ca_file, http2=settings.http2)


def make_selection_context(
    parts: GatewayParts, healths: HealthRegistry
) -> Callable[[], SelectionContext]:
    """Tell what decisions know beside a request, as of the moment it is asked."""

    def around() -> SelectionContext:
        return SelectionContext(
            only=parts.settings.only,
            ignore=parts.settings.ignore,
            known_names=parts.directory.known_names,
            health=healths.get,
            now=time.monotonic(),
            random=random.random,
        )

    return around


def config_from_file(path: str | PathLike[str] | None, environ: Mapping[str, str]) -> Config:
    """Read ``path``, or the file that ``EMBEDROUTE_CONFIG`` names, or ``embedroute.toml``.

    Raises:
        ConfigError: there is no such file; or it has mistakes, and then those that building something of the rest
            brings up are told with them.
    """
    named = path or environ.get("EMBEDROUTE_CONFIG") or "embedroute.toml"
    try:
        text = Path(named).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"The config {named} cannot be read: {error}"]) from None
    draft = read_config(text, environ)
    if draft.mistakes:
        raise ConfigError([*draft.mistakes, *_build(draft.config, environ, draft.unread)[1]])
    return draft.config


def config_from_environment(environ: Mapping[str, str]) -> Config:
    """Turn on what the environment has keys for, and the local model if it is installed.

    Raises:
        ConfigError: ``EMBEDROUTE_AUTH`` does not state who may call.
    """
    return environment_config(environ, local=find_spec("wordllama") is not None)


class LoopRuntime(msgspec.Struct, frozen=True):
    """What belongs to one event loop: how its desk embeds, and the keys being computed on it."""

    embed: Embed
    flights: SingleFlight[Sequence[ResolvedEndpoint], DispatchContext]


class RuntimeFactory:
    """Opens what belongs to an event loop; loaded models, health, widths and the retry budget are shared by all loops."""

    def __init__(
        self,
        settings: Settings,
        client: "httpx2.AsyncClient | None",
        healths: HealthRegistry,
        retries: RetryPolicy,
        make_transport: Callable[[], Transport] | None = None,
    ) -> None:
        """Open nothing yet. ``make_transport`` replaces the transport that the config asks for.

        Raises:
            ConfigError: the client is of no use to the engine that is asked for.
        """
        self._make_transport = make_transport or self._open_transport
        if mistakes := transport_mistakes(settings.engine, _connect(settings), client):
            raise ConfigError(mistakes)
        self._settings = settings
        self._client = client
        self._healths = healths
        self._retries = retries
        self._local = LocalModels(settings.local_threads)
        self._widths = WidthRegistry()
        self._budget = RetryBudget()

    def open(self, stack: AsyncExitStack) -> LoopRuntime:
        """Make this loop's engine and desk; what must be closed goes on ``stack``.

        Raises:
            InternalError: the config does not fit this kind of event loop, which is no client's affair.
        """
        raise_malloc_trim_threshold()
        engine = self._make_transport()
        stack.push_async_callback(engine.aclose)
        clock, healths = time.monotonic, self._healths
        attempts = AttemptRunner(
            transport=engine, local=self._local, healths=healths, widths=self._widths, clock=clock
        )
        desk = Dispatcher(
            attempts=attempts,
            healths=healths,
            budget=self._budget,
            policy=self._retries,
            clock=clock,
            random=random.random,
        )
        return LoopRuntime(desk.embed, SingleFlight(attempts.expect))

    def _open_transport(self) -> Transport:
        settings = self._settings
        try:
            return create_transport(
                settings.engine, _connect(settings), self._client, on_asyncio=tasks.on_asyncio()
            )
        except ConfigError as error:
            log.exception("config", extra=log_fields({"reason": error.message}))
            raise InternalError(
                "This gateway cannot serve on this event loop; its log holds the reason."
            ) from error
