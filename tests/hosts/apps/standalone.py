"""The gateway's application without a host."""

from embedroute import embeddings_app
from tests.hosts.gateways import make

app = embeddings_app(make())
