"""Provides the ``model2vec`` backend: static models, which average one vector per token.

They take microseconds per text and no GPU. A model is a folder, or a name at the Hugging Face Hub,
such as ``minishlab/potion-base-8M``, which the first start downloads.

Source: model2vec 0.10 ``model2vec/model.py``.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import ClassVar, Protocol

from embedroute import vectors
from embedroute.backend import Batch, LocalBackend, Vectors
from embedroute.backends._local_library import check_lengths, rejected
from embedroute.errors import MissingExtra


class StaticModel(Protocol):
    """The used methods of ``model2vec.StaticModel``."""

    def tokenize(self, sentences: Sequence[str]) -> list[list[int]]:
        """Tokenize texts, without unknown tokens."""
        ...

    def encode(
        self, sentences: Sequence[str], *, max_length: None, use_multiprocessing: bool
    ) -> vectors.Array:
        """Embed texts."""
        ...


class Model2Vec(LocalBackend, frozen=True, kw_only=True):
    """A static model of model2vec.

    ``model`` is a folder or a name at the Hub, and ``subfolder`` the place of the model in it.
    ``normalize`` scales vectors to length 1. The library itself cuts texts after 512 tokens. This
    backend averages all of them, or refuses texts with more than ``max_tokens``.
    """

    max_threads: ClassVar[int | None] = 1

    model: str
    subfolder: str | None = None
    normalize: bool = True
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Report a missing package at startup instead of at the first request."""
        if find_spec("model2vec") is None:
            raise MissingExtra("model2vec", "model2vec")

    def load(self) -> StaticModel:
        """Read the model, or download it if it is neither a folder nor in the cache."""
        return import_module("model2vec").StaticModel.from_pretrained(
            self.model, subfolder=self.subfolder, max_length=None, force_download=False
        )

    def run(self, model: StaticModel, batch: Batch) -> Vectors:
        """Average the vectors of the tokens of each text."""
        tokens = model.tokenize(batch.texts)
        counts = [len(ids) for ids in tokens]
        check_lengths(counts, self.max_tokens, "Shorten it, or raise max_tokens.")
        if not all(counts):
            raise rejected(counts.index(0), "The text has no token that the model knows.")
        rows = model.encode(batch.texts, max_length=None, use_multiprocessing=False)
        array = vectors.scaled(rows) if self.normalize else vectors.as_float32(rows)
        return Vectors(array, prompt_tokens=sum(counts))
