"""Lists the paths that the gateway serves.

The handler, the middleware, the FastAPI router and the OpenAPI document all read this table.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from embedroute.config import ProtocolName
from embedroute.errors import NotFound
from embedroute.protocol import CreateEmbeddingRequest, response_bodies
from embedroute.server.protocols import (
    Answer,
    Format,
    Translate,
    azure,
    cohere,
    engines,
    ollama,
    tei,
)
from embedroute.text import echo

GET: Final = ("GET", "HEAD")


class Operation(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An operation at one path; ``path`` is relative to the mount, or to the mount and ``/v1``.

    ``body`` is the struct of a 200. None means that of the dialect, or a plan (``?explain=1``).
    Operations without a ``summary`` are not part of the OpenAPI document.

    The other fields are those of operations of other APIs. Their ``path`` is relative to the mount.
    ``translate`` translates an embeddings request, and ``answer`` answers a question about models.
    ``format`` writes the responses; None means the dialect. ``key_header`` may hold the API key
    instead of a Bearer token. ``request`` is the struct of the request body, ``error_body`` that of
    an error, and ``schema`` the JSON Schema of a 200 that is not an object.
    """

    id: str
    path: str
    methods: tuple[str, ...]
    summary: str = ""
    description: str = ""
    body: type[msgspec.Struct] | None = None
    statuses: tuple[int, ...] = ()
    protocol: ProtocolName = "openai"
    translate: Translate | None = None
    answer: Answer | None = None
    format: Format | None = None
    key_header: bytes = b""
    request: type[msgspec.Struct] | None = None
    error_body: type[msgspec.Struct] | None = None
    schema: Mapping[str, Any] | None = None


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
    body=response_bodies.OpenRouterModelList,
    statuses=(401, 500),
)
LIST_MODELS: Final = Operation(
    id="listModels",
    path="/models",
    methods=GET,
    summary="List models",
    description="The models that the caller may use",
    body=response_bodies.ModelList,
    statuses=(401, 500),
)
GET_MODEL: Final = Operation(
    id="getModel",
    path="/models/{id}",
    methods=GET,
    summary="Describe a model",
    description="The model",
    body=response_bodies.Model,
    statuses=(401, 404, 500),
)
GET_OPENAPI: Final = Operation(id="getOpenAPI", path="/openapi.json", methods=GET)
GET_LIVE: Final = Operation(id="getLive", path="/health/live", methods=GET)
GET_READY: Final = Operation(id="getReady", path="/health/ready", methods=GET)
GET_DASHBOARD: Final = Operation(id="getDashboard", path="/dashboard", methods=GET)
GET_DASHBOARD_FILE: Final = Operation(id="getDashboardFile", path="/dashboard/{file}", methods=GET)
GET_USAGE: Final = Operation(id="getUsage", path="/usage", methods=GET)
GET_METRICS: Final = Operation(id="getMetrics", path="/metrics", methods=GET)

API: Final = (EMBED, LIST_EMBEDDING_MODELS, LIST_MODELS, GET_MODEL)
"""The operations of OpenAI's API, which a host has too: as middleware or as a FastAPI router."""

