"""Detects whether an upstream's words may be quoted from an input of its call."""

from collections.abc import Iterator, Sequence

from embedroute.inputs import ImagePart, Input, TextPart

LONGEST_URL = 10_000
"""Characters of an image URL that are compared; the data of an image is not quoted."""


class QuoteCheck:
    """The texts of a call's inputs. They are folded once, when the first text is checked."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        """Check against the texts and URLs of ``inputs``."""
        self._inputs = inputs
        self._folded: list[str] | None = None

    def is_quote(self, text: str) -> bool:
        """Whether ``text`` occurs in an input, apart from case and the kind of white space."""
        folded = _fold(text).strip()
        if not folded:
            return False
        if self._folded is None:
            self._folded = [_fold(own) for item in self._inputs for own in _iter_texts(item)]
        return any(folded in own for own in self._folded)


def _fold(text: str) -> str:
    folded = text.casefold()
    for space in "\n\r\t\N{NO-BREAK SPACE}":
        folded = folded.replace(space, " ")
    while "  " in folded:
        folded = folded.replace("  ", " ")
    return folded


def _iter_texts(item: Input) -> Iterator[str]:
    if isinstance(item, str):
        yield item
        return
    for part in item:
        if isinstance(part, TextPart):
            yield part.text
        elif isinstance(part, ImagePart):
            yield part.image_url.url[:LONGEST_URL]
