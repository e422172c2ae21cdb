"""Provides the ``wordllama`` backend: a small local model that needs no network and no GPU.

The weights are in the wheel of the ``wordllama`` package. The vectors have up to 256 dimensions.
"""

import logging
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Protocol

from embedroute import vectors
from embedroute.backend import Accepts, Batch, LocalBackend, Vectors
from embedroute.errors import MissingExtra


class Encoding(Protocol):
    """The token ids of one text."""

    ids: list[int]


class Tokenizer(Protocol):
    """The used methods of ``tokenizers.Tokenizer``; encoding without padding does not modify it."""

    def no_padding(self) -> None:
        """Turn padding off, so that each text keeps its own length."""

    def encode_batch_fast(self, input: list[str], *, add_special_tokens: bool) -> list[Encoding]:
        """Tokenize texts."""
        ...


class Model(Protocol):
    """The used attributes of a loaded model: its tokenizer and one vector per token."""

    tokenizer: Tokenizer
    embedding: vectors.Array


class WordLlama(LocalBackend, frozen=True):
    """The ``l2_supercat_256`` model of wordllama 0.4, with 64, 128 or 256 dimensions."""

    accepts: ClassVar[Accepts] = Accepts(dimensions=True, truncate=("none", "start", "end"))

    def __post_init__(self) -> None:
        """Report a missing package at startup instead of at the first request."""
        if find_spec("wordllama") is None:
            raise MissingExtra("local", "wordllama")

    def load(self) -> Model:
        """Load the weights. Turn off padding, which makes each text cost as much as the longest."""
        model = _load()
        model.tokenizer.no_padding()
        return model

    def run(self, model: Model, batch: Batch) -> Vectors:
        """Average the token vectors of each text, as ``WordLlama.embed(norm=True)`` does."""
        encoded = model.tokenizer.encode_batch_fast(list(batch.texts), add_special_tokens=False)
        means = vectors.stack([vectors.mean(model.embedding, text.ids) for text in encoded])
        unit = vectors.truncate(means, batch.dimensions or batch.width or means.shape[1])
        return Vectors(unit, prompt_tokens=sum(len(text.ids) for text in encoded))


def _load() -> Model:
    # Importing wordllama calls logging.basicConfig(), which does nothing if there is a handler.
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        wordllama = import_module("wordllama")
    finally:
        logging.root.removeHandler(handler)
    # The tokenizer is in the folder of the package, which wordllama searches only as a cache_dir.
    return wordllama.WordLlama.load(
        cache_dir=Path(wordllama.__file__ or "").parent, disable_download=True
    )
