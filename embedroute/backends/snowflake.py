"""Provides the backend for Snowflake Cortex's embed API.

Each vector is nested in a list of its own. The API takes neither dimensions nor an input type.

Not verified: the limit of inputs per call, that the API detects the kind of a token if
``token_type`` is not set, and whether the models add prefixes themselves.

Source: docs.snowflake.com, Cortex REST API, embed (2026-11).
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import msgspec

from embedroute.backend import (
    Accepts,
    Batch,
    HTTPBackend,
    Secret,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
)
from embedroute.backends._json_scan import split_vectors, texts_to_array
from embedroute.backends._openai_response import read_usage, sort_by_index
from embedroute.backends._option_checks import check_base_url, check_values
from embedroute.errors import InvalidUpstreamResponse


class Row(msgspec.Struct, gc=False):
    """One vector, in a list."""

    embedding: list[msgspec.Raw]
    index: int | None = None


class Answer(msgspec.Struct):
    """The response, in OpenAI's format but for the nesting of the vectors."""

    data: list[Row]
    usage: msgspec.Raw = msgspec.Raw()
    model: str | None = None


class Snowflake(HTTPBackend, frozen=True, kw_only=True):
    """The Cortex API of an ``account``, which is the host's name up to ``.snowflakecomputing.com``.

    Set ``base_url`` instead for another host. ``api_key`` is a token, and ``token_type`` its kind:
    a programmatic access token, an OAuth token, or a JWT signed with the account's key pair, which
    expires within an hour.
    """

    accepts: ClassVar[Accepts] = Accepts()

    api_key: Secret
    account: str = ""
    base_url: str | None = None
    token_type: Literal["PROGRAMMATIC_ACCESS_TOKEN", "OAUTH", "KEYPAIR_JWT"] | None = None
    provisioned_throughput_id: str | None = None

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        if not self.account and self.base_url is None:
            raise ValueError(
                "account is missing; set it to the name before .snowflakecomputing.com"
            )
        check_base_url(self._base_url)
        check_values(api_key=self.api_key)

    @property
    def _base_url(self) -> str:
        if self.base_url is not None:
            return self.base_url.rstrip("/")
        return f"https://{self.account}.snowflakecomputing.com"

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request."""
        body = {
            "text": batch.texts,
            "model": batch.model,
            "provisioned_throughput_id": self.provisioned_throughput_id,
        }
        kind = {"x-snowflake-authorization-token-type": self.token_type} if self.token_type else {}
        return UpstreamRequest.json(
            f"{self._base_url}/api/v2/cortex/inference:embed",
            body,
            bearer=self.api_key,
            headers=kind,
        )

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors, sorted by their index."""
        answer, texts = split_vectors(
            response, Answer, "embedding", _list_rows, len(batch), in_one_list=True
        )
        if any(len(row.embedding) != 1 for row in answer.data):
            raise InvalidUpstreamResponse("The upstream returned several vectors for one input.")
        ordered = sort_by_index(texts, [row.index for row in answer.data])
        array = texts_to_array(ordered, width=batch.width)
        return Vectors(array, *read_usage(answer.usage, response.headers), model=answer.model)


def _list_rows(answer: Answer) -> Sequence[msgspec.Raw]:
    return [vector for row in answer.data for vector in row.embedding]
