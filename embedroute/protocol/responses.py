"""Defines the result of a request, and the structs of response bodies."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Literal

import msgspec

from embedroute import vectors
from embedroute.runtime import LARGE, groups
from embedroute.trace import RequestTrace
from embedroute.vectors import Array


class Embeddings(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The result of one request.

    ``rows`` are n arrays of shape (d,), row i for input i. ``model`` names the vector space.
    """

    rows: Sequence[Array]
    model: str
    prompt_tokens: int
    trace: RequestTrace

    @property
    def vectors(self) -> Array:
        """The rows as one array of shape (n, d)."""
        return vectors.stack(self.rows)

    @property
    def large(self) -> bool:
        """Whether the body is so large that it must be written in steps."""
        return len(self.rows) * self.rows[0].nbytes >= LARGE

    @property
    def providers(self) -> Sequence[str]:
        """The providers of the vectors; empty if all came from the cache."""
        return tuple(self.trace.providers)


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Token counts of all inputs; the fields with a default are those of some dialects.

    ``cost`` is in USD.
    """

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | None = None
    cost: float | None = None
    prompt_tokens_details: Mapping[str, int] | None = None


class Embedding(msgspec.Struct, frozen=True, gc=False):
    """One vector: a JSON array, or base64 of little-endian float32."""

    embedding: msgspec.Raw
    index: int
    object: Literal["embedding"] = "embedding"


class CreateEmbeddingResponse(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    tag_field="object",
    tag="list",
    gc=False,
):
    """The body of a success; fields that are None are left out."""

    data: Sequence[Embedding]
    model: str
    usage: Usage
    id: str | None = None
    provider: str | None = None
    upstream_request: object = None
    upstream_response: object = None
    trace: object = None


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A model in OpenAI's format, with additional facts; prices are in USD per million tokens."""

    id: str
    owned_by: str
    dimensions: int | None
    dimensions_allowed: Sequence[int] | None
    matryoshka: bool
    context_length: int | None
    modalities: Sequence[str]
    pricing: Mapping[str, str]
    providers: Sequence[str]
    supported_endpoints: Sequence[str] = ("/v1/embeddings",)
    created: int = 0
    object: Literal["model"] = "model"


ENCODER = msgspec.json.Encoder(decimal_format="string")
"""Encodes all response bodies; prices become strings, so that no JSON parser rounds them."""


# The JSON around a vector and its index, as the encoder writes it in small responses.
_BEFORE_VECTOR, _, _AFTER_VECTOR = ENCODER.encode(
    Embedding(embedding=msgspec.Raw(b"7"), index=0)
).partition(b"7")
_BEFORE_INDEX, _, _AFTER_INDEX = _AFTER_VECTOR.partition(b"0")


def iter_body(envelope: bytes, rows: Sequence[Array], *, base64: bool) -> Iterator[bytes]:
    """Yield the pieces of a body; ``envelope`` is the body with an empty list of vectors.

    Pieces save the memory and time to copy them into one body.
    """
    before, brackets, after = envelope.partition(b"[]")
    write = vectors.to_base64 if base64 else vectors.to_json
    yield before + brackets[:1]
    for group in groups(len(rows)):
        pieces = list[bytes]()
        for index, row in enumerate(rows[group], group.start):
            pieces += (
                b"," + _BEFORE_VECTOR if index else _BEFORE_VECTOR,
                write(row),
                b"%b%d%b" % (_BEFORE_INDEX, index, _AFTER_INDEX),
            )
        yield b"".join(pieces)
    yield brackets[1:] + after


def encode_rows(rows: Sequence[Array], *, base64: bool) -> list[Embedding]:
    """Encode n arrays of shape (d,), in order, each with its ``index``."""
    write = vectors.to_base64 if base64 else vectors.to_json
    return list(map(Embedding, map(msgspec.Raw, map(write, rows)), count()))
