"""Serves clients of Ollama: ``/api/embed``, ``/api/embeddings``, ``/api/tags``, ``/api/show``.

Source: Ollama's API reference (docs/api.md), version 0.12. ``keep_alive`` and options of text
generation and of the hardware change no vector, so they have no effect. Without ``truncate``, the
endpoint decides what happens to a text that is longer than the model's context.
"""

from collections.abc import Generator, Mapping, Sequence
from hashlib import sha256
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from embedroute.errors import EmbedrouteError, InvalidRequest, ModelNotFound
from embedroute.protocol import (
    ENCODER,
    EmbeddingRequest,
    Embeddings,
    LargeBody,
    Limits,
    Name,
    decode_struct,
    response_bodies,
    write_rows,
)
from embedroute.server.protocols.translation import (
    ModelQuestion,
    RawText,
    RawTexts,
    Translation,
    Width,
    is_text,
    read_body,
    refuse,
    write_body,
)
from embedroute.text import escaped
from embedroute.trace import RequestTrace
from embedroute.vectors import to_json, to_unit_json

VERSION: Final = "0.12.6"
"""The version of Ollama whose API this is."""
LATEST: Final = ":latest"
"""The tag that Ollama's clients may append to a name without one."""
CREATED: Final = "1970-01-01T00:00:00Z"

WITHOUT_EFFECT: Final = frozenset(
    {
        "num_keep",
        "seed",
        "num_predict",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "tfs_z",
        "repeat_last_n",
        "temperature",
        "repeat_penalty",
        "presence_penalty",
        "frequency_penalty",
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
        "penalize_newline",
        "stop",
        "numa",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "low_vram",
        "use_mmap",
        "use_mlock",
        "num_thread",
    }
)
"""Options of text generation and of the hardware."""

KeepAlive = str | int | float | None


class OllamaEmbedRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request; ``keep_alive`` has no effect."""

    model: Name
    input: RawTexts
    truncate: bool | None = None
    options: Mapping[str, Any] | None = None
    keep_alive: KeepAlive = None
    dimensions: Width = None


class OllamaEmbeddingsRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """The request of the older path; ``keep_alive`` has no effect."""

    model: Name
    prompt: RawText
    options: Mapping[str, Any] | None = None
    keep_alive: KeepAlive = None


class OllamaEmbedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The vectors, of length 1, and the tokens of all inputs."""

    model: str
    embeddings: Sequence[Sequence[float]]
    prompt_eval_count: int


class OllamaEmbeddingsResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The vector."""

    embedding: Sequence[float]


class OllamaErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The error response."""

    error: str


class OllamaDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about the file of a model, which the gateway does not have."""

    parent_model: str = ""
    format: str = ""
    family: str = ""
    families: Sequence[str] = ()
    parameter_size: str = ""
    quantization_level: str = ""


class OllamaModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model; ``digest`` is that of its name."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails


class OllamaModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The models that the caller may use."""

    models: Sequence[OllamaModel]


class OllamaShowRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The model to describe; ``name`` is the older name of the field."""

    model: Annotated[Name, Meta(min_length=1)] | None = None
    name: Name | None = None
    verbose: bool | None = None


class OllamaShowResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A model; ``model_info`` holds the length of its vectors and of its context."""

    modified_at: str
    details: OllamaDetails
    model_info: Mapping[str, int | str]
    capabilities: Sequence[str]


class OllamaVersion(msgspec.Struct, frozen=True, kw_only=True):
    """The version of Ollama whose API this is."""

    version: str


class OllamaFormat:
    """The format of ``/api/embed``. Its vectors have length 1, as Ollama's have."""

    def success(self, answer: Embeddings, request: EmbeddingRequest) -> tuple[bytes] | LargeBody:
        """Write all vectors, and the count of tokens."""
        del request
        envelope = ENCODER.encode(
            {"embeddings": (), "model": answer.model, "prompt_eval_count": answer.prompt_tokens}
        )
        return write_rows(envelope, answer.rows, to_unit_json)

    def error(self, error: EmbedrouteError, trace: RequestTrace) -> bytes:
        """Write the message."""
        del trace
        message = error.message
        if isinstance(error, ModelNotFound):  # clients look for these words, to pull the model
            message = f'model "{escaped(error.requested[:128])}" not found, {message}'
        return ENCODER.encode(OllamaErrorResponse(error=message))


