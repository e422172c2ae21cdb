"""Lists the paths that the gateway serves.

The handler, the middleware, the FastAPI router and the OpenAPI document all read this table.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from embedroute.protocol import bodies

GET: Final = ("GET", "HEAD")


class Operation(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An operation at one path; ``path`` is relative to the mount, or to the mount and ``/v1``.

    ``body`` is the struct of a 200. None means that of the dialect, or a plan (``?explain=1``).
    Operations without a ``summary`` are not part of the OpenAPI document.
    """

    id: str
    path: str
    methods: tuple[str, ...]
    summary: str = ""
    description: str = ""
    body: type[msgspec.Struct] | None = None
    statuses: tuple[int, ...] = ()


EMBED: Final = Operation(
    id="createEmbedding",
    path="/embeddings",
    methods=("POST",),
    summary="Embed texts, token ids or content parts",
    description="One vector per input, in input order",
    statuses=(400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 502, 503, 504),
)
LIST_EMBEDDING_MODELS: Final = Operation(
    id="listEmbeddingModels",
    path="/embeddings/models",
    methods=GET,
    summary="List models",
    description="The models that the caller may use, as OpenRouter lists them",
    body=bodies.OpenRouterModelList,
    statuses=(401, 500),
)
LIST_MODELS: Final = Operation(
    id="listModels",
    path="/models",
    methods=GET,
    summary="List models",
    description="The models that the caller may use",
    body=bodies.ModelList,
    statuses=(401, 500),
)
GET_MODEL: Final = Operation(
    id="getModel",
    path="/models/{id}",
    methods=GET,
    summary="Describe a model",
    description="The model",
    body=bodies.Model,
    statuses=(401, 404, 500),
)
GET_OPENAPI: Final = Operation(id="getOpenAPI", path="/openapi.json", methods=GET)
GET_LIVE: Final = Operation(id="getLive", path="/health/live", methods=GET)
GET_READY: Final = Operation(id="getReady", path="/health/ready", methods=GET)

API: Final = (EMBED, LIST_EMBEDDING_MODELS, LIST_MODELS, GET_MODEL)
"""The operations of the API, which a host has too: as middleware or as a FastAPI router."""

BY_PATH: Final[Mapping[str, Operation]] = {
    f"{prefix}{operation.path}": operation
    for operation in (*API, GET_OPENAPI)
    for prefix in ("", "/v1")
} | {operation.path: operation for operation in (GET_LIVE, GET_READY)}
"""Path below a mount → operation; see ``match_model_path`` for the path of a single model."""


def match_model_path(path: str) -> Operation | None:
    """Return ``GET_MODEL`` if ``path`` has the id of a model, which may contain slashes."""
    return GET_MODEL if get_model_id(path) else None


def get_model_id(path: str) -> str:
    """Return the id of a model in a path below a mount or a prefix, or an empty string."""
    before, _, model_id = path.partition("/models/")
    return model_id if before in {"", "/v1"} else ""


def suggest_path(path: str) -> str:
    """Return the path of the API that ``path`` ends in, or an empty string.

    A base URL that should end in ``/v1`` makes ``/v1/v1/embeddings`` if the client adds it too.
    """
    found = [f"/v1{operation.path}" for operation in API if path.endswith(operation.path)]
    return max(found, key=len, default="")


def is_in_api(path: str) -> bool:
    """Return whether an operation of the API has this path, which is relative to a prefix."""
    return path.startswith("/models/") or any(path == operation.path for operation in API)
