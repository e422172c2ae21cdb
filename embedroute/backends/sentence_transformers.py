"""Provides the ``sentence-transformers`` backend: any model of that library, on a CPU or a GPU.

Source: sentence-transformers 6.2 ``sentence_transformers/sentence_transformer/model.py``.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, Final

import msgspec

from embedroute import vectors
from embedroute.backend import Accepts, Batch, LocalBackend, Vectors
from embedroute.backends._local_library import (
    Tokenizer,
    check_lengths,
    copy_tokenizer,
)
from embedroute.errors import InvalidRequest, MissingExtra

PROMPT_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "document": ("document", "passage", "corpus"),
}
"""Neutral input type → the names that models give to its prompt; others have one name."""


class Loaded(msgspec.Struct, frozen=True):
    """A loaded model, with a tokenizer that neither pads nor cuts.

    ``has_routes`` says whether the model has different modules for queries and documents.
    """

    model: Any
    tokenizer: Tokenizer | None
    has_routes: bool


class SentenceTransformers(LocalBackend, frozen=True, kw_only=True):
    """A model of sentence-transformers.

    ``model`` is a folder or a name at the Hugging Face Hub, which the first start downloads, at
    ``revision``, unless ``local_files_only`` is set. ``device`` is that of torch (``cpu``,
    ``cuda:0``, ``mps``); by default the library chooses. ``batch_size`` is the maximum number of
    texts that the model computes at once. ``prompts`` maps input types to the text to put before
    each input; by default they are the prompts of the model. ``normalize`` scales vectors to length
    1. A text that is longer than the context is refused, unless ``truncate`` lets the library cut
    it. ``trust_remote_code`` runs Python code that comes with the model.
    """

    accepts: ClassVar[Accepts] = Accepts(input_types=("query", "document"))
    min_slice: ClassVar[int] = 8
    # The library changes the padding of its tokenizer for each call.
    max_threads: ClassVar[int | None] = 1

    model: str
    revision: str | None = None
    device: str | None = None
    batch_size: int = 32
    prompts: Mapping[str, str] = {}
    normalize: bool = True
    truncate: bool = False
    trust_remote_code: bool = False
    local_files_only: bool = False

    def __post_init__(self) -> None:
        """Report a missing package or a wrong option at startup.

        Raises:
            ValueError: ``batch_size`` is less than 1.
        """
        if find_spec("sentence_transformers") is None:
            raise MissingExtra("sentence-transformers", "sentence-transformers")
        if self.batch_size < 1:
            raise ValueError("batch_size must be at least 1")

    def load(self) -> Loaded:
        """Load the model, and a copy of its tokenizer that counts tokens."""
        library = import_module("sentence_transformers")
        model = library.SentenceTransformer(
            self.model,
            revision=self.revision,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            local_files_only=self.local_files_only,
        )
        router = import_module("sentence_transformers.models").Router
        fast: Any = getattr(model.tokenizer, "backend_tokenizer", None)
        tokenizer = None if fast is None else copy_tokenizer(fast)
        return Loaded(model, tokenizer, isinstance(model[0], router))

    def run(self, model: Loaded, batch: Batch) -> Vectors:
        """Embed texts with the prompt of their input type."""
        prompt = self._find_prompt(model, batch.input_type)
        tokens = None
        if model.tokenizer is not None:
            sent = [(prompt or "") + text for text in batch.texts]
            counts = [len(text.ids) for text in model.tokenizer.encode_batch_fast(sent)]
            most = None if self.truncate else model.model.max_seq_length
            check_lengths(counts, most, "Shorten it, or set truncate = true.")
            tokens = sum(counts)
        encode = {
            "query": model.model.encode_query,
            "document": model.model.encode_document,
        }.get(batch.input_type or "", model.model.encode)
        rows = encode(
            list(batch.texts),
            prompt=prompt,
            batch_size=self.batch_size,
            show_progress_bar=False,
            normalize_embeddings=self.normalize,
        )
        return Vectors(vectors.as_float32(rows), prompt_tokens=tokens)

    def _find_prompt(self, model: Loaded, input_type: str | None) -> str | None:
        """Return the prompt of an input type; None leaves it to the model.

        Raises:
            InvalidRequest: the model does not distinguish this input type.
        """
        known: Mapping[str, str] = model.model.prompts
        if input_type is None:
            return known.get(model.model.default_prompt_name or "")
        if input_type in self.prompts:
            return self.prompts[input_type]
        names = PROMPT_NAMES.get(input_type, (input_type,))
        prompt = next((known[name] for name in names if known.get(name)), None)
        if prompt is None and not model.has_routes:
            raise InvalidRequest(
                f"The model has no prompt for the input type '{input_type}'. Set prompts = "
                f'{{ {input_type} = "…" }} of the provider, or input_types = [] of the model.',
                param="input_type",
            )
        return prompt
