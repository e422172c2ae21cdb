"""Defines the three kinds of input, and estimates their sizes.

An input is a text (``str``), a list of token ids (``tuple[int, ...]``) or a list of content parts
(``tuple[TextPart | ImagePart, ...]``). One input becomes one vector.
"""

from collections import Counter
from collections.abc import Collection, Generator, Sequence
from enum import StrEnum
from itertools import chain
from typing import Annotated, Final, TypeGuard, cast

import msgspec
from msgspec import Meta

PIECE: Final = 1 << 16
"""Characters of a text that are measured at a time."""


class Kind(StrEnum):
    """The kind of an input; all inputs of a request have the same."""

    TEXT = "text"
    TOKENS = "tokens"
    PARTS = "parts"


class TextPart(
    msgspec.Struct, frozen=True, tag="text", tag_field="type", forbid_unknown_fields=True, gc=False
):
    """A text in a multimodal input."""

    text: Annotated[str, Meta(extra_json_schema={"minLength": 1})]


class ImageURL(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The URL of an image: ``data:``, or ``https:`` if the upstream downloads it."""

    url: str


class ImagePart(
    msgspec.Struct,
    frozen=True,
    tag="image_url",
    tag_field="type",
    forbid_unknown_fields=True,
    gc=False,
):
    """An image in a multimodal input."""

    image_url: ImageURL


Part = TextPart | ImagePart
Input = str | tuple[int, ...] | tuple[Part, ...]


def detect_kind(first: Input) -> Kind:
    """Return the kind of a request's inputs, given the first of them."""
    if isinstance(first, str):
        return Kind.TEXT
    return Kind.TOKENS if isinstance(first[0], int) else Kind.PARTS


def estimate_size(item: Input) -> int:
    """Estimate the tokens of one input: the count of ids, or UTF-8 bytes / 4 of a text, at least 1.

    An image counts as 258 tokens, as Gemini bills it (ai.google.dev, token counting).
    """
    if isinstance(item, str):
        return text_size(item)
    if isinstance(item[0], int):
        return len(item)
    return sum(
        258 if isinstance(part, ImagePart) else text_size(part.text)
        for part in cast("tuple[Part, ...]", item)
    )


def content_size(item: Input, modality: str) -> int:
    """Estimate how much of a modality an input holds: tokens of its text, or its images."""
    if modality == "image":
        return images_in([item])
    if isinstance(item, str) or isinstance(item[0], int):
        return estimate_size(item) if modality == "text" else 0
    parts = cast("tuple[Part, ...]", item)
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return sum(map(text_size, texts)) if modality == "text" else 0


def estimate_sizes(items: Collection[Input]) -> list[int]:
    """Estimate the tokens of each input, as ``estimate_size`` does; all have the same kind."""
    if all_text(items):
        return [max(1, len(text) // 4) if text.isascii() else text_size(text) for text in items]
    return [estimate_size(item) for item in items]


def estimate_sizes_in_steps(items: Collection[Input]) -> Generator[None, None, list[int]]:
    """Estimate the same as ``estimate_sizes``, in steps: 32 MiB of texts take up to 30 ms."""
    sizes = list[int]()
    for item in items:
        sizes.append(estimate_size(item))
        yield
    return sizes


def letters_in(items: Collection[Input]) -> int:
    """Count the characters of texts and image URLs, and the token ids, of a request's inputs."""
    if detect_kind(next(iter(items), "")) is not Kind.PARTS:
        return sum(map(len, items))
    parts = chain.from_iterable(cast("Collection[tuple[Part, ...]]", items))
    return sum(
        [len(part.text if isinstance(part, TextPart) else part.image_url.url) for part in parts]
    )


def all_text(items: Collection[Input]) -> TypeGuard[Collection[str]]:
    """Whether a request's inputs are texts; looks at the first, as all have the same kind."""
    return isinstance(next(iter(items), None), str)


def text_size(text: str) -> int:
    """Estimate the tokens of a text as UTF-8 bytes / 4, at least 1."""
    if text.isascii():
        return max(1, len(text) // 4)
    # In pieces, as 32 MiB at once take up to 55 ms, most of it for new memory.
    starts = range(0, len(text), PIECE)
    return max(1, sum([len(text[start : start + PIECE].encode()) for start in starts]) // 4)


def list_modalities(items: Sequence[Input]) -> frozenset[str]:
    """Return the modalities of a request's inputs: ``text``, ``image`` or both."""
    if detect_kind(items[0]) is not Kind.PARTS:
        return frozenset({"text"})
    kinds = set(map(type, chain.from_iterable(items)))
    return frozenset("image" if kind is ImagePart else "text" for kind in kinds)


def images_in(items: Collection[Input]) -> int:
    """Count the images of a request's inputs, for prices per image."""
    first = next(iter(items), "")
    if detect_kind(first) is not Kind.PARTS:
        return 0
    return Counter(map(type, chain.from_iterable(items)))[ImagePart]
