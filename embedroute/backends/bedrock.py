"""Provides the backend for embedding models on Amazon Bedrock: Titan, Cohere and Nova.

Requests are signed with AWS credentials, or carry a Bedrock API key. Only Cohere's models take more
than one input per call; the catalogue says so for each model.

Not verified: ``truncate`` of Cohere's version 4, where AWS documents LEFT and RIGHT, but recorded
calls accept START and END.

Source: AWS Bedrock user guide (2026-11); recorded calls of pydantic/pydantic-ai.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, ClassVar, Final, Literal
from urllib.parse import quote

import msgspec

from embedroute import vectors
from embedroute.backend import (
    Accepts,
    Batch,
    Credentials,
    Dtype,
    HTTPBackend,
    Options,
    Secret,
    Send,
    Size,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
    sets,
)
from embedroute.backends import _aws
from embedroute.backends._data_urls import read_image
from embedroute.backends._json_scan import split_vectors, texts_to_array
from embedroute.backends._openai_response import first_count
from embedroute.backends._option_checks import check_base_url, check_values
from embedroute.errors import (
    BatchTooLarge,
    InvalidUpstreamResponse,
    UpstreamRejectedInput,
    UpstreamUnavailable,
)
from embedroute.inputs import ImagePart, Part, TextPart

Family = Literal["titan-v1", "titan-v2", "titan-image", "cohere-v3", "cohere-v4", "nova"]

FAMILIES: Final[Sequence[tuple[str, Family]]] = (
    (r"titan-embed-text-v2", "titan-v2"),
    (r"titan-embed-image", "titan-image"),
    (r"titan-embed", "titan-v1"),
    (r"cohere\.embed-\w+-v3", "cohere-v3"),
    (r"cohere\.embed", "cohere-v4"),
    (r"nova\b.*embed", "nova"),
)
"""Pattern of the model's id → family, in order. A region may precede an id: ``us.cohere…``."""

COHERE_TYPES: Final[Mapping[str, str]] = {
    "query": "search_query",
    "document": "search_document",
    "classification": "classification",
    "clustering": "clustering",
    "image": "image",
}
NOVA_PURPOSES: Final[Mapping[str, str]] = {
    "query": "GENERIC_RETRIEVAL",
    "document": "GENERIC_INDEX",
    "classification": "CLASSIFICATION",
    "clustering": "CLUSTERING",
    "image": "IMAGE_RETRIEVAL",
}

COUNT_HEADER: Final = "x-amzn-bedrock-input-token-count"
JSON_HEADERS: Final = {"accept": "application/json"}


class TitanAnswer(msgspec.Struct, rename="camel"):
    """The response of a Titan model. ``message`` is an error of the image model."""

    embedding: list[float] | None = None
    input_text_token_count: object = None
    message: str | None = None


class NovaRow(msgspec.Struct):
    """One vector of a Nova model."""

    embedding: list[float]


class NovaAnswer(msgspec.Struct):
    """The response of a Nova model."""

    embeddings: list[NovaRow]


class CohereLists(msgspec.Struct):
    """The response of a Cohere model if no type of embedding was requested."""

    embeddings: list[msgspec.Raw]


class CohereTypes(msgspec.Struct):
    """The response of a Cohere model: for each type of embedding a list of vectors."""

    embeddings: dict[str, list[msgspec.Raw]]


class BedrockOptions(Options, frozen=True, kw_only=True):
    """The parameters of the models on Bedrock, with the names of each family's reference.

    Titan has ``dimensions`` and ``normalize``. Cohere has ``input_type``, ``output_dimension``,
    ``embedding_types``, ``truncate`` and ``max_tokens``. Nova has those in camel case.
    """

    namespace: ClassVar[str] = "bedrock"

    dimensions: Annotated[Size | None, sets("dimensions")] = None
    normalize: bool | None = None
    input_type: Annotated[
        Literal["search_query", "search_document", "classification", "clustering", "image"] | None,
        sets("input_type"),
    ] = None
    output_dimension: Annotated[Size | None, sets("dimensions")] = None
    truncate: Annotated[Literal["NONE", "START", "END"] | None, sets("truncate")] = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=128_000)] | None = None
    embedding_types: Annotated[
        Annotated[list[Dtype], msgspec.Meta(min_length=1, max_length=1)] | None, sets("dtype")
    ] = None
    embedding_dimension: Annotated[Size | None, sets("dimensions")] = msgspec.field(
        default=None, name="embeddingDimension"
    )
    embedding_purpose: Annotated[
        Literal[
            "GENERIC_INDEX", "GENERIC_RETRIEVAL", "IMAGE_RETRIEVAL", "CLASSIFICATION", "CLUSTERING"
        ]
        | None,
        sets("input_type"),
    ] = msgspec.field(default=None, name="embeddingPurpose")
    truncation_mode: Annotated[Literal["NONE", "START", "END"] | None, sets("truncate")] = (
        msgspec.field(default=None, name="truncationMode")
    )


