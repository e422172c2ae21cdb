"""Provides the backend for endpoints of Amazon SageMaker that serve a container for embeddings.

The name of the model is the name of the SageMaker endpoint. The body is the container's own.

Not verified: the limits of the containers; set ``accepts`` for an endpoint that has others.

Source: AWS SageMaker Runtime reference (InvokeEndpoint); TEI 1.9.3 ``docs/openapi.json``.
"""

import re
from functools import cached_property
from typing import ClassVar, Literal
from urllib.parse import quote

import msgspec

from embedroute.backend import (
    Accepts,
    Batch,
    Credentials,
    HTTPBackend,
    Secret,
    Send,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
    classify_response,
)
from embedroute.backends import _aws, _openai_response
from embedroute.backends._option_checks import check_base_url
from embedroute.backends.tei import read_rows
from embedroute.errors import InvalidUpstreamResponse, UpstreamError


class ModelError(msgspec.Struct, rename="pascal"):
    """The error for a failure inside the container: the container's own status and message."""

    original_status_code: int
    original_message: str = ""


class SageMaker(HTTPBackend, frozen=True, kw_only=True, dict=True):
    """Amazon SageMaker in one ``region``.

    ``container`` is the format of the body: that of Text Embeddings Inference (``tei``), of Hugging
    Face's inference toolkit (``hf``), or OpenAI's (``openai``, also vLLM's and DJL's). Credentials
    are the same as for ``bedrock``.
    """

    accepts: ClassVar[Accepts] = Accepts(max_inputs=32, max_bytes=1_500_000)

    region: str
    container: Literal["tei", "hf", "openai"] = "tei"
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    profile: str | None = None
    base_url: str | None = None

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        if not re.fullmatch(r"[a-z0-9-]+", self.region):
            raise ValueError("region must be the name of an AWS region, such as us-east-1")
        check_base_url(self._url)
        _aws.check_keys(self._keys)

    @property
    def _keys(self) -> _aws.Keys:
        return _aws.Keys(
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            session_token=self.session_token,
            profile=self.profile,
        )

    @property
    def _url(self) -> str:
        if self.base_url is not None:
            return self.base_url.rstrip("/")
        domain = "amazonaws.com.cn" if self.region.startswith("cn-") else "amazonaws.com"
        return f"https://runtime.sagemaker.{self.region}.{domain}"

    @cached_property
    def _session(self) -> _aws.Session:
        return _aws.open_session(self.profile)

    def fetch_credentials(self, send: Send) -> Credentials:
        """Obtain AWS keys."""
        del send
        return _aws.fetch_keys(self._keys, self._session)

    def authorize(self, request: UpstreamRequest, credentials: Credentials) -> UpstreamRequest:
        """Sign the request."""
        return _aws.sign(request, credentials, "sagemaker", self.region)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request in the format of the container."""
        url = f"{self._url}/endpoints/{quote(batch.model, safe='')}/invocations"
        return UpstreamRequest.json(url, self._get_body(batch))

    def _get_body(self, batch: Batch) -> dict[str, object]:
        if self.container == "openai":
            return {"model": batch.model, "input": batch.texts, "dimensions": batch.dimensions}
        if self.container == "hf":
            return {"inputs": batch.texts}
        return {
            "inputs": batch.texts,
            "normalize": True,
            "truncate": False,
            "dimensions": batch.dimensions,
        }

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the response of the container."""
        if self.container == "openai":
            return _openai_response.read(batch, response, self.map_error)
        return read_rows(batch, response)

    def map_error(self, response: UpstreamResponse) -> UpstreamError:
        """Map an error of the container by its own status, and others by that of SageMaker."""
        try:
            error: ModelError = response.json(ModelError)
        except InvalidUpstreamResponse:
            error = ModelError(0)
        if not 400 <= error.original_status_code <= 599:
            return classify_response(response.status, response.headers, response.content)
        content = error.original_message.encode()
        return classify_response(error.original_status_code, {}, content)
