"""Parses TOML, and says where it is not valid and which rule is often missed there."""

import re
import tomllib
from typing import Final

from embedroute.errors import ConfigError

_PLACE: Final = re.compile(r" \(at (?:(line \d+, column \d+)|end of document)\)$")
_NAMES: Final = (
    'Write a name in quotes if it contains other characters than letters, digits, "-" and "_": '
    '[models."BAAI/bge-m3"].'
)
_ADVICE: Final = (
    ("Expected ']' at the end of a table declaration", _NAMES),
    ("Invalid initial character for a key part", _NAMES),
    ("Expected '=' after a key", 'Write one option a line: auth = "keys".'),
    ("Invalid value", 'Write text in quotes: auth = "keys".'),
    ("Expected newline or end of document", "Write text in quotes, and one option a line."),
    ("Cannot declare", "Write each table once, with all of its options."),
    ("Cannot overwrite a value", "Write each option once."),
)
"""How a parser's message begins, and the rule of TOML behind it."""


def parse_toml(text: str, file: str) -> dict[str, object]:
    """Parse the text of a config; ``file`` is its path, or "" for text from elsewhere.

    Raises:
        ConfigError: the text is not valid TOML; the message has the file, the line and the column.
    """
    document = _parse(text)
    if isinstance(document, str):
        # Not raised in an except clause: the TOMLDecodeError would refer to the text and its keys.
        name = f"The config {file}".rstrip()
        raise ConfigError([f"{name} is not valid TOML: {_describe(document)}"])
    return document


def _parse(text: str) -> dict[str, object] | str:
    """Parse TOML; return the message of a syntax error as a string."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return str(error)


def _describe(message: str) -> str:
    """Move the place to the start of the message, and add the rule that it refers to."""
    place = _PLACE.search(message)
    reason = message[: place.start()] if place else message
    where = f"{(place and place[1]) or 'at the end'}: "
    advice = next((advice for start, advice in _ADVICE if reason.startswith(start)), "")
    return f"{where}{reason}. {advice}".rstrip()
