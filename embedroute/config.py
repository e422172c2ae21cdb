"""The operator's border: TOML or environment in, a typed Config out, or every mistake in it with its place."""

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from embedroute.backend import Secret
from embedroute.errors import ConfigError, did_you_mean
from embedroute.models import Endpoint, Model, Provider, known_providers

Seconds = Annotated[float, Meta(gt=0)]
Auth = Literal["keys", "open", "host"]
DialectName = Literal["openai", "openrouter", "gomodel", "phaseo", "spice"]

STATE_AUTH = (
    '[gateway] auth is not stated; write auth = "keys" (and a [keys.NAME] table with key = "env:VARIABLE"), '
    'auth = "host" (the host application decides who calls) or auth = "open" (anyone may call).'
)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[gateway]`` table; durations in seconds, sizes in bytes."""

    auth: Auth | None = None
    dialect: DialectName = "openai"
    unknown_fields: Literal["reject", "ignore"] = "reject"
    media_domains: list[str] = []
    debug: bool = False
    body_timeout: Seconds = 30.0
    deadline: Seconds = 60.0
    max_body_bytes: Annotated[int, Meta(ge=1)] = 33_554_432
    max_inputs: Annotated[int, Meta(ge=1)] = 2048
    only: list[str] = []
    ignore: list[str] = []


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A ``[keys.NAME]`` table: one caller; ``models`` None allows all of them."""

    key: Secret
    models: list[str] | None = None
    debug: bool | None = None
    only: list[str] = []
    ignore: list[str] = []


class CacheSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[cache]`` table: a bound in bytes (0 = off) and a time to live in seconds."""

    bytes: Annotated[int, Meta(ge=0)] = 268_435_456
    ttl: Seconds = 86_400.0


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
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        reading = _Reading({})
        for name, value in reading.tables(given).items():
            msgspec.structs.force_setattr(self, name, value)
        reading.finish()


def read_config(text: str, environ: Mapping[str, str]) -> Config:
    """Read the TOML of a config; secrets come from ``environ`` and from the files they name.

    Raises:
        ConfigError: one line per mistake, each with its place.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"The config is not TOML: {error}"]) from None
    reading = _Reading(environ)
    unknown = [
        f'unknown table "{name}"{did_you_mean(name, Config.__struct_fields__)}'
        for name in tables
        if name not in Config.__struct_fields__
    ]
    reading.mistakes.extend(unknown)
    read = reading.tables({name: tables.get(name, {}) for name in Config.__struct_fields__})
    reading.finish()
    return Config(**read)


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
        raise ConfigError(["EMBEDROUTE_AUTH must say who may call: keys (with EMBEDROUTE_KEY), host or open."])
    if auth == "keys" and not key:
        raise ConfigError(['EMBEDROUTE_KEY must hold the key that callers send, because EMBEDROUTE_AUTH is "keys".'])
    keys = {"default": Key(key=Secret(key))} if key and auth == "keys" else {}
    return Config(gateway=Settings(auth=auth), keys=keys, providers=providers)


def _set_options(variables: Mapping[str, list[str]], environ: Mapping[str, str]) -> dict[str, str]:
    found = {option: next((environ[name] for name in names if environ.get(name)), "") for option, names in variables.items()}
    return {option: value for option, value in found.items() if value} if found.get("api_key") else {}


def secret_hook(environ: Mapping[str, str]) -> Callable[[type, Any], Any]:
    """Make msgspec read a ``Secret``: ``env:NAME``, ``file:PATH``, or the secret itself."""

    def read(wanted: type, value: Any) -> Any:
        if wanted is not Secret:
            raise NotImplementedError
        return value if isinstance(value, Secret) else Secret(_reveal(value, environ))

    return read


