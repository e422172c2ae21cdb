"""Loads the shipped facts on models and providers, which are data beside this file."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import cast

import msgspec

from embedroute.config.models import Count, Endpoint, KnownProvider, Modality, Model


class _Row(msgspec.Struct, frozen=True, kw_only=True):
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

    def facts(self) -> Model:
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
    """Public model name → the shipped facts on it (sources stand in the file)."""
    raw = (Path(__file__).parent / "data" / "models.json").read_bytes()
    rows = msgspec.json.decode(raw, type=list[dict[str, object]])
    for row in rows:
        for endpoint in cast("list[dict[str, object]]", row["endpoints"]):
            endpoint.pop("source", None)
    return {row.model: row.facts() for row in msgspec.convert(rows, list[_Row])}


@cache
def known_providers() -> Mapping[str, KnownProvider]:
    """Slug → the shipped row on that provider."""
    raw = (Path(__file__).parent / "data" / "providers.json").read_bytes()
    return msgspec.json.decode(raw, type=dict[str, KnownProvider])
