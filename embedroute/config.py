"""The operator's border: TOML or environment in, a typed Config out, or every mistake in it with its place."""

import os
import tomllib
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from embedroute.errors import ConfigError
from embedroute.models import Model, Provider, known_providers
from embedroute.reading import Place, Unread
from embedroute.secret import Secret
from embedroute.settings import CacheSettings, Key, Settings
from embedroute.tables import Reading, Tables
from embedroute.wording import closest, did_you_mean

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
    keys: dict[str, Key] = {}
    cache: CacheSettings = CacheSettings()
    providers: dict[str, Provider] = {}
    models: dict[str, Model] = {}

    def __post_init__(self) -> None:
        """Read the tables that were given as plain dicts."""
        reading = Reading(os.environ)
        _hold(self, reading.tables(msgspec.structs.asdict(self)))
        if reading.mistakes:
            raise ConfigError(reading.mistakes)


def _hold(config: Config, tables: Tables) -> None:
    for name, value in tables.items():
        msgspec.structs.force_setattr(config, name, value)


class Draft(msgspec.Struct, frozen=True):
    """What could be read of a config's text, the mistakes in the rest, and the places that these leave unread.

    With no mistake it is the config; with one it is good for finding more of them, and for nothing else.
    """

    config: Config
    mistakes: list[str]
    unread: Unread = Unread()


def read_config(text: str, environ: Mapping[str, str]) -> Draft:
    """Read the TOML of a config; secrets come from ``environ`` and from the files they name.

    Raises:
        ConfigError: it is not TOML, so that nothing of it is known.
    """
    given = _parsed(text)
    if isinstance(given, str):  # raised here: the parser's own error would keep the text, in which keys may stand
        raise ConfigError([f"The config is not TOML: {given}"])
    names, reading, config = Config.__struct_fields__, Reading(environ), Config()
    for mistake, place in _astray(given):
        reading.mistakes.append(mistake)
        reading.unread.add(place)
    _hold(config, reading.tables({name: given.get(name, {}) for name in names}))
    return Draft(config, reading.mistakes, Unread(frozenset(reading.unread)))


def _parsed(text: str) -> dict[str, object] | str:
    """Parse TOML; what is wrong with it is returned as a text."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return str(error)


def _astray(given: Mapping[str, object]) -> Iterator[tuple[str, Place]]:
    """Name what is no table of a config, with the place that it was probably meant for."""
    names = Config.__struct_fields__
    for name, value in given.items():
        if name in names:
            continue
        if name in Settings.__struct_fields__ and not isinstance(value, dict):
            yield f'option "{name}" stands before all tables; write it under [gateway]', ("gateway", name)
        else:
            meant = closest(name, names)
            yield f'unknown table "{name}"{did_you_mean(name, names)}', (name if meant in (None, *given) else meant,)


def environment_config(environ: Mapping[str, str], *, local: bool) -> Config:
    """Turn on every known provider whose key variable is set, and the local model if ``local``.

    Raises:
        ConfigError: ``EMBEDROUTE_AUTH`` does not say who may call, or ``EMBEDROUTE_KEY`` is missing for "keys".
    """
    given = {name: value.strip() for name, value in environ.items()}
    providers = {
        slug: Provider(options=options) for slug, row in known_providers().items() if (options := _set_options(row.env, given))
    }
    if local:
        providers["wordllama"] = Provider()
    auth, key = given.get("EMBEDROUTE_AUTH"), given.get("EMBEDROUTE_KEY")
    if auth not in ("keys", "open", "host"):
        raise ConfigError([STATE_ENV_AUTH])
    if auth == "keys" and not key:
        raise ConfigError(['EMBEDROUTE_KEY must hold the key that callers send, because EMBEDROUTE_AUTH is "keys".'])
    keys = {"default": Key(key=Secret(key))} if key and auth == "keys" else {}
    return Config(gateway=Settings(auth=auth), keys=keys, providers=providers)


def _set_options(variables: Mapping[str, list[str]], environ: Mapping[str, str]) -> dict[str, str]:
    found = {option: next((environ[name] for name in names if environ.get(name)), "") for option, names in variables.items()}
    return {option: value for option, value in found.items() if value} if found.get("api_key") else {}
