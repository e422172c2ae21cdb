"""Reads the tables of a config into their structs, one pass over all of them; a bad value costs that value alone.

The operator's border: TOML or environment in, a typed Config out, or every mistake in it with its place.
"""

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypedDict, TypeVar, cast

import msgspec

from embedroute.backend import Secret
from embedroute.config.catalog import known_providers
from embedroute.config.models import Endpoint, Model, Provider
from embedroute.config.settings import ApiKey, CacheSettings, Settings
from embedroute.config.validation import Place, UnknownFields, as_table, convert_fields, written
from embedroute.errors import ConfigError
from embedroute.text import closest, did_you_mean

T = TypeVar("T")
Table = TypeVar("Table", bound=msgspec.Struct)

_SENDABLE = re.compile(r"[\x21-\x7e]{1,256}")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", re.IGNORECASE)


class Tables(TypedDict):
    """Each table of a config, read."""

    gateway: Settings
    keys: dict[str, ApiKey]
    cache: CacheSettings
    providers: dict[str, Provider]
    models: dict[str, Model]


class ConfigReader:
    """One pass over the tables of a config: the mistakes in them, and the places that these leave unread.

    What is required and cannot be read is stood in for, so that the rest of its table can be judged.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read nothing yet; secrets will come from ``environ`` and from the files they name."""
        self.environ = environ
        self.mistakes: list[str] = []
        self.unread: set[Place] = set()

    def tables(self, given: Mapping[str, object]) -> Tables:
        """Read all of a config."""
        found: Tables = {
            "gateway": self.struct(("gateway",), given["gateway"], Settings),
            "keys": self.read_tables(
                "keys",
                given["keys"],
                lambda place, it: self.struct(place, it, ApiKey, key=Secret("")),
            ),
            "cache": self.struct(("cache",), given["cache"], CacheSettings),
            "providers": self.read_tables("providers", given["providers"], self.provider),
            "models": self.read_tables("models", given["models"], self.model),
        }
        self.check_media_domains(found["gateway"].media_domains)
        self.check_keys(found["keys"])
        return found

    def add(self, place: Place, mistake: str) -> None:
        """Write a mistake down."""
        self.mistakes.append(f"[{written(place)}] {mistake}")

    def table(self, place: Place, given: object) -> Mapping[str, object]:
        """Take a value as a table; what is none holds nothing."""
        table = as_table(given)
        if table is None:
            self.add(place, "must be a table")
            self.unread.add(place)
            return {}
        return table

    def read_tables(
        self, name: str, given: object, read: Callable[[Place, object], T]
    ) -> dict[str, T]:
        """Read the tables of a table."""
        return {key: read((name, key), value) for key, value in self.table((name,), given).items()}

    def struct(self, place: Place, given: object, wanted: type[Table], **required: object) -> Table:
        """Read a table as a struct; ``required`` are what stands in for fields without a default."""
        table = self.table(place, given)
        if place in self.unread:
            return wanted(**required)
        found = convert_fields(written(place), table, wanted, self.environ)
        self.mistakes += found.mistakes
        self.unread |= {(*place, name) for name in found.unread}
        return wanted(**{**required, **found.values})

    def provider(self, place: Place, given: object) -> Provider:
        """Read an account: the keys that are ours, and the backend's, which may stand in ``options`` too."""
        table, ours = self.table(place, given), {*Provider.__struct_fields__} - {"options"}
        options = self.table((*place, "options"), table.get("options", {}))
        beside = {
            name: value for name, value in table.items() if name not in ours and name != "options"
        }
        for name in beside.keys() & options.keys():
            self.add(place, f'option "{name}" stands twice, in the table and in its options')
        own = {name: value for name, value in table.items() if name in ours}
        return self.struct(place, {**own, "options": {**options, **beside}}, Provider)

    def model(self, place: Place, given: object) -> Model:
        """Read a model, each of its endpoints for itself."""
        table = self.table(place, given)
        if not place[-1]:
            self.add(place, "a model has a name")
        if isinstance(endpoints := table.get("endpoints"), list | tuple):
            listed = enumerate(cast("Sequence[object]", endpoints))
            read = [
                self.struct((*place, "endpoints", str(at)), it, Endpoint, provider="")
                for at, it in listed
            ]
            table = {**table, "endpoints": read}
        return self.struct(place, table, Model)

    def check_keys(self, keys: Mapping[str, ApiKey]) -> None:
        """Name the keys that no client could send, and those that are another's too."""
        owners: dict[str, str] = {}
        for name, it in keys.items():
            text, place = it.key.reveal(), ("keys", name)
            if place in self.unread or (*place, "key") in self.unread:
                continue
            if not _SENDABLE.fullmatch(text):
                self.add(place, "key must be 1 to 256 visible ASCII characters")
            elif (owner := owners.setdefault(text, name)) != name:
                self.add(place, f'key is the same as that of "{owner}"')

    def check_media_domains(self, names: Sequence[str]) -> None:
        """Name what can be no image's host: the whole of it is compared."""
        for name in names:
            if not _HOST.fullmatch(name):
                fault = f'media_domains: "{name}" is no host name; write the name alone, as in "images.example.com"'
                self.add(("gateway",), fault)