FAMILY_OPTIONS: Final[Mapping[Family, Sequence[str]]] = {
    "titan-v2": ("normalize",),
    "cohere-v4": ("max_tokens",),
}
"""Family → the options that its requests have besides the neutral ones."""


class Bedrock(HTTPBackend, frozen=True, kw_only=True, dict=True):
    """Amazon Bedrock in one ``region``.

    ``api_key`` is a Bedrock API key. Without it, requests are signed: with ``access_key_id``,
    ``secret_access_key`` and ``session_token``, or with what botocore finds as the AWS command line
    does, also for a ``profile``.

    ``truncate`` is what Cohere and Nova do with a text that is too long: refuse it, or cut its
    start or end. ``default_input_type`` is used for these models if a request has none. ``family``
    is for ids that do not name the model, such as those of application inference profiles.
    """

    accepts: ClassVar[Accepts] = Accepts(
        modalities=("text", "image"),
        dimensions=True,
        input_types=tuple(COHERE_TYPES),
        dtypes=("float", "int8", "uint8", "binary", "ubinary"),
        truncate=("none", "start", "end"),
        options=("bedrock",),
        max_inputs=1,
        max_bytes=20_000_000,
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (BedrockOptions,)

    region: str
    api_key: Secret | None = None
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    profile: str | None = None
    base_url: str | None = None
    truncate: Literal["none", "start", "end"] = "none"
    default_input_type: Literal["query", "document", "classification", "clustering"] = "document"
    family: Family | None = None

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        if not re.fullmatch(r"[a-z0-9-]+", self.region):
            raise ValueError("region must be the name of an AWS region, such as us-east-1")
        check_base_url(self._url)
        check_values(api_key=self.api_key)
        if self.api_key is None:
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
        return f"https://bedrock-runtime.{self.region}.{domain}"

    @cached_property
    def _session(self) -> _aws.Session:
        return _aws.open_session(self.profile)

    def fetch_credentials(self, send: Send) -> Credentials | None:
        """Obtain AWS keys, unless an API key is set."""
        del send
        return None if self.api_key else _aws.fetch_keys(self._keys, self._session)

    def authorize(self, request: UpstreamRequest, credentials: Credentials) -> UpstreamRequest:
        """Sign the request."""
        return _aws.sign(request, credentials, "bedrock", self.region)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request in the format of the model's family.

        Raises:
            BatchTooLarge: the call has several inputs, and the model takes one.
            UpstreamRejectedInput: the model does not take this kind of input, or an option.
            UpstreamUnavailable: the family of the model is not known.
        """
        family = self._get_family(batch.model)
        _refuse_foreign_options(batch, family)
        if family in ("cohere-v3", "cohere-v4"):
            body = self._cohere_body(batch, family)
        elif len(batch) > 1:
            raise BatchTooLarge("This model takes one input per call.")
        elif family == "nova":
            body = self._nova_body(batch)
        else:
            body = _titan_body(batch, family)
        url = f"{self._url}/model/{quote(batch.model, safe='')}/invoke"
        return UpstreamRequest.json(url, body, bearer=self.api_key, headers=JSON_HEADERS)

    def _get_family(self, model: str) -> Family:
        if self.family is not None:
            return self.family
        for pattern, family in FAMILIES:
            if re.search(pattern, model):
                return family
        names = ", ".join(family for _, family in FAMILIES)
        raise UpstreamUnavailable(
            f"The name {model!r} does not say which family of models it is."
            f" Set the option 'family' of the provider to one of {names}."
        )

    def _cohere_body(self, batch: Batch, family: Family) -> dict[str, object]:
        is_images = family == "cohere-v3" and bool(batch.parts)
        input_type = COHERE_TYPES[batch.input_type or self.default_input_type]
        # Version 3 answers floats as plain lists, and takes no dimensions.
        wants_types = family == "cohere-v4" or batch.dtype != "float"
        return {
            **_cohere_inputs(batch, family),
            "input_type": "image" if is_images else input_type,
            "embedding_types": [batch.dtype] if wants_types else None,
            "output_dimension": batch.dimensions,
            "truncate": None if is_images else self._get_truncate(batch),
            "max_tokens": batch.options.get("max_tokens"),
        }

    def _get_truncate(self, batch: Batch) -> str:
        return (batch.truncate or self.truncate).upper()

    def _nova_body(self, batch: Batch) -> dict[str, object]:
        purpose = NOVA_PURPOSES[batch.input_type or self.default_input_type]
        size = {"embeddingDimension": batch.dimensions} if batch.dimensions else {}
        part = TextPart(batch.texts[0]) if batch.texts else _get_only_part(batch.parts[0])
        if isinstance(part, TextPart):
            content = {"text": {"truncationMode": self._get_truncate(batch), "value": part.text}}
        else:
            image = read_image(part)
            content = {
                "image": {
                    "format": image.media_type.removeprefix("image/"),
                    "source": {"bytes": image.payload},
                }
            }
        return {
            "taskType": "SINGLE_EMBEDDING",
            "singleEmbeddingParams": {"embeddingPurpose": purpose, **size, **content},
        }

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors; the tokens are in a header, and for Titan also in the body."""
        family = self._get_family(batch.model)
        in_header = response.headers.get(COUNT_HEADER, "")
        tokens = int(in_header) if re.fullmatch(r"[0-9]{1,15}", in_header) else None
        if family in ("cohere-v3", "cohere-v4"):
            return Vectors(_read_cohere(batch, response, family), first_count(tokens))
        if family == "nova":
            rows = response.json(NovaAnswer).embeddings
            return Vectors(vectors.from_lists([row.embedding for row in rows]), first_count(tokens))
        answer: TitanAnswer = response.json(TitanAnswer)
        if answer.embedding is None or answer.message:
            raise InvalidUpstreamResponse(
                f"The upstream returned no vector: {answer.message or 'embedding is missing'}"
            )
        array = vectors.from_lists([answer.embedding])
        return Vectors(array, first_count(tokens, answer.input_text_token_count))


def _titan_body(batch: Batch, family: Family) -> dict[str, object]:
    if batch.input_type is not None:
        raise UpstreamRejectedInput(
            "This model has no input types. Omit 'input_type'.", param="input_type"
        )
    if family == "titan-image":
        size = {"outputEmbeddingLength": batch.dimensions} if batch.dimensions else None
        return {**_titan_parts(batch), "embeddingConfig": size}
    if batch.parts:
        raise UpstreamRejectedInput("This model takes only texts.", param="input")
    if family == "titan-v1":
        return {"inputText": batch.texts[0], "dimensions": batch.dimensions}
    normalize = batch.options.get("normalize", True)
    return {"inputText": batch.texts[0], "dimensions": batch.dimensions, "normalize": normalize}


def _refuse_foreign_options(batch: Batch, family: Family) -> None:
    """Refuse options of another family.

    Titan's models always refuse a text that is too long. Only Cohere's have quantised vectors.
    """
    allowed = FAMILY_OPTIONS.get(family, ())
    foreign = [name for name in batch.options if name not in allowed]
    if batch.truncate in ("start", "end") and family.startswith("titan"):
        foreign.append("truncate")
    if batch.dtype != "float" and not family.startswith("cohere"):
        foreign.append("output_dtype")
    if foreign:
        raise UpstreamRejectedInput(
            f"This model has no option '{foreign[0]}'. Omit it.", param=foreign[0]
        )


def _titan_parts(batch: Batch) -> dict[str, object]:
    """Return the text and the image of an input, which has at most one of each."""
    parts = batch.parts[0] if batch.parts else (TextPart(batch.texts[0]),)
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    images = [read_image(part).payload for part in parts if isinstance(part, ImagePart)]
    if len(texts) > 1 or len(images) > 1:
        raise UpstreamRejectedInput(
            "This model takes at most one text and one image per input.", param="input"
        )
    fields = {"inputText": texts, "inputImage": images}
    return {name: values[0] for name, values in fields.items() if values}


def _cohere_inputs(batch: Batch, family: Family) -> dict[str, object]:
    if batch.texts:
        return {"texts": batch.texts}
    if family == "cohere-v4":
        return {"inputs": [{"content": parts} for parts in batch.parts]}
    if len(batch) > 1:
        raise BatchTooLarge("This model takes one image per call.")
    part = _get_only_part(batch.parts[0])
    return (
        {"texts": [part.text]} if isinstance(part, TextPart) else {"images": [part.image_url.url]}
    )


def _get_only_part(parts: Sequence[Part]) -> Part:
    if len(parts) != 1:
        raise UpstreamRejectedInput(
            "This model takes one text or one image per input.", param="input"
        )
    return parts[0]


def _read_cohere(batch: Batch, response: UpstreamResponse, family: Family) -> vectors.Array:
    if family == "cohere-v3" and batch.dtype == "float":
        _, texts = split_vectors(
            response,
            CohereLists,
            "embeddings",
            lambda answer: answer.embeddings,
            len(batch),
            in_one_list=True,
        )
    else:
        _, texts = split_vectors(
            response,
            CohereTypes,
            batch.dtype,
            lambda answer: answer.embeddings[batch.dtype],
            len(batch),
            in_one_list=True,
        )
    return texts_to_array(texts, batch.dtype, batch.width)
