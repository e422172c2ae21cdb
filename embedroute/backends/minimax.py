"""Provides the backend for MiniMax's embeddings API.

The API reports errors with the status 200, in ``base_resp``.

Not verified: the newer host ``https://api.minimax.io/v1``, the meaning of the status codes other
than 1004 and 1008, and the limit of inputs per call.

Source: langchain-community ``embeddings/minimax.py`` and MiniMax's error code reference.
"""

from typing import Annotated, ClassVar, Final, Literal
from urllib.parse import quote

import msgspec

from embedroute.backend import (
    Accepts,
    Batch,
    HTTPBackend,
    Options,
    Secret,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
    sets,
)
from embedroute.backends._json_scan import split_vectors, texts_to_array
from embedroute.backends._openai_response import first_count
from embedroute.backends._option_checks import check_base_url, check_values

TYPES: Final = {"query": "query", "document": "db"}
"""Neutral input type → type."""

STATUSES: Final = {
    1000: 500,  # unknown error
    1001: 504,  # timeout
    1002: 429,  # rate limit of requests
    1004: 401,  # authentication failed
    1008: 402,  # insufficient balance
    1013: 500,  # internal error
    1024: 500,  # internal error
    1033: 500,  # failure downstream
    1039: 429,  # rate limit of tokens
    2049: 401,  # invalid API key
}
"""``status_code`` of an error → the HTTP status with the same meaning. All others are 400."""


class BaseResponse(msgspec.Struct):
    """The status of a call; 0 is success."""

    status_code: int = 0


class Answer(msgspec.Struct):
    """The response: one vector per text, in order, or an error."""

    vectors: list[msgspec.Raw] | None = None
    total_tokens: object = None
    base_resp: BaseResponse = msgspec.field(default_factory=BaseResponse)


class MiniMaxOptions(Options, frozen=True, kw_only=True):
    """The parameters of MiniMax's API."""

    namespace: ClassVar[str] = "minimax"

    type: Annotated[Literal["query", "db"] | None, sets("input_type", {"db": "document"})] = None


class MiniMax(HTTPBackend, frozen=True, kw_only=True):
    """The MiniMax API. ``group_id`` is the id of the account's group, which the older host needs.

    A request without an input type is sent with ``default_type``.
    """

    accepts: ClassVar[Accepts] = Accepts(input_types=tuple(TYPES), options=("minimax",))
    request_options: ClassVar[tuple[type[Options], ...]] = (MiniMaxOptions,)

    api_key: Secret
    base_url: str = "https://api.minimax.chat/v1"
    group_id: str | None = None
    default_type: Literal["db", "query"] = "db"

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request."""
        query = f"?GroupId={quote(self.group_id, safe='')}" if self.group_id else ""
        body = {
            "texts": batch.texts,
            "model": batch.model,
            "type": TYPES[batch.input_type] if batch.input_type else self.default_type,
        }
        url = f"{self.base_url.rstrip('/')}/embeddings{query}"
        return UpstreamRequest.json(url, body, bearer=self.api_key)

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors, or raise the error that the status 200 hides."""
        answer, texts = split_vectors(
            response,
            Answer,
            "vectors",
            lambda answer: answer.vectors or (),
            len(batch),
            in_one_list=True,
        )
        code = answer.base_resp.status_code
        if code:
            status = STATUSES.get(code, 400)
            raise self.map_error(UpstreamResponse(status, response.headers, response.content))
        array = texts_to_array(texts, width=batch.width)
        return Vectors(array, first_count(answer.total_tokens))
