"""What a client gets: the list of embeddings, the models, and the struct of an error before a dialect words it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from embedroute import vectors
from embedroute.runtime import LARGE, groups
from embedroute.trace import RequestTrace
from embedroute.vectors import Array


class Embeddings(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The answer to one request: ``rows`` are n arrays of (d,), row i for input i; ``model`` the name of their space."""

    rows: Sequence[Array]
    model: str
    prompt_tokens: int
    trace: RequestTrace

    @property
    def vectors(self) -> Array:
        """The rows on top of each other: (n, d)."""
        return vectors.stack(self.rows)

    @property
    def large(self) -> bool:
        """Whether its body is better written in turns."""
        return len(self.rows) * self.rows[0].nbytes >= LARGE

    @property
    def providers(self) -> Sequence[str]:
        """The providers that were called, none for an answer from the cache."""
        return tuple(self.trace.providers)


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Tokens of all inputs; ``cost`` in USD and the other extras only where a dialect has them."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | None = None
    cost: float | None = None
    prompt_tokens_details: Mapping[str, int] | None = None


class Embedding(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
    """The success body; what is None is left out."""

    data: Sequence[Embedding]
    model: str
    usage: Usage
    id: str | None = None
    provider: str | None = None
    upstream_request: object = None
    upstream_response: object = None
    trace: object = None


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A model in OpenAI's form, and the facts that choosing one needs; prices in USD per million tokens."""

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
"""Writes every body; prices are strings, so that no reader rounds them."""


# What stands around a vector and its index; told by the encoder, so that large answers are written as small ones are.
_BEGIN, _, _TAIL = ENCODER.encode(Embedding(embedding=msgspec.Raw(b"7"), index=0)).partition(b"7")
_INDEX, _, _END = _TAIL.partition(b"0")


def iter_body(envelope: bytes, rows: Sequence[Array], *, base64: bool) -> Iterator[bytes]:
    """Put rows into a body that was written without any: piece by piece, as one body would be one more copy."""
    before, between, after = envelope.partition(b"[]")
    write = vectors.to_base64 if base64 else vectors.to_json
    yield before + between[:1]
    for group in groups(len(rows)):
        texts = list[bytes]()
        for at, row in enumerate(rows[group], group.start):
            texts += (b"," + _BEGIN if at else _BEGIN, write(row), b"%b%d%b" % (_INDEX, at, _END))
        yield b"".join(texts)
    yield between[1:] + after


def encode_rows(rows: Sequence[Array], *, base64: bool) -> list[Embedding]:
    """Write n arrays of (d,), in order, each with its ``index``."""
    write = vectors.to_base64 if base64 else vectors.to_json
    return [Embedding(embedding=msgspec.Raw(write(row)), index=at) for at, row in enumerate(rows)]