def _reveal(text: object, environ: Mapping[str, str]) -> str:
    if not isinstance(text, str):
        raise ValueError("must be a string: env:NAME, file:PATH or the secret itself")  # noqa: TRY004 - msgspec words ValueError
    source, _, name = text.partition(":")
    if source == "env":
        found = environ.get(name, "")
        if not found:
            raise ValueError(f"the environment variable {name} is not set")
        return found
    if source == "file":
        try:
            return Path(name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"the file {name} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def fit(
    place: str, table: Mapping[str, Any], wanted: type[msgspec.Struct], environ: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Fit a table to a struct's fields one by one, so that every mistake is named and not only the first."""
    fields = {field.name: field for field in msgspec.structs.fields(wanted)}
    mistakes = [f'[{place}] unknown option "{name}"{did_you_mean(name, list(fields))}' for name in table if name not in fields]
    fitted: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in table:
            if field.required:
                mistakes.append(f'[{place}] option "{name}" is missing')
            continue
        try:
            fitted[name] = msgspec.convert(table[name], field.type, dec_hook=secret_hook(environ))
        except msgspec.ValidationError as error:
            mistakes.append(f"[{place}] {name}: {_plain(error)}")
    return fitted, mistakes


def _plain(error: msgspec.ValidationError) -> str:
    return str(error).partition(" - at `$`")[0].replace("`", "").replace(" - at $", " at ")


class _Reading:
    """One pass over the tables of a config, gathering mistakes instead of stopping at the first."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.mistakes: list[str] = []

    def finish(self) -> None:
        if self.mistakes:
            raise ConfigError(self.mistakes)

    def tables(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "gateway": self.struct("gateway", given["gateway"], Settings),
            "keys": self.each("keys", given["keys"], Key),
            "cache": self.struct("cache", given["cache"], CacheSettings),
            "providers": {slug: self.provider(slug, table) for slug, table in self.named("providers", given["providers"])},
            "models": {name: self.model(name, table) for name, table in self.named("models", given["models"])},
        }

    def named(self, place: str, tables: Any) -> list[tuple[str, Any]]:
        if isinstance(tables, Mapping):
            return [(str(name), table) for name, table in tables.items()]
        self.mistakes.append(f"[{place}] must be a table")
        return []

    def each(self, place: str, tables: Any, wanted: type[msgspec.Struct]) -> dict[str, Any]:
        return {name: self.struct(f"{place}.{quoted(name)}", table, wanted) for name, table in self.named(place, tables)}

    def struct(self, place: str, table: Any, wanted: type[msgspec.Struct]) -> Any:
        if isinstance(table, wanted):
            return table
        if not isinstance(table, Mapping):
            self.mistakes.append(f"[{place}] must be a table")
            return None
        fitted, mistakes = fit(place, table, wanted, self.environ)
        self.mistakes.extend(mistakes)
        return None if mistakes else wanted(**fitted)

    def provider(self, slug: str, table: Any) -> Any:
        if isinstance(table, Provider) or not isinstance(table, Mapping):
            return self.struct(f"providers.{quoted(slug)}", table, Provider)
        reserved = set(Provider.__struct_fields__) - {"options"}
        options = {name: value for name, value in table.items() if name not in reserved}
        own = {name: value for name, value in table.items() if name in reserved}
        return self.struct(f"providers.{quoted(slug)}", {**own, "options": options}, Provider)

    def model(self, name: str, table: Any) -> Any:
        place = f"models.{quoted(name)}"
        if isinstance(table, Model) or not isinstance(table, Mapping):
            return self.struct(place, table, Model)
        endpoints = table.get("endpoints", [])
        if not isinstance(endpoints, list):
            self.mistakes.append(f"[{place}] endpoints must be an array of tables")
            endpoints = []
        read = [self.struct(f"{place}.endpoints] [{at}", endpoint, Endpoint) for at, endpoint in enumerate(endpoints)]
        return self.struct(place, {**table, "endpoints": [endpoint for endpoint in read if endpoint]}, Model)


def quoted(name: str) -> str:
    """Write a table's name as TOML does."""
    return name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else f'"{name}"'
