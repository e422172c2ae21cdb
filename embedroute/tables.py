"""Reads the tables of a config into their structs, one pass over all of them; a bad value costs that value alone."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict, TypeVar, cast

import msgspec

from embedroute.models import Endpoint, Model, Provider
from embedroute.reading import Place, as_table, fit, written
from embedroute.secret import Secret
from embedroute.settings import CacheSettings, Key, Settings

T = TypeVar("T")
Table = TypeVar("Table", bound=msgspec.Struct)

_SENDABLE = re.compile(r"[\x21-\x7e]{1,256}")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", re.IGNORECASE)


class Tables(TypedDict):
    """Each table of a config, read."""

    gateway: Settings
    keys: dict[str, Key]
    cache: CacheSettings
    providers: dict[str, Provider]
    models: dict[str, Model]


class Reading:
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
            "keys": self.each("keys", given["keys"], lambda place, it: self.struct(place, it, Key, key=Secret(""))),
            "cache": self.struct(("cache",), given["cache"], CacheSettings),
            "providers": self.each("providers", given["providers"], self.provider),
            "models": self.each("models", given["models"], self.model),
        }
        self.hosts(found["gateway"].media_domains)
        self.usable(found["keys"])
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

    def each(self, name: str, given: object, read: Callable[[Place, object], T]) -> dict[str, T]:
        """Read the tables of a table."""
        return {key: read((name, key), value) for key, value in self.table((name,), given).items()}

    def struct(self, place: Place, given: object, wanted: type[Table], **required: object) -> Table:
        """Read a table as a struct; ``required`` are what stands in for fields without a default."""
        table = self.table(place, given)
        if place in self.unread:
            return wanted(**required)
        found = fit(written(place), table, wanted, self.environ)
        self.mistakes += found.mistakes
        self.unread |= {(*place, name) for name in found.unread}
        return wanted(**{**required, **found.values})

    def provider(self, place: Place, given: object) -> Provider:
        """Read an account: the keys that are ours, and the backend's, which may stand in ``options`` too."""
        table, ours = self.table(place, given), {*Provider.__struct_fields__} - {"options"}
        options = self.table((*place, "options"), table.get("options", {}))
        beside = {name: value for name, value in table.items() if name not in ours and name != "options"}
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
            read = [self.struct((*place, "endpoints", str(at)), it, Endpoint, provider="") for at, it in listed]
            table = {**table, "endpoints": read}
        return self.struct(place, table, Model)

    def usable(self, keys: Mapping[str, Key]) -> None:
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

    def hosts(self, names: Sequence[str]) -> None:
        """Name what can be no image's host: the whole of it is compared."""
        for name in names:
            if not _HOST.fullmatch(name):
                fault = f'media_domains: "{name}" is no host name; write the name alone, as in "images.example.com"'
                self.add(("gateway",), fault)
