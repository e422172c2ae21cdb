"""Loads the shipped data about models and providers, and the starter config, from ``data/``."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import cast

import msgspec

from embedroute.config.models import Count, Endpoint, KnownProvider, Modality, Model


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``data/models.json``."""

    model: str
    dimensions: Count
    endpoints: list[Endpoint]
    matryoshka: bool = False
    dimensions_allowed: list[Count] | None = None
    dimensions_min: Count | None = None
    modalities: list[Modality] | None = None
    symmetric: bool = False
    prefixes: dict[str, str] | None = None
    max_input_tokens: Count | None = None

    def to_model(self) -> Model:
        return Model(
            dimensions=self.dimensions,
            matryoshka=self.matryoshka,
            dimensions_allowed=self.dimensions_allowed,
            dimensions_min=self.dimensions_min,
            modalities=self.modalities or ["text"],
            input_types=[] if self.symmetric else None,
            prefixes=self.prefixes,
            max_input_tokens=self.max_input_tokens,
            endpoints=self.endpoints,
        )


@cache
def catalogue() -> Mapping[str, Model]:
    """Return the shipped models by public name; the sources of the data are in the file."""
    raw = (Path(__file__).parent / "data" / "models.json").read_bytes()
    rows = msgspec.json.decode(raw, type=list[dict[str, object]])
    for row in rows:
        for endpoint in cast("list[dict[str, object]]", row["endpoints"]):
            endpoint.pop("source", None)
    return {row.model: row.to_model() for row in msgspec.convert(rows, list[_Row])}


@cache
def known_providers() -> Mapping[str, KnownProvider]:
    """Return the rows of the shipped provider table by slug."""
    raw = (Path(__file__).parent / "data" / "providers.json").read_bytes()
    return msgspec.json.decode(raw, type=dict[str, KnownProvider])


def starter_config(key: str) -> str:
    """Return a commented config in TOML that a gateway can be made of; ``key`` is its API key."""
    path = Path(__file__).parent / "data" / "starter.toml"
    return path.read_text(encoding="utf-8").replace("@KEY@", key)
