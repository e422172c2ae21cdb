"""How an error speaks of text that is not ours: it repeats it safely, and suggests what was meant."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from heapq import nsmallest
from itertools import accumulate
from typing import cast

LONGEST_ECHO = 128
"""Characters of a client's own text that an error repeats."""

MOST_COMPARED = 32
"""Words that are compared letter by letter with a mistaken one, which takes about 0.1 ms each."""

MOST_RUNS = 8
"""Parts of three letters by which those words are chosen."""

LONGEST_MESSAGE = 300
"""Characters of an upstream's text that a client may see, as they are written out."""


def echo(text: str) -> str:
    """Repeat a client's text safely: escaped, and cut at ``LONGEST_ECHO`` characters."""
    return ascii(text[:LONGEST_ECHO])[: LONGEST_ECHO + 2]


def printable(text: str) -> str:
    """Escape what would move a reader's cursor or turn the text around; cut at ``LONGEST_MESSAGE``.

    What has been through this already comes out as it is.
    """
    written = [escaped(letter) for letter in text[:LONGEST_MESSAGE]]
    ends = accumulate(map(len, written))
    return "".join(
        [piece for piece, end in zip(written, ends, strict=True) if end <= LONGEST_MESSAGE]
    )


def escaped(text: str) -> str:
    """Write what does not print as Python and TOML write it, so that a line stays one."""
    return "".join(
        [it if it.isprintable() else it.encode("unicode_escape").decode() for it in text]
    )


def log_fields(fields: Mapping[str, object]) -> dict[str, object]:
    """Make the ``extra`` of a log record: names of models and callers are a client's text, and must not forge lines.

    Escaped are control and format characters, line and paragraph separators, and surrogates, in lists too.
    """
    return {name: _escaped_in(value) for name, value in fields.items()}


def _escaped_in(value: object) -> object:
    if isinstance(value, str):
        return value if value.isprintable() else escaped(value)
    return (
        [_escaped_in(it) for it in cast("list[object]", value)]
        if isinstance(value, list)
        else value
    )


def closest(name: str, known: Sequence[str]) -> str | None:
    """Find the word of ``known`` that was probably meant; only ``MOST_COMPARED`` words that look like it are compared."""
    name = name[:LONGEST_ECHO]
    if len(known) > MOST_COMPARED:
        known = _alike(name, [word for word in known if len(word) <= LONGEST_ECHO])
    return next(iter(get_close_matches(name, known, n=1)), None)


def _alike(name: str, known: Sequence[str]) -> list[str]:
    """Choose the words that share the most of some three letters in a row with ``name``, then those of about its length."""
    apart = max(1, (len(name) - 2) // MOST_RUNS)
    runs = [name[start : start + 3] for start in range(0, max(1, len(name) - 2), apart)]
    return nsmallest(
        MOST_COMPARED,
        known,
        key=lambda word: (
            abs(len(word) - len(name)) - LONGEST_ECHO * sum([run in word for run in runs])
        ),
    )


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Suggest the closest of ``known``, as ``; did you mean "x"?``, or nothing."""
    close = closest(name, known)
    return "" if close is None else f'; did you mean "{close}"?'
