"""Provides the backend for embedding models on Google's Vertex AI.

It uses ``predict``, which takes several texts, and ``embedContent``, which takes one input of any
modality. Older models use the first, and gemini-embedding-2 uses the second.

Not verified: whether ``predict`` takes several texts for gemini-embedding-001. Google's page says
one, and the catalogue follows it. Some projects refuse ``predict`` for this model; set ``method``.

Source: the discovery document of aiplatform v1 (20261106), and googleapis/python-genai.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Literal
from urllib.parse import quote

import msgspec

from embedroute import vectors
from embedroute.backend import (
    TRUNCATES,
    Accepts,
    Batch,
    Credentials,
    HTTPBackend,
    Name,
    Options,
    Secret,
    Send,
    Size,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
    sets,
)
from embedroute.backends import _google_auth
from embedroute.backends._data_urls import read_image
from embedroute.backends._json_scan import split_vectors, texts_to_array
from embedroute.backends._openai_response import first_count
from embedroute.backends._option_checks import check_base_url, check_values
from embedroute.backends.gemini import (
    FULL_WIDTH,
    SECOND,
    TASKS,
    GoogleOptions,
    GoogleTask,
    encode_content,
)
from embedroute.errors import BatchTooLarge, InvalidUpstreamResponse, UpstreamRejectedInput
from embedroute.inputs import ImagePart, Part, TextPart

MULTIMODAL: Final = "multimodalembedding"
"""Start of the names of models that have a ``predict`` format of their own."""

UNSCALED: Final = "gemini-embedding-001"
"""Model whose truncated vectors do not have length 1."""


class Statistics(msgspec.Struct, frozen=True):
    """The tokens of a text."""

    token_count: object = None


class Embeddings(msgspec.Struct):
    """The vector of a text."""

    values: msgspec.Raw
    statistics: Statistics = Statistics()


class Prediction(msgspec.Struct):
    """The result for one text."""

    embeddings: Embeddings


class PredictAnswer(msgspec.Struct):
    """The response of ``predict``: one prediction per text, in order."""

    predictions: list[Prediction]


class MultimodalPrediction(msgspec.Struct, rename="camel"):
    """The result of a multimodal model, which has one vector per modality."""

    text_embedding: list[float] = []
    image_embedding: list[float] = []


class MultimodalAnswer(msgspec.Struct):
    """The response of ``predict`` for a multimodal model."""

    predictions: list[MultimodalPrediction]


class Detail(msgspec.Struct, rename="camel"):
    """The tokens of one modality."""

    modality: str
    token_count: int = 0


class Usage(msgspec.Struct, rename="camel"):
    """The tokens of a call of ``embedContent``."""

    prompt_token_count: object = None
    prompt_tokens_details: list[Detail] = []


class Values(msgspec.Struct):
    """A vector."""

    values: list[float]


class ContentAnswer(msgspec.Struct, rename="camel"):
    """The response of ``embedContent``."""

    embedding: Values
    usage_metadata: msgspec.Raw = msgspec.Raw()


class VertexOptions(Options, frozen=True, kw_only=True):
    """The parameters of Vertex AI, with the names of its reference."""

    namespace: ClassVar[str] = "vertex"

    output_dimensionality: Annotated[Size | None, sets("dimensions")] = msgspec.field(
        default=None, name="outputDimensionality"
    )
    task_type: Annotated[GoogleTask | None, sets("input_type")] = None
    title: Annotated[Name | None, sets("title")] = None
    auto_truncate: Annotated[bool | None, sets("truncate", TRUNCATES)] = msgspec.field(
        default=None, name="autoTruncate"
    )


class Vertex(HTTPBackend, frozen=True, kw_only=True):
    """Vertex AI in one ``location`` of a ``project``.

    Requests carry an access token that google-auth obtains: with ``credentials_file``, or as
    Google's own libraries find credentials. ``api_key`` is a key of the express mode instead.

    ``auto_truncate`` is whether the API cuts texts that are longer than the context of the model.
    ``method`` is the method of the API; None chooses it by the name of the model.
    """

    accepts: ClassVar[Accepts] = Accepts(
        modalities=("text", "image"),
        dimensions=True,
        input_types=tuple(TASKS),
        truncate=("none", "end"),
        options=("google", "vertex"),
        max_inputs=250,
        max_tokens=20_000,
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (GoogleOptions, VertexOptions)

    project: str
    location: str = "global"
    api_key: Secret | None = None
    credentials_file: str | None = None
    base_url: str | None = None
    auto_truncate: bool = False
    method: Literal["predict", "embedContent"] | None = None

    def __post_init__(self) -> None:
        """Reject options from which no request could be built."""
        check_base_url(self._host)
        check_values(api_key=self.api_key)
        if self.api_key is None:
            _google_auth.check_installed()

    @property
    def _host(self) -> str:
        if self.base_url is not None:
            return self.base_url.rstrip("/")
        if self.location == "global":
            return "https://aiplatform.googleapis.com"
        if self.location in ("us", "eu"):
            return f"https://aiplatform.{self.location}.rep.googleapis.com"
        return f"https://{quote(self.location, safe='')}-aiplatform.googleapis.com"

    def fetch_credentials(self, send: Send) -> Credentials | None:
        """Obtain an access token, unless an API key is set."""
        return None if self.api_key else _google_auth.fetch_token(send, self.credentials_file)

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request for the method of the model.

        Raises:
            BatchTooLarge: the call has several inputs, and the method takes one.
            UpstreamRejectedInput: the model does not take this kind of input.
            InvalidRequest: an image is not a base64 ``data:`` URL.
        """
        method = self._get_method(batch.model)
        if method == "embedContent":
            body = self._content_body(batch)
        elif batch.model.startswith(MULTIMODAL):
            body = _multimodal_body(batch)
        else:
            body = self._predict_body(batch)
        headers = {"x-goog-api-key": self.api_key} if self.api_key else {}
        return UpstreamRequest.json(self._get_url(batch.model, method), body, headers=headers)

    def _get_method(self, model: str) -> str:
        return self.method or ("embedContent" if SECOND in model else "predict")

    def _get_url(self, model: str, method: str) -> str:
        """Return the URL; ``endpoints/ID`` is a model that the project has deployed itself."""
        project, location = quote(self.project, safe=""), quote(self.location, safe="")
        parent = f"{self._host}/v1/projects/{project}/locations/{location}"
        path = (
            f"endpoints/{quote(model.removeprefix('endpoints/'), safe='')}"
            if model.startswith("endpoints/")
            else f"publishers/google/models/{quote(model, safe='@')}"
        )
        return f"{parent}/{path}:{method}"

    def _content_body(self, batch: Batch) -> dict[str, object]:
        """Build the body of ``embedContent``, which would merge several contents to one vector."""
        if len(batch) > 1:
            raise BatchTooLarge("This model takes one input per call.")
        parts = batch.parts[0] if batch.parts else (TextPart(batch.texts[0]),)
        title = batch.options.get("title") if batch.input_type == "document" else None
        content = encode_content(batch.model, parts, batch.input_type, title)
        settings = {
            "taskType": content.get("taskType"),
            "title": content.get("title"),
            "outputDimensionality": batch.dimensions,
            "autoTruncate": self._cuts(batch),
        }
        config = {name: value for name, value in settings.items() if value is not None}
        return {"content": content["content"], "embedContentConfig": config}

    def _predict_body(self, batch: Batch) -> dict[str, object]:
        if batch.parts:
            raise UpstreamRejectedInput("This model takes only texts.", param="input")
        title = batch.options.get("title") if batch.input_type == "document" else None
        task = {"task_type": TASKS[batch.input_type][0]} if batch.input_type else {}
        fields = {**task, **({"title": title} if title else {})}
        size = {"outputDimensionality": batch.dimensions} if batch.dimensions else {}
        return {
            "instances": [{"content": text, **fields} for text in batch.texts],
            "parameters": {"autoTruncate": self._cuts(batch), **size},
        }

    def _cuts(self, batch: Batch) -> bool:
        """Return whether the API cuts texts that are too long."""
        return batch.truncate == "end" if batch.truncate else self.auto_truncate

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors and the tokens in the format of the method."""
        if self._get_method(batch.model) == "embedContent":
            return _read_content(response)
        if batch.model.startswith(MULTIMODAL):
            return _read_multimodal(response)
        answer, texts = split_vectors(
            response,
            PredictAnswer,
            "values",
            lambda answer: [row.embeddings.values for row in answer.predictions],
            len(batch),
        )
        array = texts_to_array(texts, width=batch.width)
        if batch.model == UNSCALED and array.shape[1] < FULL_WIDTH:
            array = vectors.unit(array)
        counts = [first_count(row.embeddings.statistics.token_count) for row in answer.predictions]
        known = [count for count in counts if count is not None]
        return Vectors(array, sum(known) if len(known) == len(counts) else None)


def _multimodal_body(batch: Batch) -> dict[str, object]:
    inputs = batch.parts or [(TextPart(text),) for text in batch.texts]
    size = {"dimension": batch.dimensions} if batch.dimensions else None
    return {"instances": [_encode_instance(parts) for parts in inputs], "parameters": size}


def _encode_instance(parts: Sequence[Part]) -> dict[str, object]:
    if len(parts) != 1:
        raise UpstreamRejectedInput(
            "This model embeds a text or an image, not both in one input.", param="input"
        )
    part = parts[0]
    if isinstance(part, ImagePart):
        return {"image": {"bytesBase64Encoded": read_image(part).payload}}
    return {"text": part.text}


def _read_multimodal(response: UpstreamResponse) -> Vectors:
    answer: MultimodalAnswer = response.json(MultimodalAnswer)
    rows = [row.text_embedding or row.image_embedding for row in answer.predictions]
    return Vectors(vectors.from_lists(rows))


def _read_content(response: UpstreamResponse) -> Vectors:
    answer: ContentAnswer = response.json(ContentAnswer)
    if not answer.embedding.values:
        raise InvalidUpstreamResponse("The upstream returned an empty vector.")
    usage = _decode_usage(answer.usage_metadata)
    by_modality = {
        detail.modality.lower(): detail.token_count
        for detail in usage.prompt_tokens_details
        if detail.token_count > 0
    }
    array = vectors.from_lists([answer.embedding.values])
    return Vectors(array, first_count(usage.prompt_token_count), by_modality)


def _decode_usage(raw: msgspec.Raw) -> Usage:
    try:
        return msgspec.json.decode(raw, type=Usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Usage()