_EMBED_ENGINE: Final = Operation(
    id="createEngineEmbedding",
    path="/v1/engines/{model}/embeddings",
    methods=("POST",),
    summary="Embed texts with an engine",
    description="One vector per input, in input order",
    statuses=EMBED.statuses,
    protocol="engines",
    translate=engines.translate,
    request=azure.DeploymentEmbeddingRequest,
)
_EMBED_AZURE: Final = Operation(
    id="createDeploymentEmbedding",
    path="/openai/deployments/{model}/embeddings",
    methods=("POST",),
    summary="Embed texts with a deployment (Azure OpenAI)",
    description="One vector per input, in input order",
    body=response_bodies.CreateEmbeddingResponse,
    statuses=EMBED.statuses,
    protocol="azure",
    translate=azure.translate,
    format=azure.FORMAT,
    key_header=azure.KEY_HEADER,
    request=azure.DeploymentEmbeddingRequest,
    error_body=azure.AzureErrorResponse,
)
_EMBED_AZURE_V1: Final = msgspec.structs.replace(
    _EMBED_AZURE,
    id="createAzureEmbedding",
    path="/openai/v1/embeddings",
    summary="Embed texts (Azure OpenAI, v1)",
    request=CreateEmbeddingRequest,
)
_EMBED_COHERE: Final = Operation(
    id="embedCohere",
    path="/v2/embed",
    methods=("POST",),
    summary="Embed texts or images (Cohere)",
    description="The vectors, by type",
    body=cohere.CohereEmbedResponse,
    statuses=EMBED.statuses,
    protocol="cohere",
    translate=cohere.translate,
    format=cohere.FORMAT,
    request=cohere.CohereEmbedRequest,
    error_body=cohere.CohereErrorResponse,
)
_EMBED_OLLAMA: Final = Operation(
    id="embedOllama",
    path="/api/embed",
    methods=("POST",),
    summary="Embed texts (Ollama)",
    description="The vectors, of length 1",
    body=ollama.OllamaEmbedResponse,
    statuses=EMBED.statuses,
    protocol="ollama",
    translate=ollama.translate_embed,
    format=ollama.FORMAT,
    request=ollama.OllamaEmbedRequest,
    error_body=ollama.OllamaErrorResponse,
)
_EMBED_OLLAMA_ONE: Final = msgspec.structs.replace(
    _EMBED_OLLAMA,
    id="embeddingsOllama",
    path="/api/embeddings",
    summary="Embed one text (Ollama)",
    description="The vector",
    body=ollama.OllamaEmbeddingsResponse,
    translate=ollama.translate_embeddings,
    format=ollama.EMBEDDINGS_FORMAT,
    request=ollama.OllamaEmbeddingsRequest,
)
_LIST_OLLAMA: Final = Operation(
    id="listOllamaModels",
    path="/api/tags",
    methods=GET,
    summary="List models (Ollama)",
    description="The models that the caller may use",
    body=ollama.OllamaModelList,
    statuses=(401, 500),
    protocol="ollama",
    answer=ollama.list_models,
    format=ollama.FORMAT,
    error_body=ollama.OllamaErrorResponse,
)
_SHOW_OLLAMA: Final = msgspec.structs.replace(
    _LIST_OLLAMA,
    id="showOllamaModel",
    path="/api/show",
    methods=("POST",),
    summary="Describe a model (Ollama)",
    description="The model",
    body=ollama.OllamaShowResponse,
    statuses=(400, 401, 404, 408, 413, 415, 500),
    answer=ollama.show_model,
    request=ollama.OllamaShowRequest,
)
_VERSION_OLLAMA: Final = msgspec.structs.replace(
    _LIST_OLLAMA,
    id="getOllamaVersion",
    path="/api/version",
    summary="Say which version of the API this is (Ollama)",
    description="The version",
    body=ollama.OllamaVersion,
    answer=ollama.show_version,
)
_EMBED_TEI: Final = Operation(
    id="embedTEI",
    path="/tei/{model}/embed",
    methods=("POST",),
    summary="Embed texts (Text Embeddings Inference)",
    description="The vectors, of length 1",
    schema=tei.VECTORS,
    statuses=EMBED.statuses,
    protocol="tei",
    translate=tei.translate,
    format=tei.FORMAT,
    request=tei.TEIEmbedRequest,
    error_body=tei.TEIErrorResponse,
)
_INFO_TEI: Final = Operation(
    id="infoTEI",
    path="/tei/{model}/info",
    methods=GET,
    summary="Describe a model (Text Embeddings Inference)",
    description="The model, and the limits of a request",
    body=tei.TEIInfo,
    statuses=(400, 401, 404, 500),
    protocol="tei",
    answer=tei.describe_model,
    format=tei.FORMAT,
    error_body=tei.TEIErrorResponse,
)
_HEALTH_TEI: Final = Operation(
    id="getHealthTEI", path="/health", methods=GET, protocol="tei", format=tei.FORMAT
)

_WITH_OPENAI_PATHS: Final = frozenset({"openai", "voyage", "jina"})
"""The protocols whose requests are for ``/v1/embeddings``."""

