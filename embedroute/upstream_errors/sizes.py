"""Decides by the numbers in a refusal whether it states that this call is larger than a limit.

A refusal is about size if it names two integers, the larger of which is plausible as the size of
this call: its tokens, characters, bytes or number of inputs. A range such as "[1, 8192]" is
compared with the estimated size of the longest input. Pure functions.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from embedroute.errors import Measure
from embedroute.inputs import Input, TextPart, estimate_size
from embedroute.upstream_errors.lazy_pattern import LazyPattern

STATUSES: Final = frozenset({400, 413, 422, 429, 500})
"""Statuses of refusals whose numbers are read."""

MOST_SEARCHED: Final = 2_000
"""Maximum characters of a message in which numbers are read."""
MOST_NUMBERS: Final = 16
"""Maximum number of integers that are compared."""

_NUMBER: Final = LazyPattern(
    r"(?<![\w.,/:@#$%&=+-])[*(\[]{0,3}"
    r"(?P<number>[1-9]\d{0,2}(?:[,.'_\u2019\u00a0\u202f]\d{3}){1,3}|\d{1,12})"
    r"(?:(?=(?:tokens?|chars?|characters?|bytes?|inputs?|texts?|items?)\b)"
    r"|(?![\w/%$@-]|[.,:]\d))",
    re.ASCII | re.IGNORECASE,  # letters of other scripts may follow or precede a number
)
_SEPARATORS: Final = re.compile(r"\D")
_ASSIGNED: Final = re.compile(r"(?<=[a-z])[:=](?=\d)")
_POSITION: Final = re.compile(r"\b(\d{1,6}) of (\d{1,6})\b")
"""The number of an input, as in "text 3 of 10 is empty"."""
_FRACTION: Final = re.compile(r"(?<![\w./-])(\d{2,9}) ?/ ?(\d{2,9})(?![\w/-]|\.\d)", re.ASCII)
"""A size and its limit, as in "548/512 tokens"."""
_RANGE: Final = LazyPattern(
    r"[\[(]\s*(\d{1,6})\s*,\s*(\d{1,12})\s*[\])]"
    r"|\b(?:between|from) (\d{1,6}) (?:and|to) (\d{1,12})\b"
    r"|(?:\brange:? |范围\D{0,3})(\d{1,6}) ?[-\u2013~\uff5e] ?(\d{1,12})(?!\d)"
    r"|(\d{1,6}) ?(?:<=?|\u2264) ?[a-z_ ]{1,30}(?:<=?|\u2264) ?(\d{1,12})(?!\d)"
)
_LENGTH: Final = LazyPattern(
    r"\b(length|size|tokens?|characters?|inputs?|texts?)\b"
    "|长度|字符|字数|长さ|文字数|トークン|길이|토큰"
)
"""Words for the length of an input; one of them is up to 60 characters before a range, or in it."""
_REQUESTED: Final = LazyPattern(r"Limit:? (\d{1,15})\b.{0,80}?Requested:? (\d{1,15})\b")
_FACTOR: Final = 2
"""How far a number may be from our estimate, as tokenizers differ and APIs add prefixes."""
_SMALLEST_LIMIT: Final = 32
"""Smallest plausible limit in tokens, characters or bytes; smaller numbers are something else."""


class SizeMatch(msgspec.Struct, frozen=True):
    """Two numbers that state a size refusal.

    ``text`` is the part of the message from one number to the other. ``measure`` is the unit of
    the limit on the whole call; it is None if the limit may be one on each input.
    """

    text: str
    measure: Measure | None


class CallSize(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a call: of all inputs together, and of the longest."""

    inputs: int
    tokens: int
    characters: int
    bytes: int
    longest_tokens: int
    longest_characters: int
    longest_bytes: int

    def measure(self, number: int) -> tuple[bool, Measure | None]:
        """Return whether ``number`` is a plausible size of the call, and of what.

        The measure is None if the number may as well be the size of one input.
        """
        if self.inputs > 1 and number == self.inputs:
            return True, Measure.INPUTS
        longest = (self.longest_tokens, self.longest_characters, self.longest_bytes)
        if any(_is_near(number, size) for size in longest):
            return True, None
        if _is_near(number, self.tokens):
            return True, Measure.TOKENS
        if _is_near(number, self.bytes):
            return True, Measure.BYTES
        return _is_near(number, self.characters), None


