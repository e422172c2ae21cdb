"""Provides the ``fastembed`` backend: Qdrant's library of ONNX models, without torch.

Source: fastembed 0.9 ``fastembed/text/text_embedding.py``.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import msgspec

from embedroute import vectors
from embedroute.backend import Batch, LocalBackend, Vectors
from embedroute.backends._local_library import (
    Tokenizer,
    check_lengths,
    copy_tokenizer,
    longest_text,
)
from embedroute.errors import MissingExtra


class Loaded(msgspec.Struct, frozen=True):
    """A loaded model, with a tokenizer that neither pads nor cuts, and the most tokens of a text.

    ``most`` is None if the model has no limit.
    """

    model: Any
    tokenizer: Tokenizer
    most: int | None


class FastEmbed(LocalBackend, frozen=True, kw_only=True):
    """A model of fastembed.

    ``model`` is a name of the library's list, which the first start downloads to ``cache_dir``,
    unless ``path`` is the folder with its files or ``local_files_only`` is set. ``threads`` limits
    the threads that compute one call, and ``batch_size`` the texts. Vectors are those of the
    library, which scales them to length 1 for most models. A text that is longer than the context
    is refused, unless ``truncate`` lets the library cut it.

    An input type calls the library's ``query_embed`` or ``passage_embed``, for endpoints whose
    ``accepts`` lists it: most models of the library do not distinguish them.
    """

    min_slice: ClassVar[int] = 8
    # A call uses all cores already, and the library pads with one tokenizer.
    max_threads: ClassVar[int | None] = 1

    model: str
    path: str | None = None
    cache_dir: str | None = None
    threads: int | None = None
    batch_size: int = 32
    truncate: bool = False
    local_files_only: bool = False

    def __post_init__(self) -> None:
        """Report a missing package at startup instead of at the first request."""
        if find_spec("fastembed") is None:
            raise MissingExtra("fastembed", "fastembed")

    def load(self) -> Loaded:
        """Load the model, and a copy of its tokenizer that counts tokens."""
        model = import_module("fastembed").TextEmbedding(
            self.model,
            cache_dir=self.cache_dir,
            threads=self.threads,
            specific_model_path=self.path,
            local_files_only=self.local_files_only,
        )
        own = model.model.tokenizer
        return Loaded(model, copy_tokenizer(own), longest_text(own))

    def run(self, model: Loaded, batch: Batch) -> Vectors:
        """Embed texts."""
        texts = list(batch.texts)
        counts = [len(text.ids) for text in model.tokenizer.encode_batch_fast(texts)]
        most = None if self.truncate else model.most
        check_lengths(counts, most, "Shorten it, or set truncate = true.")
        embed = {
            "query": model.model.query_embed,
            "document": model.model.passage_embed,
        }.get(batch.input_type or "", model.model.embed)
        rows = list(embed(texts, batch_size=self.batch_size))
        return Vectors(vectors.as_float32(rows), prompt_tokens=sum(counts))
