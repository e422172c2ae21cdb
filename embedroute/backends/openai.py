"""Provides the backend for OpenAI's embeddings API and for compatible servers.

The options ``encoding_format``, ``extra_body``, ``extra_headers`` and ``input_types`` adapt it to
servers that differ from OpenAI's.

Source: openai/openai-openapi ``openapi.yaml`` 2.3.0.
"""

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar, Literal

from embedroute.backend import (
    Accepts,
    Batch,
    HTTPBackend,
    Secret,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
    classify_response,
)
from embedroute.backends import _openai_response
from embedroute.backends._option_checks import check_base_url, check_headers, check_values
from embedroute.errors import UpstreamError


class OpenAI(HTTPBackend, frozen=True, kw_only=True, dict=True):
    """The OpenAI API, or a server that is compatible with it.

    Set ``encoding_format`` to ``float`` for a server that rejects base64, or to ``omit`` for one
    that rejects the field. ``extra_body`` adds fields (``normalize = true`` for Fireworks), and
    ``extra_headers`` adds headers. ``input_types`` maps the neutral input types to the server's
    values, for a server whose ``accepts`` lists input types. ``rate_limit_codes`` are error codes
    that mean a rate limit at this server, although OpenAI uses them for a spent account.
    """

    accepts: ClassVar[Accepts] = Accepts(
        tokens=True, dimensions=True, base64=True, user=True, max_inputs=2048, max_tokens=300_000
    )
    forwards_fields: ClassVar[bool] = True

    api_key: Secret | None = None
    base_url: str = "https://api.openai.com/v1"
    organization: str | None = None
    project: str | None = None
    encoding_format: Literal["base64", "float", "omit"] = "base64"
    input_types: Mapping[str, str] = {}
    extra_headers: Mapping[str, Secret] = {}
    extra_body: Mapping[str, bool | int | float | str] = {}
    rate_limit_codes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key, organization=self.organization, project=self.project)
        check_headers("extra_headers", self.extra_headers)
        for name, value in self.extra_body.items():
            try:
                UpstreamRequest.json("", {name: value})
            except ValueError:
                raise ValueError(
                    f"extra_body.{name} is {value!a}, which JSON cannot represent"
                ) from None

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request; by default for base64, which is a third of the size of numbers."""
        return UpstreamRequest.json(self._url, self._body(batch), headers=self._headers)

    def _body(self, batch: Batch) -> dict[str, object]:
        """Return the fields of the body; those that are None are not sent."""
        return {
            **self.extra_body,
            **batch.options,
            "model": batch.model,
            "input": batch.texts or batch.tokens or [{"content": parts} for parts in batch.parts],
            "encoding_format": None if self.encoding_format == "omit" else self.encoding_format,
            "dimensions": batch.dimensions,
            "input_type": batch.input_type
            and self.input_types.get(batch.input_type, batch.input_type),
            "user": batch.user,
        }

    @cached_property
    def _url(self) -> str:
        return f"{self.base_url.rstrip('/')}/embeddings"

    @cached_property
    def _headers(self) -> Mapping[str, str | Secret]:
        """One mapping for all requests, so that the transport encodes it only once."""
        account = {"openai-organization": self.organization, "openai-project": self.project}
        account_headers = {name: value for name, value in account.items() if value}
        extra = {name.lower(): value for name, value in self.extra_headers.items()}
        headers = {**account_headers, **extra}
        return MappingProxyType(
            UpstreamRequest.json("", {}, bearer=self.api_key, headers=headers).headers
        )

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read base64 or numbers, depending on what the server sent."""
        return _openai_response.read(batch, response, self.map_error)

    def map_error(self, response: UpstreamResponse) -> UpstreamError:
        """Map an error to its class, with the rate limits of this server."""
        return classify_response(
            response.status,
            response.headers,
            response.content,
            rate_limit_codes=self.rate_limit_codes,
        )