STATE_AUTH: Final = (
    '[gateway] auth is not stated; write auth = "keys" (and a [keys.NAME] table with key = "env:VARIABLE"), '
    'auth = "host" (the host application decides who calls) or auth = "open" (anyone may call).'
)

STATE_ENV_AUTH: Final = (
    "EMBEDROUTE_AUTH must say who may call: keys (with EMBEDROUTE_KEY), host or open. Gateway.from_env() reads no "
    "config file; Gateway.from_file() and the embedroute command read the one that EMBEDROUTE_CONFIG names."
)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that an operator says; the tables may be given as the structs or as plain dicts.

    Raises:
        ConfigError: a table does not fit, one line per mistake.
    """

    gateway: Settings = Settings()
    keys: dict[str, ApiKey] = {}
    cache: CacheSettings = CacheSettings()
    providers: dict[str, Provider] = {}
    models: dict[str, Model] = {}

    def __post_init__(self) -> None:
        """Read the tables that were given as plain dicts."""
        reading = ConfigReader(os.environ)
        _assign(self, reading.tables(msgspec.structs.asdict(self)))
        if reading.mistakes:
            raise ConfigError(reading.mistakes)


def _assign(config: Config, tables: Tables) -> None:
    for name, value in tables.items():
        msgspec.structs.force_setattr(config, name, value)


class PartialConfig(msgspec.Struct, frozen=True):
    """What could be read of a config's text, the mistakes in the rest, and the places that these leave unread.

    With no mistake it is the config; with one it is good for finding more of them, and for nothing else.
    """

    config: Config
    mistakes: list[str]
    unread: UnknownFields = UnknownFields()


def read_config(text: str, environ: Mapping[str, str]) -> PartialConfig:
    """Read the TOML of a config; secrets come from ``environ`` and from the files they name.

    Raises:
        ConfigError: it is not TOML, so that nothing of it is known.
    """
    given = _parsed(text)
    if isinstance(
        given, str
    ):  # raised here: the parser's own error would keep the text, in which keys may stand
        raise ConfigError([f"The config is not TOML: {given}"])
    names, reading, config = Config.__struct_fields__, ConfigReader(environ), Config()
    for mistake, place in _unknown_tables(given):
        reading.mistakes.append(mistake)
        reading.unread.add(place)
    _assign(config, reading.tables({name: given.get(name, {}) for name in names}))
    return PartialConfig(config, reading.mistakes, UnknownFields(frozenset(reading.unread)))


def _parsed(text: str) -> dict[str, object] | str:
    """Parse TOML; what is wrong with it is returned as a text."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return str(error)


def _unknown_tables(given: Mapping[str, object]) -> Iterator[tuple[str, Place]]:
    """Name what is no table of a config, with the place that it was probably meant for."""
    names = Config.__struct_fields__
    for name, value in given.items():
        if name in names:
            continue
        if name in Settings.__struct_fields__ and not isinstance(value, dict):
            yield (
                f'option "{name}" stands before all tables; write it under [gateway]',
                ("gateway", name),
            )
        else:
            meant = closest(name, names)
            yield (
                f'unknown table "{name}"{did_you_mean(name, names)}',
                (name if meant in (None, *given) else meant,),
            )


def environment_config(environ: Mapping[str, str], *, local: bool) -> Config:
    """Turn on every known provider whose key variable is set, and the local model if ``local``.

    Raises:
        ConfigError: ``EMBEDROUTE_AUTH`` does not say who may call, or ``EMBEDROUTE_KEY`` is missing for "keys".
    """
    given = {name: value.strip() for name, value in environ.items()}
    providers = {
        slug: Provider(options=options)
        for slug, row in known_providers().items()
        if (options := _set_options(row.env, given))
    }
    if local:
        providers["wordllama"] = Provider()
    auth, key = given.get("EMBEDROUTE_AUTH"), given.get("EMBEDROUTE_KEY")
    if auth not in ("keys", "open", "host"):
        raise ConfigError([STATE_ENV_AUTH])
    if auth == "keys" and not key:
        raise ConfigError(
            [
                'EMBEDROUTE_KEY must hold the key that callers send, because EMBEDROUTE_AUTH is "keys".'
            ]
        )
    keys = {"default": ApiKey(key=Secret(key))} if key and auth == "keys" else {}
    return Config(gateway=Settings(auth=auth), keys=keys, providers=providers)


def _set_options(variables: Mapping[str, list[str]], environ: Mapping[str, str]) -> dict[str, str]:
    found = {
        option: next((environ[name] for name in names if environ.get(name)), "")
        for option, names in variables.items()
    }
    return (
        {option: value for option, value in found.items() if value} if found.get("api_key") else {}
    )
