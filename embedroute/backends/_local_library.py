"""What the backends for local models have in common: the tokens and lengths of texts."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

from embedroute.errors import ContextTooLong, UpstreamRejectedInput


class Encoding(Protocol):
    """The token ids of one text."""

    @property
    def ids(self) -> list[int]:
        """The ids, with those of special tokens."""
        ...


class Tokenizer(Protocol):
    """The used methods of ``tokenizers.Tokenizer``; encoding without padding does not modify it."""

    @property
    def truncation(self) -> Mapping[str, Any] | None:
        """How long texts are cut, or None if they are not."""
        ...

    @classmethod
    def from_str(cls, json: str, /) -> Self:
        """Make a tokenizer of its JSON."""
        ...

    def to_str(self) -> str:
        """Return the tokenizer as JSON."""
        ...

    def no_padding(self) -> None:
        """Turn padding off, so that each text keeps its own length."""

    def no_truncation(self) -> None:
        """Turn truncation off, so that the length of a long text is known."""

    def encode_batch_fast(self, input: list[str], /) -> list[Encoding]:
        """Tokenize texts."""
        ...


def copy_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that neither pads nor cuts, to count tokens."""
    copied = type(tokenizer).from_str(tokenizer.to_str())
    copied.no_padding()
    copied.no_truncation()
    return copied


def longest_text(tokenizer: Tokenizer) -> int | None:
    """Return after how many tokens a tokenizer cuts a text, or None."""
    return tokenizer.truncation["max_length"] if tokenizer.truncation else None


def check_lengths(counts: Sequence[int], most: int | None, advice: str) -> None:
    """Check the token counts of the texts of a batch. A model would cut a longer text silently.

    Raises:
        ContextTooLong: a text has more than ``most`` tokens; ``advice`` says what to do.
    """
    if most is None or max(counts, default=0) <= most:
        return
    index = next(index for index, count in enumerate(counts) if count > most)
    error = ContextTooLong(
        f"The text has {counts[index]} tokens; the maximum of this model is {most}. {advice}"
    )
    error.input_index = index
    raise error


def rejected(index: int, reason: str) -> UpstreamRejectedInput:
    """Return the error for the text at ``index`` of a batch, which the model cannot embed."""
    error = UpstreamRejectedInput(reason)
    error.input_index = index
    return error
