"""Provides the backend for Cloudflare's Workers AI.

The OpenAI-compatible API of the account is used if ``base_url`` ends in ``/v1``. The other API has
more options, but reports no usage. How token vectors are pooled is part of a model's vector space,
so all providers of one model must have the same ``pooling``.

Not verified: whether the Qwen models accept texts that are neither queries nor documents; such
texts are sent as documents.

Source: developers.cloudflare.com/workers-ai (2026-11).
"""

from functools import cached_property
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote

import msgspec

from embedroute.backend import (
    TRUNCATES,
    Accepts,
    Batch,
    HTTPBackend,
    Name,
    Options,
    Secret,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
    sets,
)
from embedroute.backends._json_scan import split_vectors, texts_to_array
from embedroute.backends._option_checks import check_base_url, check_values, refuse_options
from embedroute.backends.openai import OpenAI


class Result(msgspec.Struct):
    """The vectors, in order."""

    data: list[msgspec.Raw]


class Answer(msgspec.Struct):
    """The response. ``result`` is null if the call has failed."""

    result: Result | None = None
    success: bool = True


class CloudflareOptions(Options, frozen=True, kw_only=True):
    """The parameters of Workers AI: ``pooling`` of BGE, and ``instruction`` of Qwen."""

    namespace: ClassVar[str] = "cloudflare"

    truncate_inputs: Annotated[bool | None, sets("truncate", TRUNCATES)] = None
    pooling: Literal["mean", "cls"] | None = None
    instruction: Name | None = None


class Cloudflare(HTTPBackend, frozen=True, kw_only=True, dict=True):
    """Workers AI of one account.

    ``truncate_inputs`` is whether the API cuts texts that are longer than the context of the model.
    ``pooling`` is an option of the BGE models; None leaves it to the API. ``instruction`` is the
    task that the Qwen models put before each query. These models are the only ones with input types
    (``query`` and ``document``); the catalogue says so.
    """

    accepts: ClassVar[Accepts] = Accepts(
        truncate=("none", "end"), options=("cloudflare",), max_inputs=100
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (CloudflareOptions,)

    api_key: Secret
    account_id: str | None = None
    base_url: str = "https://api.cloudflare.com/client/v4"
    truncate_inputs: bool = False
    pooling: Literal["mean", "cls"] | None = None
    instruction: str | None = None

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key)
        if self._compatible is None and not self.account_id:
            raise ValueError("account_id is missing")

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request; the names of fields depend on the family of the model."""
        if self._compatible is not None:
            refuse_options(batch)
            return self._compatible.build(batch)
        cut = batch.truncate == "end" if batch.truncate else self.truncate_inputs
        body = {**self._get_texts(batch), "truncate_inputs": cut, **batch.options}
        account, model = quote(self.account_id or "", safe=""), quote(batch.model, safe="@/")
        url = f"{self.base_url.rstrip('/')}/accounts/{account}/ai/run/{model}"
        return UpstreamRequest.json(url, body, bearer=self.api_key)

    @cached_property
    def _compatible(self) -> OpenAI | None:
        """The backend for the OpenAI-compatible API, if ``base_url`` is its address."""
        if not self.base_url.rstrip("/").endswith("/v1"):
            return None
        return OpenAI(api_key=self.api_key, base_url=self.base_url, encoding_format="omit")

    def _get_texts(self, batch: Batch) -> dict[str, object]:
        if "qwen" not in batch.model:
            return {"text": batch.texts, "pooling": self.pooling}
        if batch.input_type == "query":
            return {"queries": batch.texts, "instruction": self.instruction}
        return {"documents": batch.texts}

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors.

        Raises:
            UpstreamError: the response is an error with status 200.
        """
        if self._compatible is not None:
            return self._compatible.parse(batch, response)
        answer, texts = split_vectors(
            response, Answer, "data", _get_rows, len(batch), in_one_list=True
        )
        if answer.result is None or not answer.success:
            raise self.map_error(UpstreamResponse(400, response.headers, response.content))
        return Vectors(texts_to_array(texts, width=batch.width))


def _get_rows(answer: Answer) -> list[msgspec.Raw]:
    return answer.result.data if answer.result else []
