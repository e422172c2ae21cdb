"""Provides the backend for Azure OpenAI, in both of its APIs.

Without ``api_version`` it uses the v1 API. With it, the API of deployments. In both, the upstream's
name of the model is the name of the deployment.

Not verified: whether a deployment of an older version accepts 2048 inputs; some accepted 16 or 1.
Set ``accepts = { max_inputs = 16 }`` for such an endpoint.

Source: learn.microsoft.com, Azure OpenAI REST API reference (2024-10-21 and v1).
"""

from typing import ClassVar
from urllib.parse import quote

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
)
from embedroute.backends import _entra, _openai_response
from embedroute.backends._option_checks import check_base_url, check_values


class Azure(HTTPBackend, frozen=True, kw_only=True):
    """Azure OpenAI.

    ``base_url`` is the address of the resource: ``https://RESOURCE.openai.azure.com``. Set
    ``api_key``, or ``ad_token`` for a token of Microsoft Entra. If both are missing, azure-identity
    (extra ``azure``) obtains tokens for ``scope``, which is ``https://ai.azure.com/.default`` for
    newer Foundry resources.
    """

    accepts: ClassVar[Accepts] = Accepts(
        tokens=True,
        dimensions=True,
        base64=True,
        user=True,
        truncate=("none",),
        max_inputs=2048,
        max_tokens=300_000,
    )

    base_url: str
    api_key: Secret | None = None
    ad_token: Secret | None = None
    api_version: str | None = None
    scope: str = "https://cognitiveservices.azure.com/.default"

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self.base_url)
        check_values(api_key=self.api_key, ad_token=self.ad_token)
        if self._needs_token:
            _entra.check_installed()

    @property
    def _needs_token(self) -> bool:
        return self.api_key is None and self.ad_token is None

    def fetch_credentials(self, send: Send) -> Credentials | None:
        """Obtain a token of Microsoft Entra if there is no key."""
        del send
        return _entra.fetch_token(self.scope) if self._needs_token else None

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request, for base64."""
        body = {
            "model": batch.model,
            "input": batch.texts or batch.tokens,
            "encoding_format": "base64",
            "dimensions": batch.dimensions,
            "user": batch.user,
        }
        headers = {"api-key": self.api_key} if self.api_key else {}
        return UpstreamRequest.json(
            self._get_url(batch.model), body, bearer=self.ad_token, headers=headers
        )

    def _get_url(self, deployment: str) -> str:
        base = self.base_url.rstrip("/").removesuffix("/openai/v1").removesuffix("/openai")
        if self.api_version is None:
            return f"{base}/openai/v1/embeddings"
        name, version = quote(deployment, safe=""), quote(self.api_version, safe="")
        return f"{base}/openai/deployments/{name}/embeddings?api-version={version}"

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read a response in OpenAI's format."""
        return _openai_response.read(batch, response, self.map_error)
