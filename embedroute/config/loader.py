"""Reads a configuration from TOML, from environment variables or from structs made in Python.

This is phase 1: tables become structs, and mistakes are collected with their location. Phase 2, in
``embedroute.bootstrap``, builds the parts of a gateway from the structs.
"""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypedDict, TypeVar, cast

import msgspec

from embedroute.backend import Secret, repr_as_in_rich
from embedroute.config.catalog import known_providers
from embedroute.config.models import Endpoint, KnownProvider, Model, Provider
from embedroute.config.policies import BOUNDS, POLICIES, BreakerPolicy, RetryPolicy
from embedroute.config.settings import (
    ApiKey,
    CacheSettings,
    LimitSettings,
    Settings,
    StoreSettings,
)
from embedroute.config.toml_syntax import parse_toml
from embedroute.config.validation import (
    HeaderSecret,
    Mistake,
    SecretReference,
    TablePath,
    UnreadPaths,
    as_table,
    convert_fields,
    format_path,
)
from embedroute.config.vector_fields import changes_vectors
from embedroute.errors import ConfigError
from embedroute.text import closest, did_you_mean

T = TypeVar("T")
Table = TypeVar("Table", bound=msgspec.Struct)

_API_KEY = re.compile(r"[\x21-\x7e]{1,256}")
_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*", re.IGNORECASE)

_ONLY_PROVIDERS: Final = "cannot be header:NAME; only the api_key of a provider can"


class Tables(TypedDict):
    """The tables of a config as structs."""

    gateway: Settings
    keys: dict[str, ApiKey]
    cache: CacheSettings
    store: StoreSettings
    limits: LimitSettings
    providers: dict[str, Provider]
    models: dict[str, Model]


