"""Loads the shipped data about models and providers, and the starter config, from ``data/``."""

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Final, cast

import msgspec

from embedroute.config.models import Count, Endpoint, KnownProvider, Modality, Model

PRICED_ON: Final = date(2026, 11, 20)
"""When the prices and the deprecations of the shipped models were read from their sources."""


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the catalogue as one provider serves it.

    ``price`` is in USD per million prompt tokens, or None if unknown. ``deprecated`` is the day on
    which the provider stops serving it, if it has announced that.
    """

    model: str
    provider: str
    upstream_model: str
    dimensions: int
    modalities: Sequence[str]
    price: Decimal | None
    deprecated: date | None


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


class _DatedEndpoint(msgspec.Struct, frozen=True):
    """The facts of an endpoint that only lists show."""

    provider: str
    deprecated: date | None = None


class _DatedRow(msgspec.Struct, frozen=True):
    model: str
    endpoints: list[_DatedEndpoint]


@cache
def catalogue() -> Mapping[str, Model]:
    """Return the shipped models by public name; the sources of the data are in the file."""
    raw = (Path(__file__).parent / "data" / "models.json").read_bytes()
    rows = msgspec.json.decode(raw, type=list[dict[str, object]])
    for row in rows:
        for endpoint in cast("list[dict[str, object]]", row["endpoints"]):
            endpoint.pop("source", None)
            endpoint.pop("deprecated", None)
    return {row.model: row.to_model() for row in msgspec.convert(rows, list[_Row])}


def list_catalogue() -> list[Listing]:
    """List every model of the catalogue with each of its providers, sorted by model."""
    raw = (Path(__file__).parent / "data" / "models.json").read_bytes()
    days = {
        (row.model, endpoint.provider): endpoint.deprecated
        for row in msgspec.json.decode(raw, type=list[_DatedRow])
        for endpoint in row.endpoints
    }
    return [
        Listing(
            model=name,
            provider=endpoint.provider,
            upstream_model=endpoint.model or name,
            dimensions=model.dimensions or 0,
            modalities=model.modalities or ("text",),
            price=endpoint.prices().get("prompt"),
            deprecated=days[name, endpoint.provider],
        )
        for name, model in catalogue().items()
        for endpoint in model.endpoints
    ]


@cache
def known_providers() -> Mapping[str, KnownProvider]:
    """Return the rows of the shipped provider table by slug."""
    raw = (Path(__file__).parent / "data" / "providers.json").read_bytes()
    return msgspec.json.decode(raw, type=dict[str, KnownProvider])


def starter_config(key: str) -> str:
    """Return a commented config in TOML that a gateway can be made of; ``key`` is its API key."""
    path = Path(__file__).parent / "data" / "starter.toml"
    return path.read_text(encoding="utf-8").replace("@KEY@", key)
