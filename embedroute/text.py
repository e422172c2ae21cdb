"""Quotes text of clients and upstreams safely in messages, and suggests corrections."""

from collections.abc import Sequence
from difflib import get_close_matches
from heapq import nsmallest
from itertools import accumulate

LONGEST_ECHO = 128
"""Maximum characters of a client's text that an error message quotes."""

MOST_COMPARED = 32
"""Maximum words that are compared letter by letter with a misspelt one; each takes about 0.1 ms."""

MOST_RUNS = 8
"""Maximum three-letter substrings by which the words to compare are chosen."""

LONGEST_MESSAGE = 300
"""Maximum characters of an upstream's message that a client receives, after escaping."""


def echo(text: str) -> str:
    """Quote a client's text as an ASCII literal of at most ``LONGEST_ECHO`` characters."""
    return ascii(text[:LONGEST_ECHO])[: LONGEST_ECHO + 2]


def printable(text: str) -> str:
    """Escape control and format characters, and cut the text at ``LONGEST_MESSAGE``.

    The function is idempotent.
    """
    pieces = [escaped(letter) for letter in text[:LONGEST_MESSAGE]]
    ends = accumulate(map(len, pieces))
    return "".join(
        [piece for piece, end in zip(pieces, ends, strict=True) if end <= LONGEST_MESSAGE]
    )


def escaped(text: str) -> str:
    """Escape unprintable characters, line breaks among them, as Python and TOML do."""
    return "".join(
        [
            letter if letter.isprintable() else letter.encode("unicode_escape").decode()
            for letter in text
        ]
    )


def closest(name: str, known: Sequence[str]) -> str | None:
    """Find the word of ``known`` that is most similar to ``name``, or None.

    Of a long list only the ``MOST_COMPARED`` most promising words are compared.
    """
    name = name[:LONGEST_ECHO]
    if len(known) > MOST_COMPARED:
        known = _most_promising(name, [word for word in known if len(word) <= LONGEST_ECHO])
    return next(iter(get_close_matches(name, known, n=1)), None)


def _most_promising(name: str, known: Sequence[str]) -> list[str]:
    """Choose the words that share most three-letter substrings with ``name``, then by length."""
    step = max(1, (len(name) - 2) // MOST_RUNS)
    substrings = [name[start : start + 3] for start in range(0, max(1, len(name) - 2), step)]
    return nsmallest(
        MOST_COMPARED,
        known,
        key=lambda word: (
            abs(len(word) - len(name))
            - LONGEST_ECHO * sum([substring in word for substring in substrings])
        ),
    )


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return ``; did you mean "x"?`` for the most similar of ``known``, or an empty string."""
    suggestion = closest(name, known)
    return "" if suggestion is None else f'; did you mean "{suggestion}"?'
