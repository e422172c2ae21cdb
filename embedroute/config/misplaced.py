"""Says where an option belongs that was written in a table that does not have it."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from embedroute.config.models import Endpoint, Model, Provider
from embedroute.config.settings import ApiKey, CacheSettings, Settings, StoreSettings

TABLES: Final[Mapping[str, type[msgspec.Struct]]] = {
    "[gateway]": Settings,
    "[keys.NAME]": ApiKey,
    "[cache]": CacheSettings,
    "[store]": StoreSettings,
    "[providers.NAME]": Provider,
    "[models.NAME]": Model,
    "[[models.NAME.endpoints]]": Endpoint,
}

SERVE_OPTIONS: Final[Mapping[str, str]] = {
    "cors": "--cors-origin",
    "cors_origin": "--cors-origin",
    "cors_origins": "--cors-origin",
    "host": "--host",
    "log_format": "--log-format",
    "log_level": "--log-level",
    "port": "--port",
    "root_path": "--root-path",
    "workers": "--workers",
}
"""Names that other programs have in their config files → options of ``embedroute serve``."""


def find_place(path: Sequence[str], name: str) -> str:
    """Return a sentence that says where the option ``name`` belongs, or an empty string.

    ``path`` is that of the table in which it was written.
    """
    if name in SERVE_OPTIONS:
        return f". It is an option of the command: embedroute serve {SERVE_OPTIONS[name]}"
    own = "[[models.NAME.endpoints]]" if "endpoints" in path[2:3] else f"[{path[0]}"
    places = [
        place
        for place, table in TABLES.items()
        if name in table.__struct_fields__ and not (len(path) <= 2 and place.startswith(own))
    ]
    return f". It belongs in {' or '.join(places)}" if places else ""
