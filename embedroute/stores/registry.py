"""Finds the store of a URL: the built-in ones by a table, others by entry point.

The name of an entry point in the group ``embedroute.stores`` is the scheme of its URLs.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Final, cast
from urllib.parse import urlsplit

from embedroute.config import StoreSettings
from embedroute.errors import ConfigError, MissingExtra
from embedroute.stores.base import Store
from embedroute.text import did_you_mean

GROUP: Final = "embedroute.stores"
_REDIS: Final = "embedroute.stores.redis:RedisStore"
BUILT_IN: Final[Mapping[str, str]] = {
    "redis": _REDIS,
    "rediss": _REDIS,
    "sqlite": "embedroute.stores.sqlite:SQLiteStore",
    "unix": _REDIS,
    "valkey": _REDIS,
    "valkeys": _REDIS,
}
"""The schemes of the built-in stores."""


def make_store(settings: StoreSettings) -> Store | None:
    """Make the store of a config, without a connection; None if the config has none.

    Raises:
        ConfigError: the URL cannot be used; the message does not contain its user or password.
    """
    if settings.url is None:
        return None
    url = settings.url.reveal()
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ConfigError([f"[store] url must be a URL such as {_EXAMPLES}"])
    make = _load(scheme.lower())
    try:
        return make(url, settings)
    except MissingExtra:
        raise
    except ValueError as error:
        raise ConfigError([f"[store] url: {error}"]) from None


_EXAMPLES: Final = '"sqlite:///embedroute.db" or "redis://localhost:6379/0"'


def _load(scheme: str) -> Callable[[str, StoreSettings], Store]:
    value = BUILT_IN.get(scheme)
    others = {} if value else _entry_points()
    value = value or others.get(scheme)
    if value is None:
        advice = did_you_mean(scheme, [*BUILT_IN, *others]) or f". Write {_EXAMPLES}"
        raise ConfigError([f'[store] url: no store has the scheme "{scheme}"{advice}.'])
    module, _, attribute = value.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError([f"[store] url: {value} cannot be imported: {error}"]) from error
    return cast("Callable[[str, StoreSettings], Store]", found)


def _entry_points() -> dict[str, str]:
    # Deferred: importing importlib.metadata takes a fifth of the time of importing embedroute.
    entries = importlib.import_module("importlib.metadata").entry_points(group=GROUP)
    return {entry.name: entry.value for entry in entries}


def place_of(url: str) -> str:
    """Return a URL without its user, password and query, for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
