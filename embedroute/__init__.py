"""OpenAI-compatible embeddings inside any ASGI host, over any number of upstreams, and never a wrong vector.

A map, from the ground up; a file imports only from floors below:

- words: ``wording``, ``failures``, ``errors``, ``shared_failures``, ``inputs``, ``turns``,
  ``vectors``, ``hints``, ``signals``, ``faults``, ``journal``, ``due``, ``tasks``
- borders: ``secret``, ``upstream`` and ``backend`` (plugins), ``models``, ``reading``, ``settings``, ``tables`` and
  ``config`` (operators), ``wire`` (clients), ``redact``
- decisions, pure: ``access``, ``admission``, ``routing``
- effects: ``cache``, ``batching``, ``flights``, ``http``, ``workers``, ``local``, ``exchange``, ``orders``,
  ``attempts``, ``calls``, ``perloop``, ``plugins``, ``assembly``
- the journey: ``gateway``; begin to read there
- doors: ``listing``, ``headers``, ``inbound``, ``explain``, ``verify``, ``door``, ``asgi``, ``fastapi``, ``cli``

On one floor a file imports only from those named before it. Beside the house stand ``backends`` (one file per upstream
API, written as a third party would), ``conformance`` and ``testing``.
"""

from embedroute.access import Caller
from embedroute.asgi import EmbeddingsMiddleware, embeddings_app
from embedroute.config import Config
from embedroute.errors import ConfigError, EmbedrouteError
from embedroute.gateway import Gateway
from embedroute.models import Endpoint, Model, Provider
from embedroute.settings import CacheSettings, Key, Settings
from embedroute.wire.responses import Embeddings

__all__ = [
    "CacheSettings",
    "Caller",
    "Config",
    "ConfigError",
    "Embeddings",
    "EmbeddingsMiddleware",
    "EmbedrouteError",
    "Endpoint",
    "Gateway",
    "Key",
    "Model",
    "Provider",
    "Settings",
    "embeddings_app",
]
