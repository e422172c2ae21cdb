"""An OpenAI-compatible embeddings endpoint in any ASGI app, which validates every vector.

The package has four layers. Imports run downwards, and inside a layer along the arrows that
``tests/test_architecture.py`` lists. Begin to read in ``gateway.py``::

    4 entry points
      __main__.py       python -m embedroute
      cli/              the command, one module per subcommand: serve, check, backends, …
      fastapi.py        embeddings_router
      uvicorn.py        HTTPProtocol, for clients that offer HTTP/2
      server/           the ASGI side: requests in, responses out
      testing/          ScriptedBackend and check_backend, for tests of backends and hosts
      gateway.py        Gateway.embed: one request, top to bottom
      runtime_factory.py  the resources of each event loop, and what the loops share
      bootstrap.py      from a config to the parts of a gateway
      reload.py         what a reload of the config keeps, and what needs a restart
      config_schema.py  the JSON Schema of a config, for editors
      config_warnings.py  what is valid in a config but cannot work
    3 engine
      execution/        from missing inputs to vectors: single-flight, failover, attempts
      routing/          which endpoints serve a request, and their health
      cache/            vectors of earlier requests, in memory and in a store
      stores/           what processes share, in SQLite or Redis
      limits/           what callers may use at once
      telemetry/        what observers receive of requests and upstream calls
      transport/        HTTP towards upstreams
      plugins.py        entry points to backend classes
      backends/         the shipped backends, one file per upstream API
    2 contracts
      auth.py           API keys to callers, and what a caller may do
      protocol/         what clients write and read
      config/           what operators write
      backend/          what the author of a backend writes
    1 foundation
      errors.py         every error, with its status, type and code
      reasons.py        from an exception to the words that say why a call failed
      log_records.py    every log record, with its logger, message and fields
      exhaustion.py     which errors are this process's own: no file descriptors, a late loop
      upstream_errors/  what an upstream's error response means
      inputs.py         texts, token ids and content parts
      vectors.py        arrays of numbers; alone knows numpy and orjson
      trace.py          what happened to one request
      text.py           how errors and logs repeat text that is not ours
      version.py        the version of this package
      runtime/          tasks, fairness and per-loop resources
"""

from embedroute.auth import Caller
from embedroute.config import (
    ApiKey,
    BreakerPolicy,
    Budget,
    CacheSettings,
    Config,
    Endpoint,
    LimitSettings,
    Model,
    Provider,
    RateLimits,
    RetryPolicy,
    Settings,
    StoreSettings,
)
from embedroute.errors import ConfigError, EmbedrouteError
from embedroute.gateway import Gateway
from embedroute.protocol import Embeddings
from embedroute.server import EmbeddingsMiddleware, embeddings_app
from embedroute.version import __version__

__all__ = [
    "ApiKey",
    "BreakerPolicy",
    "Budget",
    "CacheSettings",
    "Caller",
    "Config",
    "ConfigError",
    "Embeddings",
    "EmbeddingsMiddleware",
    "EmbedrouteError",
    "Endpoint",
    "Gateway",
    "LimitSettings",
    "Model",
    "Provider",
    "RateLimits",
    "RetryPolicy",
    "Settings",
    "StoreSettings",
    "__version__",
    "embeddings_app",
]
