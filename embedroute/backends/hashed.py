"""Provides the ``hashed`` backend, which computes vectors from a hash of each input."""

import hashlib
from typing import ClassVar, cast

import msgspec

from embedroute import vectors
from embedroute.backend import Accepts, Backend, Batch, Vectors
from embedroute.inputs import ImagePart, Input, Part, TextPart, estimate_sizes

DEFAULT_WIDTH = 256

INPUT_TYPES = (
    "query",
    "document",
    "classification",
    "clustering",
    "similarity",
    "qa",
    "fact_check",
    "code_query",
    "image",
)


class Hashed(Backend, frozen=True):
    """Deterministic unit vectors without meaning, for tests, demos and load tests.

    A vector depends on the input, its kind and its input type, but not on the model or the other
    inputs of the batch. A shorter vector is the start of a longer one, scaled to length 1. An image
    is hashed by its URL; an ``https:`` URL gives the same vector as that text, and so does a single
    text part.
    """

    accepts: ClassVar[Accepts] = Accepts(
        tokens=True,
        modalities=("text", "image"),
        fetches=True,
        dimensions=True,
        user=True,
        input_types=INPUT_TYPES,
        truncate=("none", "start", "end"),
    )

    async def embed(self, batch: Batch) -> Vectors:
        """Hash each input."""
        return hash_batch(batch, DEFAULT_WIDTH)


def hash_batch(batch: Batch, width: int) -> Vectors:
    """Hash each input of ``batch`` to ``width`` numbers, unless the batch sets another width."""
    target_width = batch.dimensions or batch.width or width
    digests = [digest(item, batch.input_type, target_width) for item in batch.inputs]
    return Vectors(vectors.from_digests(digests), prompt_tokens=sum(estimate_sizes(batch.inputs)))


def digest(item: Input, input_type: str | None, width: int) -> bytes:
    """Hash an input to ``2 * width`` bytes, from which its vector is computed.

    The JSON encoding is unambiguous: different kinds of inputs never encode to the same bytes. A
    shorter SHAKE digest is the start of a longer one.
    """
    encoded = msgspec.json.encode((input_type, _simplify(item)))
    return hashlib.shake_128(encoded).digest(2 * width)


def _simplify(item: Input) -> object:
    """Replace a single text part by its text."""
    if isinstance(item, str) or isinstance(item[0], int):
        return item
    parts = [_url_to_text(part) for part in cast("tuple[Part, ...]", item)]
    if len(parts) == 1 and isinstance(parts[0], TextPart):
        return parts[0].text
    return parts


def _url_to_text(part: Part) -> Part:
    if isinstance(part, ImagePart) and not part.image_url.url.startswith("data:"):
        return TextPart(part.image_url.url)
    return part
