"""The gateway's application by itself."""

from embedroute import embeddings_app
from tests.hosts.gateways import make

app = embeddings_app(make())
