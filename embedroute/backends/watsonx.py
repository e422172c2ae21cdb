"""Provides the backend for IBM watsonx.ai.

An API key of IBM Cloud is exchanged for an access token, which is valid for an hour.

Not verified: that 1000 inputs are the limit of a call.

Source: IBM watsonx.ai API reference, version 2024-03-13; IBM Cloud IAM token service.
"""

from typing import Annotated, ClassVar, Final
from urllib.parse import quote

import msgspec

from embedroute.backend import (
    Accepts,
    Batch,
    Credentials,
    HTTPBackend,
    Options,
    Secret,
    Send,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
    classify_response,
)
from embedroute.backends._json_scan import split_vectors, texts_to_array
from embedroute.backends._openai_response import first_count
from embedroute.backends._option_checks import check_base_url, check_values
from embedroute.errors import UpstreamAuthError

GRANT: Final = "urn:ibm:params:oauth:grant-type:apikey"


class Token(msgspec.Struct):
    """The response of IAM; ``expires_in`` is in seconds."""

    access_token: str
    expires_in: float = 3600.0


class Row(msgspec.Struct):
    """One vector."""

    embedding: msgspec.Raw


class Answer(msgspec.Struct):
    """The response: one row per input, in order."""

    results: list[Row]
    input_token_count: object = None
    model_id: object = None


class WatsonXOptions(Options, frozen=True, kw_only=True):
    """The ``parameters`` of watsonx.ai."""

    namespace: ClassVar[str] = "watsonx"

    truncate_input_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None


class WatsonX(HTTPBackend, frozen=True, kw_only=True):
    """IBM watsonx.ai in one region, which is that of ``base_url``.

    Set ``api_key``, or an access ``token`` that something else renews. Set ``project_id`` or
    ``space_id``. ``truncate_input_tokens`` is the number of tokens to which the API cuts a text;
    without it, a text that is longer than the context of the model is refused.
    """

    accepts: ClassVar[Accepts] = Accepts(truncate=("none",), options=("watsonx",), max_inputs=1000)
    request_options: ClassVar[tuple[type[Options], ...]] = (WatsonXOptions,)

    api_key: Secret | None = None
    token: Secret | None = None
    project_id: str | None = None
    space_id: str | None = None
    base_url: str = "https://us-south.ml.cloud.ibm.com"
    iam_url: str = "https://iam.cloud.ibm.com"
    version: str = "2024-03-13"
    truncate_input_tokens: int | None = None

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        check_base_url(self.iam_url)
        check_values(api_key=self.api_key, token=self.token)
        if (self.api_key is None) == (self.token is None):
            raise ValueError("set either api_key or token")
        if (self.project_id is None) == (self.space_id is None):
            raise ValueError("set either project_id or space_id")

    def fetch_credentials(self, send: Send) -> Credentials | None:
        """Exchange the API key for an access token.

        Raises:
            UpstreamAuthError: IAM refuses the key.
        """
        if self.api_key is None:
            return None
        form = f"grant_type={quote(GRANT, safe='')}&apikey={quote(self.api_key.reveal(), safe='')}"
        response = send(
            UpstreamRequest(
                url=f"{self.iam_url.rstrip('/')}/identity/token",
                content=form.encode(),
                headers={"content-type": "application/x-www-form-urlencoded"},
            )
        )
        if response.status in (400, 401, 403):
            raise UpstreamAuthError(f"IAM refused the API key with status {response.status}.")
        if not 200 <= response.status < 300:
            raise classify_response(response.status, response.headers, response.content)
        token: Token = response.json(Token)
        return Credentials.bearer(Secret(token.access_token), token.expires_in)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request."""
        own = None if batch.truncate == "none" else self.truncate_input_tokens
        most = batch.options.get("truncate_input_tokens", own)
        body = {
            "inputs": batch.texts,
            "model_id": batch.model,
            "project_id": self.project_id,
            "space_id": self.space_id,
            "parameters": {"truncate_input_tokens": most} if most else None,
        }
        version = quote(self.version, safe="")
        url = f"{self.base_url.rstrip('/')}/ml/v1/text/embeddings?version={version}"
        return UpstreamRequest.json(url, body, bearer=self.token)

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors and the tokens."""
        answer, texts = split_vectors(
            response,
            Answer,
            "embedding",
            lambda answer: [row.embedding for row in answer.results],
            len(batch),
        )
        array = texts_to_array(texts, width=batch.width)
        model = answer.model_id if isinstance(answer.model_id, str) else None
        return Vectors(array, first_count(answer.input_token_count), model=model)
