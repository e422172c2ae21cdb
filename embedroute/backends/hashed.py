"""Vectors without a model: the same input gives the same vector everywhere, another input another one."""

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
    """For tests, demos and load runs: deterministic unit vectors that mean nothing.

    A vector hangs on the input, its kind and its input type; neither on the model nor on the neighbours in
    the batch. A shorter vector is the start of a longer one, scaled to length 1. An image is hashed by its URL,
    an ``https:`` one as that text; a text alone in a content part is that text.
    """

    accepts: ClassVar[Accepts] = Accepts(
        tokens=True,
        modalities=("text", "image"),
        fetches=True,
        dimensions=True,
        user=True,
        input_types=INPUT_TYPES,
    )

    async def embed(self, batch: Batch) -> Vectors:
        """Hash each input."""
        return hash_batch(batch, DEFAULT_WIDTH)


def hash_batch(batch: Batch, width: int) -> Vectors:
    """Hash each input of ``batch``, to ``width`` numbers unless the batch says another width."""
    due = batch.dimensions or batch.width or width
    digests = [digest(item, batch.input_type, due) for item in batch.inputs]
    return Vectors(vectors.from_digests(digests), prompt_tokens=sum(estimate_sizes(batch.inputs)))


def digest(item: Input, input_type: str | None, width: int) -> bytes:
    """Hash one input to the 2 · ``width`` bytes its vector is made of.

    JSON tells the kinds apart and leaves no doubt where a text ends; SHAKE's shorter digests start its longer ones.
    """
    return hashlib.shake_128(msgspec.json.encode((input_type, _plain(item)))).digest(2 * width)


def _plain(item: Input) -> object:
    if isinstance(item, str) or isinstance(item[0], int):
        return item
    parts = [_as_text(part) for part in cast("tuple[Part, ...]", item)]
    return parts[0].text if len(parts) == 1 and isinstance(parts[0], TextPart) else parts


def _as_text(part: Part) -> Part:
    if isinstance(part, ImagePart) and not part.image_url.url.startswith("data:"):
        return TextPart(part.image_url.url)
    return part
