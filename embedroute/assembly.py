"""Puts a gateway together: what a config comes to, and what is opened on each event loop."""

import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import msgspec

from embedroute import tasks
from embedroute.access import KeyRing, access_mistakes
from embedroute.calls import Desk
from embedroute.config import Config, environment_config, read_config
from embedroute.errors import ConfigError
from embedroute.exchange import LocalModels
from embedroute.flights import Flights
from embedroute.http import Connect
from embedroute.http.choose import open_engine
from embedroute.models import catalogue, known_providers
from embedroute.plugins import build_backends
from embedroute.routing.directory import Directory, build_directory
from embedroute.routing.health import BreakerPolicy, Healths
from embedroute.routing.order import Surroundings
from embedroute.routing.retry import RetryBudget, RetryPolicy
from embedroute.routing.widths import Widths
from embedroute.settings import Settings
from embedroute.wire.narrow import Limits

if TYPE_CHECKING:
    import httpx2


class Options(TypedDict, total=False):
    """What a gateway takes besides its config."""

    http_client: "httpx2.AsyncClient | None"
    retries: RetryPolicy | None
    breaker: BreakerPolicy | None
    environ: Mapping[str, str]


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What a config comes to, before anything is opened."""

    settings: Settings
    limits: Limits
    keys: KeyRing
    directory: Directory


def assembled(config: Config, environ: Mapping[str, str]) -> Parts:
    """Load the backends that a config names and join it with what is shipped.

    Raises:
        ConfigError: one line per mistake, each with its place.
    """
    backends, mistakes = build_backends(config, known_providers(), environ)
    directory, more = build_directory(config, backends, catalogue(), known_providers())
    if found := [*access_mistakes(config), *mistakes, *more]:
        raise ConfigError(found)
    settings = config.gateway
    return Parts(settings=settings, limits=Limits.of(settings), keys=KeyRing(config.keys), directory=directory)


def around_of(parts: Parts, healths: Healths) -> Callable[[], Surroundings]:
    """Tell what decisions know beside a request, as of the moment it is asked."""

    def around() -> Surroundings:
        return Surroundings(
            only=parts.settings.only,
            ignore=parts.settings.ignore,
            known_names=parts.directory.known_names,
            health=healths.of,
            now=time.monotonic(),
            random=random.random,
        )

    return around


def config_from_file(path: str | PathLike[str] | None, environ: Mapping[str, str]) -> tuple[Config, list[str]]:
    """Read ``path``, or the file that ``EMBEDROUTE_CONFIG`` names, or ``embedroute.toml``.

    Raises:
        ConfigError: there is no such file.
    """
    named = path or environ.get("EMBEDROUTE_CONFIG") or "embedroute.toml"
    try:
        text = Path(named).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"The config {named} cannot be read: {error}"]) from None
    return read_config(text, environ)


@contextmanager
def told_together(mistakes: Sequence[str]) -> Generator[None, None, None]:
    """Add the mistakes of reading a config to those of building something of it.

    Raises:
        ConfigError: there are any, one line each.
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError([*mistakes, *error.mistakes]) from None
    if mistakes:
        raise ConfigError(mistakes)


def config_from_environment(environ: Mapping[str, str]) -> Config:
    """Turn on what the environment has keys for, and the local model if it is installed.

    Raises:
        ConfigError: ``EMBEDROUTE_AUTH`` does not state who may call.
    """
    return environment_config(environ, local=find_spec("wordllama") is not None)


class Loop(msgspec.Struct, frozen=True):
    """What belongs to one event loop: the desk that makes its calls, and the keys being computed on it."""

    desk: Desk
    flights: Flights


class Opener:
    """Opens what belongs to an event loop; loaded models, health, widths and the retry budget are shared by all loops."""

    def __init__(self, settings: Settings, client: "httpx2.AsyncClient | None", healths: Healths, retries: RetryPolicy) -> None:
        """Open nothing yet."""
        self._settings = settings
        self._client = client
        self._healths = healths
        self._retries = retries
        self._local = LocalModels()
        self._widths = Widths()
        self._budget = RetryBudget()

    def open(self, stack: AsyncExitStack) -> Loop:
        """Make this loop's engine and desk; what must be closed goes on ``stack``."""
        connect = Connect(proxy=self._settings.proxy, ca_file=self._settings.ca_file)
        engine = open_engine(self._settings.engine, connect, self._client, on_asyncio=tasks.on_asyncio())
        stack.push_async_callback(engine.aclose)
        desk = Desk(
            engine=engine,
            local=self._local,
            healths=self._healths,
            widths=self._widths,
            budget=self._budget,
            policy=self._retries,
            clock=time.monotonic,
            random=random.random,
        )
        return Loop(desk, Flights())
