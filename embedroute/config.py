"""The operator's border: TOML or environment in, a typed Config out, or every mistake in it with its place."""

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import TypedDict, TypeVar, cast

import msgspec

from embedroute.errors import ConfigError
from embedroute.models import Endpoint, Model, Provider, known_providers
from embedroute.reading import as_table, fit, quoted
from embedroute.secret import Secret
from embedroute.settings import CacheSettings, Key, Settings
from embedroute.wording import did_you_mean

STATE_AUTH = (
    '[gateway] auth is not stated; write auth = "keys" (and a [keys.NAME] table with key = "env:VARIABLE"), '
    'auth = "host" (the host application decides who calls) or auth = "open" (anyone may call).'
)

STATE_ENV_AUTH = (
    "There is no config file, and EMBEDROUTE_AUTH does not say who may call. Name a file in EMBEDROUTE_CONFIG, "
    "or set EMBEDROUTE_AUTH to keys (with EMBEDROUTE_KEY), host or open."
)

T = TypeVar("T")
Table = TypeVar("Table", bound=msgspec.Struct)

_SENDABLE = re.compile(r"[\x21-\x7e]{1,256}")


class _Tables(TypedDict):
    gateway: Settings
    keys: dict[str, Key]
    cache: CacheSettings
    providers: dict[str, Provider]
    models: dict[str, Model]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that an operator says; the tables may be given as the structs or as plain dicts.

    Raises:
        ConfigError: a table does not fit, one line per mistake.
    """

    gateway: Settings = Settings()
    keys: dict[str, Key] = {}
    cache: CacheSettings = CacheSettings()
    providers: dict[str, Provider] = {}
    models: dict[str, Model] = {}

    def __post_init__(self) -> None:
        """Read the tables that were given as plain dicts."""
        reading = _Reading(os.environ)
        for name, value in reading.tables(msgspec.structs.asdict(self)).items():
            msgspec.structs.force_setattr(self, name, value)
        reading.finish()


def read_config(text: str, environ: Mapping[str, str]) -> tuple[Config, list[str]]:
    """Read the TOML of a config; secrets come from ``environ`` and from the files they name.

    Returns what could be read, and the mistakes in the rest, each with its place: so that whoever goes on to
    build something of it can name all mistakes at once.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return Config(), [f"The config is not TOML: {error}"]
    names = Config.__struct_fields__
    unknown = [f'unknown table "{name}"{did_you_mean(name, names)}' for name in tables if name not in names]
    reading = _Reading(environ)
    read = reading.tables({name: tables.get(name, {}) for name in names})
    return Config(**read), [*unknown, *reading.mistakes]


def environment_config(environ: Mapping[str, str], *, local: bool) -> Config:
    """Turn on every known provider whose key variable is set, and the local model if ``local``.

    Raises:
        ConfigError: ``EMBEDROUTE_AUTH`` does not say who may call, or ``EMBEDROUTE_KEY`` is missing for "keys".
    """
    providers = {
        slug: Provider(options=options)
        for slug, row in known_providers().items()
        if (options := _set_options(row.env, environ))
    }
    if local:
        providers["wordllama"] = Provider()
    auth, key = environ.get("EMBEDROUTE_AUTH"), environ.get("EMBEDROUTE_KEY")
    if auth not in ("keys", "open", "host"):
        raise ConfigError([STATE_ENV_AUTH])
    if auth == "keys" and not key:
        raise ConfigError(['EMBEDROUTE_KEY must hold the key that callers send, because EMBEDROUTE_AUTH is "keys".'])
    keys = {"default": Key(key=Secret(key))} if key and auth == "keys" else {}
    return Config(gateway=Settings(auth=auth), keys=keys, providers=providers)


def _set_options(variables: Mapping[str, list[str]], environ: Mapping[str, str]) -> dict[str, str]:
    found = {option: next((environ[name] for name in names if environ.get(name)), "") for option, names in variables.items()}
    return {option: value for option, value in found.items() if value} if found.get("api_key") else {}


class _Reading:
    """One pass over the tables of a config, gathering mistakes instead of stopping at the first."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.mistakes: list[str] = []

    def finish(self) -> None:
        if self.mistakes:
            raise ConfigError(self.mistakes)

    def tables(self, given: Mapping[str, object]) -> _Tables:
        return {
            "gateway": self.struct("gateway", given["gateway"], Settings) or Settings(),
            "keys": self.usable(
                self.each("keys", given["keys"], lambda name, table: self.struct(f"keys.{quoted(name)}", table, Key))
            ),
            "cache": self.struct("cache", given["cache"], CacheSettings) or CacheSettings(),
            "providers": self.each("providers", given["providers"], self.provider),
            "models": self.each("models", given["models"], self.model),
        }

    def each(self, place: str, given: object, read: Callable[[str, object], T | None]) -> dict[str, T]:
        tables = as_table(given)
        if tables is None:
            self.mistakes.append(f"[{place}] must be a table")
            return {}
        found = {name: read(name, table) for name, table in tables.items()}
        return {name: value for name, value in found.items() if value is not None}

    def usable(self, keys: dict[str, Key]) -> dict[str, Key]:
        owners: dict[str, str] = {}
        for name, it in keys.items():
            text = it.key.reveal()
            if not _SENDABLE.fullmatch(text):
                self.mistakes.append(f"[keys.{quoted(name)}] key must be 1 to 256 visible ASCII characters")
            elif (owner := owners.setdefault(text, name)) != name:
                self.mistakes.append(f'[keys.{quoted(name)}] key is the same as that of "{owner}"')
        return {name: keys[name] for name in owners.values()}

    def struct(self, place: str, given: object, wanted: type[Table]) -> Table | None:
        table = as_table(given)
        if table is None:
            self.mistakes.append(f"[{place}] must be a table")
            return None
        fitted, mistakes = fit(place, table, wanted, self.environ)
        self.mistakes.extend(mistakes)
        return None if mistakes else wanted(**fitted)

    def provider(self, slug: str, given: object) -> Provider | None:
        table = as_table(given)
        if table is not None and "options" not in table:
            reserved = Provider.__struct_fields__
            own = {name: value for name, value in table.items() if name in reserved}
            given = {**own, "options": {name: value for name, value in table.items() if name not in reserved}}
        return self.struct(f"providers.{quoted(slug)}", given, Provider)

    def model(self, name: str, given: object) -> Model | None:
        place, table = f"models.{quoted(name)}", as_table(given)
        endpoints = table.get("endpoints") if table is not None else None
        if table is not None and isinstance(endpoints, list):
            listed = cast("list[object]", endpoints)
            read = [self.struct(f"{place}.endpoints.{at}", endpoint, Endpoint) for at, endpoint in enumerate(listed)]
            given = {**table, "endpoints": [endpoint for endpoint in read if endpoint is not None]}
        return self.struct(place, given, Model)
