"""Provides the backend for OpenRouter: OpenAI's API with routing preferences of its own.

Which upstream OpenRouter uses decides on the format of the vectors, so numbers are requested.

Not verified: base64, which depends on the upstream.

Source: openrouter.ai/docs, embeddings and provider routing (2026-08).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import msgspec

from embedroute.backend import (
    Accepts,
    Batch,
    Name,
    Options,
)
from embedroute.backends.openai import OpenAI

INPUT_TYPES: Final = {"query": "search_query", "document": "search_document"}
"""Neutral input type → OpenRouter's; others have the same name."""

Preference = bool | int | float | str | list[str] | dict[str, str | int | float]


class OpenRouterOptions(Options, frozen=True, kw_only=True):
    """The preferences among OpenRouter's upstreams, which replace those of the provider."""

    namespace: ClassVar[str] = "openrouter"

    provider: dict[Name, Any] | None = None


class OpenRouter(OpenAI, frozen=True, kw_only=True, dict=True):
    """The OpenRouter API.

    ``preferences`` is the object ``provider`` of its requests: ``order``, ``only``, ``sort``,
    ``data_collection`` and others. Other options are those of the ``openai`` backend;
    ``extra_headers`` can name the application in OpenRouter's rankings (HTTP-Referer, X-Title).
    """

    accepts: ClassVar[Accepts] = Accepts(
        modalities=("text", "image"), dimensions=True, user=True, options=("openrouter",)
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (OpenRouterOptions,)

    base_url: str = "https://openrouter.ai/api/v1"
    encoding_format: Literal["base64", "float", "omit"] = "float"
    input_types: Mapping[str, str] = msgspec.field(default_factory=INPUT_TYPES.copy)
    preferences: Mapping[str, Preference] = {}

    def _body(self, batch: Batch) -> dict[str, object]:
        """Return the fields of the body, with the preferences."""
        preferences = batch.options.get("provider", self.preferences)
        return {**super()._body(batch), "provider": preferences or None}