class ConfigReader:
    """Reads the tables of a config; collects the mistakes and the paths of unreadable values.

    A required value that cannot be read is replaced by a placeholder, so that the other values of
    its table can be checked.
    """

    def __init__(self, environ: Mapping[str, str] | None) -> None:
        """Read secrets from ``environ`` and from the files that the config names.

        Without an ``environ``, secrets of the form ``env:NAME`` are left to a later reader.
        """
        self.environ = environ
        self.mistakes: list[str] = []
        self.unread: set[TablePath] = set()

    def tables(self, config: Mapping[str, object]) -> Tables:
        """Read all tables of a config."""
        tables: Tables = {
            "gateway": self.struct(("gateway",), config["gateway"], Settings),
            "keys": self.read_tables(
                "keys",
                config["keys"],
                lambda path, value: self.struct(path, value, ApiKey, key=Secret("")),
            ),
            "cache": self.struct(("cache",), config["cache"], CacheSettings),
            "store": self.struct(("store",), config["store"], StoreSettings),
            "limits": self.struct(("limits",), config["limits"], LimitSettings),
            "providers": self.read_tables("providers", config["providers"], self.provider),
            "models": self.read_tables("models", config["models"], self.model),
        }
        self.check_media_domains(tables["gateway"].media_domains)
        self.check_unknown_fields(tables["gateway"].unknown_fields)
        self.check_keys(tables["keys"])
        if isinstance(tables["gateway"].proxy, HeaderSecret):
            self.add(("gateway",), f"proxy {_ONLY_PROVIDERS}")
        self.check_policies(tables["gateway"], tables["providers"])
        return tables

    def add(self, path: TablePath, mistake: str) -> None:
        """Record a mistake in the table at ``path``."""
        self.mistakes.append(f"[{format_path(path)}] {mistake}")

    def table(self, path: TablePath, value: object) -> Mapping[str, object]:
        """Return ``value`` as a table; if it is not one, record a mistake and return ``{}``."""
        table = as_table(value)
        if table is None:
            self.add(path, "must be a table")
            self.unread.add(path)
            return {}
        return table

    def read_tables(
        self, name: str, value: object, read: Callable[[TablePath, object], T]
    ) -> dict[str, T]:
        """Read each table inside the table ``name``."""
        return {key: read((name, key), item) for key, item in self.table((name,), value).items()}

    def struct(
        self, path: TablePath, value: object, type_: type[Table], **placeholders: object
    ) -> Table:
        """Read a table as a struct; ``placeholders`` are values for its required fields."""
        return type_(**{**placeholders, **self.fields(path, value, type_)})

    def fields(self, path: TablePath, value: object, type_: type[Table]) -> dict[str, object]:
        """Read the fields of a struct that a table sets."""
        table = self.table(path, value)
        if path in self.unread:
            return {}
        result = convert_fields(path, table, type_, self.environ)
        self.mistakes += result.mistakes
        self.unread |= {(*path, name) for name in result.unread}
        return result.values

    def provider(self, path: TablePath, value: object) -> Provider:
        """Read a provider, and each of its policies separately.

        The options of its backend are in the same table or in ``options``.
        """
        table = self.table(path, value)
        fields = {*Provider.__struct_fields__} - {"options"}
        options = self.table((*path, "options"), table.get("options", {}))
        inline_options = {
            name: item for name, item in table.items() if name not in fields and name != "options"
        }
        for name in inline_options.keys() & options.keys():
            self.add(
                path, f'option "{name}" is set in the table and in its options; remove one of them'
            )
        own = {name: item for name, item in table.items() if name in fields}
        for name, policy in POLICIES.items():
            own[name] = self.fields((*path, name), own.get(name, {}), policy)
        return self.struct(path, {**own, "options": {**options, **inline_options}}, Provider)

    def model(self, path: TablePath, value: object) -> Model:
        """Read a model, and each of its endpoints separately."""
        table = self.table(path, value)
        if not path[-1]:
            self.add(path, "the model name must not be empty")
        if isinstance(endpoints := table.get("endpoints"), list | tuple):
            converted = [
                self.struct((*path, "endpoints", str(index)), endpoint, Endpoint, provider="")
                for index, endpoint in enumerate(cast("Sequence[object]", endpoints))
            ]
            table = {**table, "endpoints": converted}
        return self.struct(path, table, Model)

    def check_keys(self, keys: Mapping[str, ApiKey]) -> None:
        """Record the API keys that a client cannot send in a header, and duplicates."""
        owners: dict[str, str] = {}
        for name, api_key in keys.items():
            text = api_key.key.reveal()
            path = ("keys", name)
            if path in self.unread or (*path, "key") in self.unread:
                continue
            if isinstance(api_key.key, SecretReference):
                continue
            if isinstance(api_key.key, HeaderSecret):
                self.add(path, f"key {_ONLY_PROVIDERS}")
                continue
            if not _API_KEY.fullmatch(text):
                self.add(path, "key must be 1 to 256 visible ASCII characters")
            elif (owner := owners.setdefault(text, name)) != name:
                self.add(path, f'key is the same as that of "{owner}"')

    def check_policies(self, gateway: Settings, providers: Mapping[str, Provider]) -> None:
        """Record the times whose maximum is less, also those that a provider inherits."""
        policies = {"retries": gateway.retries, "breaker": gateway.breaker}
        for name, policy in policies.items():
            self.check_bounds(("gateway", name), policy, policy.__struct_fields__)
        for slug, provider in providers.items():
            for name, own in (("retries", provider.retries), ("breaker", provider.breaker)):
                policy = msgspec.structs.replace(policies[name], **own)
                self.check_bounds(("providers", slug, name), policy, own)

    def check_bounds(
        self, path: TablePath, policy: RetryPolicy | BreakerPolicy, own: Container[str]
    ) -> None:
        """Check a policy; the fields that are not its ``own`` are those of the gateway."""
        values = msgspec.structs.asdict(policy)
        unread = UnreadPaths(frozenset(self.unread))
        for pair in BOUNDS:
            first, longest = pair
            is_wrong = first in values and values[longest] < values[first]
            inherited = [("gateway", path[-1], name) for name in pair if name not in own]
            paths = [*((*path, name) for name in pair), *inherited]
            if not is_wrong or any(unread.at(*each) for each in paths):
                continue
            self.unread |= {(*path, name) for name in pair}
            self.add(
                path,
                f"{longest} = {values[longest]} is less than {first} = {values[first]}. "
                "Set it to at least that value.",
            )

    def check_unknown_fields(self, names: str | Sequence[str]) -> None:
        """Record the names of fields that a client sends to change the vectors."""
        for name in () if isinstance(names, str) else names:
            if changes_vectors(name):
                self.add(
                    ("gateway",),
                    f'unknown_fields: "{name}" changes the vectors at some APIs, so a request with '
                    "it must not get other vectors. Remove it from the list.",
                )

    def check_media_domains(self, names: Sequence[str]) -> None:
        """Record the names that cannot be the host of a URL."""
        for name in names:
            if not _HOST.fullmatch(name):
                self.add(
                    ("gateway",),
                    f'media_domains: "{name}" is not a host name; '
                    'use the host only, as in "images.example.com"',
                )