class OllamaEmbeddingsFormat(OllamaFormat):
    """The format of ``/api/embeddings``, which has one vector and does not normalize it."""

    def success(self, answer: Embeddings, request: EmbeddingRequest) -> tuple[bytes] | LargeBody:
        """Write the vector."""
        del request
        return (b'{"embedding":%b}' % to_json(answer.rows[0]),)


FORMAT: Final = OllamaFormat()
EMBEDDINGS_FORMAT: Final = OllamaEmbeddingsFormat()


def translate_embed(body: bytes, model: str, limits: Limits) -> Generator[None, None, Translation]:
    """Translate a request of ``/api/embed``.

    Raises:
        InvalidRequest: the body is invalid, or has an option that would change the vectors.
    """
    del model
    request = yield from read_body(body, OllamaEmbedRequest, limits)
    _check_options(request.options)
    truncate = None
    if request.truncate is not None:
        truncate = "end" if request.truncate else "none"
    translated = write_body(
        model=_without_tag(request.model),
        input=request.input,
        dimensions=request.dimensions,
        truncate=truncate,
    )
    return Translation(body=translated, format=FORMAT)


def translate_embeddings(
    body: bytes, model: str, limits: Limits
) -> Generator[None, None, Translation]:
    """Translate a request of ``/api/embeddings``.

    Raises:
        InvalidRequest: the body is invalid, or has an option that would change the vector.
    """
    del model
    request = yield from read_body(body, OllamaEmbeddingsRequest, limits)
    _check_options(request.options)
    if not is_text(request.prompt):
        raise InvalidRequest("'prompt' must be a string.", param="prompt")
    translated = write_body(model=_without_tag(request.model), input=request.prompt)
    return Translation(body=translated, format=EMBEDDINGS_FORMAT, names={"input": "prompt"})


def _check_options(options: Mapping[str, Any] | None) -> None:
    for name, value in (options or {}).items():
        if value is not None and name not in WITHOUT_EFFECT:
            refuse(f"options.{name}", "would change the vectors, and the gateway cannot set it")


def _without_tag(name: str) -> str:
    return name.removesuffix(LATEST)


def list_models(question: ModelQuestion) -> OllamaModelList:
    """Answer ``GET /api/tags``."""
    return OllamaModelList(models=[_describe(model) for model in question.models])


def _describe(model: response_bodies.Model) -> OllamaModel:
    return OllamaModel(
        name=model.id,
        model=model.id,
        modified_at=CREATED,
        size=0,
        digest=sha256(model.id.encode()).hexdigest(),
        details=OllamaDetails(),
    )


def show_model(question: ModelQuestion) -> OllamaShowResponse:
    """Answer ``POST /api/show``.

    Raises:
        InvalidRequest: the body names no model.
        ModelNotFound: there is no such model, or the caller may not use it.
    """
    request = decode_struct(question.body, OllamaShowRequest)
    name = _without_tag(request.model or request.name or "")
    if not name:
        raise InvalidRequest("'model' is required.", param="model")
    model = question.find(name)
    sizes = {
        "embedding.embedding_length": model.dimensions,
        "embedding.context_length": model.context_length,
    }
    known = {name: size for name, size in sizes.items() if size is not None}
    vision = ["vision"] if "image" in model.modalities else []
    return OllamaShowResponse(
        modified_at=CREATED,
        details=OllamaDetails(),
        model_info={"general.architecture": "embedding", **known},
        capabilities=["embedding", *vision],
    )


def show_version(question: ModelQuestion) -> OllamaVersion:
    """Answer ``GET /api/version``."""
    del question
    return OllamaVersion(version=VERSION)
