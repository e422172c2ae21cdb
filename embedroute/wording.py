"""How an error speaks of a client's own text: it repeats it safely, and suggests what was meant."""

from collections.abc import Sequence
from difflib import get_close_matches

LONGEST_ECHO = 128
"""Characters of a client's own text that an error repeats."""


def echo(text: str) -> str:
    """Repeat a client's text safely: escaped, and cut at ``LONGEST_ECHO`` characters."""
    return ascii(text[:LONGEST_ECHO])[: LONGEST_ECHO + 2]


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Suggest the closest of ``known``, as ``; did you mean "x"?``, or nothing."""
    close = get_close_matches(name[:LONGEST_ECHO], known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