STATE_AUTH: Final = (
    '[gateway] auth is required. Set auth = "keys" (and a [keys.NAME] table with '
    'key = "env:VARIABLE"), auth = "host" (the host application authenticates callers) '
    'or auth = "open" (anyone may call).'
)

STATE_ENV_AUTH: Final = (
    "EMBEDROUTE_AUTH must be keys (with EMBEDROUTE_KEY), host or open. Gateway.from_env() does not "
    "read a config file. Gateway.from_file() and the embedroute command read the file that "
    "EMBEDROUTE_CONFIG names."
)

KEY_REQUIRED: Final = (
    'EMBEDROUTE_AUTH is "keys", but EMBEDROUTE_KEY is missing. '
    "Set it to the API key that callers send."
)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway configuration; tables may be passed as structs or as plain dicts.

    A secret ``env:NAME`` is read when a gateway is made, from the ``environ`` of that gateway.

    Raises:
        ConfigError: a table is invalid; the error has one line per mistake.
    """

    gateway: Settings = Settings()
    keys: dict[str, ApiKey] = {}
    cache: CacheSettings = CacheSettings()
    store: StoreSettings = StoreSettings()
    limits: LimitSettings = LimitSettings()
    providers: dict[str, Provider] = {}
    models: dict[str, Model] = {}

    def __post_init__(self) -> None:
        """Validate all tables and convert plain dicts to structs."""
        reader = ConfigReader(None)
        _assign(self, reader.tables(msgspec.structs.asdict(self)))
        if reader.mistakes:
            raise ConfigError(reader.mistakes)

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show the names of what is configured, and no values."""
        return [
            ("auth", self.gateway.auth),
            ("keys", list(self.keys)),
            ("providers", list(self.providers)),
            ("models", list(self.models)),
        ]

    __repr__ = repr_as_in_rich


def _assign(config: Config, tables: Tables) -> None:
    for name, value in tables.items():
        msgspec.structs.force_setattr(config, name, value)


class PartialConfig(msgspec.Struct, frozen=True):
    """The result of phase 1: the values that could be read, and the mistakes in the others.

    ``config`` has a default or a placeholder for each of the ``unread`` values. If there are
    mistakes, use it only to find more of them.
    """

    config: Config
    mistakes: list[str]
    unread: UnreadPaths

    def report(self, mistakes: Iterable[str]) -> list[str]:
        """Return the mistakes of phase 1 and those of phase 2 that do not follow from them."""
        return self.mistakes + [mistake for mistake in mistakes if not self._follows(mistake)]

    def _follows(self, mistake: str) -> bool:
        paths = mistake.paths if isinstance(mistake, Mistake) else ()
        return any(self.unread.at(*path) for path in paths)


