"""WordLlama: a real embedding model, 256 wide, whose weights are inside its wheel; no network, no GPU."""

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
    """What is used of ``tokenizers.Tokenizer``; once padding is off, encoding changes nothing in it."""

    def no_padding(self) -> None:
        """Let each text have a length of its own."""

    def encode_batch_fast(self, input: list[str], *, add_special_tokens: bool) -> list[Encoding]:
        """Cut texts into tokens."""
        ...


class Model(Protocol):
    """What is used of ``wordllama.WordLlama.load()``: a tokenizer and one vector per token."""

    tokenizer: Tokenizer
    embedding: vectors.Array


class WordLlama(LocalBackend, frozen=True):
    """The ``l2_supercat_256`` model of wordllama 0.4; 64, 128 or 256 numbers wide."""

    accepts: ClassVar[Accepts] = Accepts(dimensions=True)

    def __post_init__(self) -> None:
        """Find at start, and not at the first request, that the package is missing."""
        if find_spec("wordllama") is None:
            raise MissingExtra("local", "wordllama")

    def load(self) -> Model:
        """Read the weights from the wheel, and turn padding off, which makes each text as costly as the longest."""
        model = _load()
        model.tokenizer.no_padding()
        return model

    def run(self, model: Model, batch: Batch) -> Vectors:
        """Average the token vectors of each text, as ``WordLlama.embed(norm=True)`` does, and count the tokens."""
        encoded = model.tokenizer.encode_batch_fast(list(batch.texts), add_special_tokens=False)
        means = vectors.stack([vectors.mean(model.embedding, text.ids) for text in encoded])
        unit = vectors.truncate(means, batch.dimensions or batch.width or means.shape[1])
        return Vectors(unit, prompt_tokens=sum(len(text.ids) for text in encoded))


def _load() -> Model:
    # Importing wordllama calls logging.basicConfig(), which leaves a root logger alone that has a handler.
    guard = logging.NullHandler()
    logging.root.addHandler(guard)
    try:
        wordllama = import_module("wordllama")
    finally:
        logging.root.removeHandler(guard)
    # The wheel ships its tokenizer in a folder that is only looked into when it is named.
    return wordllama.WordLlama.load(
        cache_dir=Path(wordllama.__file__ or "").parent, disable_download=True
    )
