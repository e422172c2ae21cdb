"""Splits inputs that are longer than the context of a model, if the config of the model says so.

The tokens of a text are estimated. ``CAUTIOUS`` bytes per token are so few that nearly every text
has fewer tokens than that. ``LIKELY`` bytes are what most texts have; the refusal of an endpoint
finds the texts that have more tokens.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final, cast

import msgspec

from embedroute.inputs import Input

CAUTIOUS: Final = 3
"""Bytes of UTF-8 per token, by the cautious estimate."""
LIKELY: Final = 4
"""Bytes of UTF-8 per token, by the likely estimate."""
MOST_PIECES: Final = 2048
"""Pieces at most of all inputs of a request."""

_SENTENCE_END: Final = re.compile(r"[.!?]['\")\]]*\s+|[\u3002\uff01\uff1f]|\n+")
_SPACE: Final = re.compile(r"\s+")
_WINDOW: Final = 5
"""The last fifth of a piece is searched for the end of a sentence or a word."""


class OverLength(msgspec.Struct, frozen=True, kw_only=True):
    """What a model does with long inputs.

    ``limit`` is the tokens of the longest input. ``pool`` is whether the vectors of its parts are
    averaged, and ``is_float`` whether the endpoints return floats. ``refuses`` is whether the
    endpoints are certain to refuse a longer one; otherwise an input that may be too long is not
    sent whole.
    """

    limit: int
    pool: bool
    refuses: bool
    is_float: bool = True

    def may_apply(self, inputs: Sequence[Input]) -> bool:
        """Return whether an input may be too long. A character has at most 4 bytes."""
        most = self.limit * CAUTIOUS
        return any(len(item) * 4 > most for item in inputs)


class Pieces(msgspec.Struct, frozen=True, kw_only=True):
    """The pieces of all inputs of a request, in order.

    ``owners`` holds the position of the input of each piece. ``weights`` are estimated tokens.
    ``cut`` are the positions of the inputs that were cut.
    """

    inputs: Sequence[Input]
    owners: Sequence[int]
    weights: Sequence[int]
    cut: Sequence[int]


def estimate_tokens(item: Input, bytes_per_token: int = CAUTIOUS) -> int:
    """Estimate the tokens of a text, rounded up; the number of token ids is exact."""
    if isinstance(item, str):
        size = len(item) if item.isascii() else len(item.encode(errors="surrogatepass"))
        return -(-size // bytes_per_token)
    return len(item)


def find_overlong(
    inputs: Sequence[Input], limit: int, bytes_per_token: int = CAUTIOUS
) -> frozenset[int]:
    """Return the positions of the inputs that may have more than ``limit`` tokens."""
    return frozenset(
        position
        for position, item in enumerate(inputs)
        if estimate_tokens(item, bytes_per_token) > limit
    )


def split_overlong(inputs: Sequence[Input], limits: Mapping[int, int], *, pool: bool) -> Pieces:
    """Cut the inputs at the positions in ``limits`` to pieces of at most that many tokens.

    Only the first piece of an input is kept, unless ``pool`` is true.
    """
    pieces: list[Input] = []
    owners: list[int] = []
    positions: list[int] = []
    for position, item in enumerate(inputs):
        limit = limits.get(position)
        cut = [item] if limit is None else cut_input(item, limit)
        kept = cut if pool else cut[:1]
        if len(cut) > 1:
            positions.append(position)
        pieces += kept
        owners += [position] * len(kept)
    return Pieces(
        inputs=pieces,
        owners=owners,
        weights=[estimate_tokens(piece) for piece in pieces],
        cut=positions,
    )


def cut_input(item: Input, limit: int) -> Sequence[Input]:
    """Cut a text or token ids to pieces of at most ``limit`` tokens, by the cautious estimate."""
    if not isinstance(item, str):
        ids = cast("tuple[int, ...]", item)
        return [ids[start : start + limit] for start in range(0, len(ids), limit)]
    pieces: list[str] = []
    start = 0
    while start < len(item):
        end = _find_end(item, start, limit * CAUTIOUS)
        pieces.append(item[start:end])
        start = end
    return [piece for piece in pieces if piece.strip()] or pieces[:1]


def _find_end(text: str, start: int, most_bytes: int) -> int:
    """Return where a piece of at most ``most_bytes`` bytes from ``start`` ends.

    It ends after a sentence, else after a word, if one ends in its last fifth.
    """
    window = text[start : start + most_bytes]
    if not window.isascii():
        encoded = window.encode(errors="surrogatepass")[:most_bytes]
        window = window[: max(1, len(encoded.decode(errors="ignore")))]
    end = start + len(window)
    if end >= len(text):
        return len(text)
    searched = len(window) - max(1, len(window) // _WINDOW)
    for pattern in (_SENTENCE_END, _SPACE):
        ends = [match.end() for match in pattern.finditer(window, searched)]
        if ends:
            return start + ends[-1]
    return end