def _is_near(number: int, size: int) -> bool:
    return number <= size * _FACTOR and size <= number * _FACTOR


def measure_call(inputs: Sequence[Input]) -> CallSize:
    """Measure the inputs of a call; images count only towards the tokens."""
    tokens = [estimate_size(item) for item in inputs]
    characters = [sum(map(len, _texts(item))) for item in inputs]
    sizes = [sum(len(text.encode(errors="replace")) for text in _texts(item)) for item in inputs]
    return CallSize(
        inputs=len(inputs),
        tokens=sum(tokens),
        characters=sum(characters),
        bytes=sum(sizes),
        longest_tokens=max(tokens, default=0),
        longest_characters=max(characters, default=0),
        longest_bytes=max(sizes, default=0),
    )


def _texts(item: Input) -> Iterable[str]:
    if isinstance(item, str):
        return (item,)
    return [part.text for part in item if isinstance(part, TextPart)]


def find_size_refusal(message: str, status: int, size: CallSize) -> SizeMatch | None:
    """Return the numbers by which a message refuses a call of this size, or None."""
    text = message[:MOST_SEARCHED]
    if status not in STATUSES:
        return None
    return _find_pair(text, status, size) or _find_range(text, size)


def exceeds_rate_limit(message: str) -> bool | None:
    """Whether one call exceeds a limit per minute: "Limit 1000000, Requested 1026047".

    None if the message does not have this form. If the call does not exceed the limit, the limit
    is used up for now.
    """
    match = _REQUESTED.search(message[:MOST_SEARCHED])
    return None if match is None else int(match[2]) > int(match[1])


def find_exceeded_rate(message: str) -> str:
    """Return the words of a message that say that one call exceeds a limit per minute, or ""."""
    match = _REQUESTED.search(message[:MOST_SEARCHED])
    return match[0] if match and int(match[2]) > int(match[1]) else ""


def _find_pair(text: str, status: int, size: CallSize) -> SizeMatch | None:
    numbers = list(_iter_numbers(text, status))
    for number, start, end in numbers:
        plausible, measure = size.measure(number)
        if not plausible:
            continue
        floor = 1 if measure is Measure.INPUTS else _SMALLEST_LIMIT
        for limit, limit_start, limit_end in numbers:
            if floor <= limit < number:
                pair = text[min(start, limit_start) : max(end, limit_end)]
                return SizeMatch(pair, measure)
    return None


def _iter_numbers(text: str, status: int) -> Iterator[tuple[int, int, int]]:
    """Yield the integers of a message with their start and end; ids and decimals are not."""
    spaced = _FRACTION.sub(_separate, _blank_positions(_ASSIGNED.sub(" ", text)))
    for count, match in enumerate(_NUMBER.finditer(spaced)):
        number = int(_SEPARATORS.sub("", match["number"]))
        is_status = count == 0 and number == status
        if count == MOST_NUMBERS:
            return
        if not is_status:
            yield number, match.start("number"), match.end("number")


def _blank_positions(text: str) -> str:
    return _POSITION.sub(
        lambda match: " " * len(match[0]) if int(match[1]) <= int(match[2]) else match[0], text
    )


def _separate(match: re.Match[str]) -> str:
    """Replace the slash of a fraction above 1: "3/10" is the number of an input."""
    return match[0].replace("/", " ") if int(match[1]) > int(match[2]) else match[0]


def _find_range(text: str, size: CallSize) -> SizeMatch | None:
    match = _RANGE.search(text)
    if match is None:
        return None
    before = text[max(0, match.start() - 60) : match.start()].rpartition(".")[2]
    if not _LENGTH.search(before + match[0]):
        return None
    limit = int(next(number for number in match.groups()[1::2] if number is not None))
    if limit < _SMALLEST_LIMIT or size.longest_tokens * _FACTOR <= limit:
        return None
    return SizeMatch(match[0], None)