FOREIGN: Final = (
    _EMBED_ENGINE,
    _EMBED_AZURE,
    _EMBED_AZURE_V1,
    _EMBED_COHERE,
    _EMBED_OLLAMA,
    _EMBED_OLLAMA_ONE,
    _LIST_OLLAMA,
    _SHOW_OLLAMA,
    _VERSION_OLLAMA,
    _EMBED_TEI,
    msgspec.structs.replace(
        _EMBED_TEI,
        id="embedOnlyTEI",
        path="/embed",
        summary="Embed texts with the only model (Text Embeddings Inference)",
    ),
    _INFO_TEI,
    msgspec.structs.replace(
        _INFO_TEI,
        id="infoOnlyTEI",
        path="/info",
        summary="Describe the only model (Text Embeddings Inference)",
    ),
    _HEALTH_TEI,
    msgspec.structs.replace(_HEALTH_TEI, path="/tei/{model}/health"),
    msgspec.structs.replace(_EMBED_TEI, id="predictTEI", path="/tei/{model}", summary=""),
)
"""The operations of other APIs; of two templates that match a path, the first counts."""

BY_PATH: Final[Mapping[str, Operation]] = {
    f"{prefix}{operation.path}": operation
    for operation in (*API, GET_OPENAPI, GET_USAGE)
    for prefix in ("", "/v1")
} | {operation.path: operation for operation in (GET_LIVE, GET_READY, GET_METRICS, GET_DASHBOARD)}
"""Path below a mount → operation; see ``Routes.match`` for the path of a single model."""


class Routes(msgspec.Struct, frozen=True, kw_only=True):
    """The operations of a mount: those at one path, and those whose path names a model.

    ``models``: ``/v1/models/{id}`` is one of them.
    """

    by_path: Mapping[str, Operation]
    templates: Sequence[Operation] = ()
    models: bool = True

    def match(self, path: str) -> tuple[Operation, str] | None:
        """Return the operation whose template matches ``path``, and the model in the path."""
        if self.models and (model := get_model_id(path)):
            return GET_MODEL, model
        if path.startswith("/dashboard/"):
            return GET_DASHBOARD_FILE, ""
        for operation in self.templates:
            before, _, after = operation.path.partition("{model}")
            if path.startswith(before) and path.endswith(after):
                model = path[len(before) : len(path) - len(after)]
                if model:
                    return operation, model
        return None


def select_routes(protocols: Collection[ProtocolName]) -> Routes:
    """Return the operations that a mount serves with these protocols."""
    foreign = [operation for operation in FOREIGN if operation.protocol in protocols]
    by_path = {item.path: item for item in foreign if "{" not in item.path}
    templates = [item for item in foreign if "{" in item.path]
    if _WITH_OPENAI_PATHS.isdisjoint(protocols):
        others = {path: item for path, item in BY_PATH.items() if item not in API}
        return Routes(by_path={**others, **by_path}, templates=templates, models=False)
    return Routes(by_path={**BY_PATH, **by_path}, templates=templates)


def list_enabled(protocols: Collection[ProtocolName]) -> list[Operation]:
    """List the documented operations of ``protocols``."""
    own: Sequence[Operation] = () if _WITH_OPENAI_PATHS.isdisjoint(protocols) else API
    foreign = [operation for operation in FOREIGN if operation.protocol in protocols]
    return [operation for operation in (*own, *foreign) if operation.summary]


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


def find_protocol(path: str) -> ProtocolName | None:
    """Return the protocol of another API whose operation has this path, or None."""
    documented = [operation for operation in FOREIGN if operation.summary]
    templates = [operation for operation in documented if "{" in operation.path]
    found = Routes(by_path={}, templates=templates, models=False).match(path)
    operations = [operation for operation in documented if operation.path == path]
    operations += [found[0]] if found else []
    return operations[0].protocol if operations else None


def is_in_api(path: str) -> bool:
    """Return whether an operation of the API has this path, which is relative to a prefix."""
    return path.startswith("/models/") or any(path == operation.path for operation in API)


def not_found(path: str, root_path: str) -> NotFound:
    """Return the 404 for ``path`` below ``root_path``; it names the path that was meant."""
    mount = root_path.rstrip("/")
    message = f"No resource at {echo(mount + path or '/')}."
    if suggestion := suggest_path(path):
        meant = echo(mount + suggestion)
        return NotFound(f"{message} Did you mean {meant}? Check the client's base URL.")
    if protocol := find_protocol(path):
        advice = f'to be served with [gateway] protocols = ["openai", "{protocol}"]'
        return NotFound(f"{message} It is a path of the protocol {protocol}, {advice}.")
    embeddings, models = (echo(mount + operation) for operation in ("/v1/embeddings", "/v1/models"))
    return NotFound(f"{message} Use POST {embeddings} or GET {models}.")