def _read_tables(reader: ConfigReader, tables: Mapping[str, object]) -> PartialConfig:
    config = Config()
    _assign(config, reader.tables(tables))
    return PartialConfig(config, reader.mistakes, UnreadPaths(frozenset(reader.unread)))


def read_secrets(config: Config, environ: Mapping[str, str]) -> PartialConfig:
    """Read the secrets of a config made in Python that are in ``environ``, and check them."""
    return _read_tables(ConfigReader(environ), msgspec.structs.asdict(config))


def read_config(text: str, environ: Mapping[str, str], file: str = "") -> PartialConfig:
    """Read a config in TOML; secrets come from ``environ`` and from the files that it names.

    ``file`` is the path of the config for a message about its syntax.

    Raises:
        ConfigError: the text is not valid TOML.
    """
    document = parse_toml(text, file)
    reader = ConfigReader(environ)
    for mistake, path in _unknown_tables(document):
        reader.mistakes.append(mistake)
        reader.unread.add(path)
    return _read_tables(reader, {name: document.get(name, {}) for name in Config.__struct_fields__})


def _unknown_tables(document: Mapping[str, object]) -> Iterator[tuple[str, TablePath]]:
    """Yield a mistake for each unknown top-level key, and the path that was probably meant."""
    names = Config.__struct_fields__
    for name, value in document.items():
        if name in names:
            continue
        if name in Settings.__struct_fields__ and not isinstance(value, dict):
            yield f'option "{name}" is outside any table; move it to [gateway]', ("gateway", name)
        else:
            suggestion = closest(name, names)
            path = name if suggestion in (None, *document) else suggestion
            yield f'unknown table "{name}"{did_you_mean(name, names)}', (path,)


def environment_config(environ: Mapping[str, str], *, local: bool) -> Config:
    """Enable each known provider whose API key is in ``environ``, and the local model if ``local``.

    Raises:
        ConfigError: ``EMBEDROUTE_AUTH`` is missing or invalid, or it is "keys" and
            ``EMBEDROUTE_KEY`` is missing.
    """
    variables = {name: value.strip() for name, value in environ.items()}
    providers = {
        slug: Provider(options=options)
        for slug, row in known_providers().items()
        if (options := _options_from(row, variables))
    }
    if local:
        providers["wordllama"] = Provider()
    auth = variables.get("EMBEDROUTE_AUTH")
    key = variables.get("EMBEDROUTE_KEY")
    if auth not in ("keys", "open", "host"):
        raise ConfigError([STATE_ENV_AUTH])
    if auth == "keys" and not key:
        raise ConfigError([KEY_REQUIRED])
    keys = {"default": ApiKey(key=Secret(key))} if key and auth == "keys" else {}
    return Config(gateway=Settings(auth=auth), keys=keys, providers=providers)


def _options_from(row: KnownProvider, variables: Mapping[str, str]) -> dict[str, str]:
    """Return a provider's options from the environment, or ``{}`` if a required one is not set."""
    options = {
        option: value
        for option, candidates in row.env.items()
        if (value := _first_value(candidates, variables))
    }
    return options if options.keys() >= set(row.required) else {}


def _first_value(candidates: Sequence[str], variables: Mapping[str, str]) -> str | None:
    """Return the value of the first variable that is set.

    ``NAME/path`` adds a path to a URL. ``NAME/old=>/new`` replaces a path at the end of a URL: some
    SDKs use another API of the same host.
    """
    for candidate in candidates:
        name, slash, path = candidate.partition("/")
        if value := variables.get(name):
            return _with_path(value.rstrip("/"), slash + path) if path else value
    return None


def _with_path(url: str, path: str) -> str:
    old, _, new = path.rpartition("=>")
    if old:
        return url.removesuffix(old) + new if url.endswith(old) else url
    return url if url.endswith(new) else url + new
