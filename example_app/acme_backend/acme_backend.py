"""A backend for Acme, as a separate package."""

from embedroute.backend import (
    Accepts,
    Batch,
    HTTPBackend,
    Secret,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
)


class Acme(HTTPBackend, frozen=True):
    """Acme's embeddings API: POST /embed, at most 96 texts per call."""

    api_key: Secret
    base_url: str = "https://api.acme.example"
    accepts = Accepts(max_inputs=96, dimensions=True)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request."""
        body = {"model": batch.model, "texts": batch.texts, "size": batch.dimensions}
        return UpstreamRequest.json(f"{self.base_url}/embed", body, bearer=self.api_key)

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors and the token count."""
        body = response.json()
        return Vectors.from_lists(body["vectors"], prompt_tokens=body["tokens"])
