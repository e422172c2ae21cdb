"""Reads the body of an error response: its message, its fields, and whether it is a web page.

The formats are OpenAI's, Google's, FastAPI's, flat and nested objects, and plain text. Some
gateways put the whole JSON body of their own upstream into a message; the innermost message is
used then.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final, cast

import msgspec

MOST_READ: Final = 20_000
"""Maximum characters of a response body that are searched."""

CODES: Final = frozenset(
    {"code", "type", "error_type", "reason", "status", "quotaId", "error_code", "status_code"}
)
"""Fields of an error body that hold codes."""
MESSAGES: Final = (
    *("error", "message", "detail", "errors", "msg"),
    *("error_msg", "base_resp", "status_msg"),  # Baidu, MiniMax
)
"""Fields of an error body that hold the message, outermost first."""
ECHOES: Final = frozenset(
    {"input", "inputs", "texts", "loc", "ctx", "flagged_input", "patterns"},
)
"""Fields that repeat what the client sent; they are not searched."""

_PAGE: Final = re.compile(
    r"\s*(<!--.{0,1000}?-->\s*)?<(!doctype|html|\?xml)\b", re.IGNORECASE | re.DOTALL
)
_NO_WORDS: Final = frozenset({"none", "null"})
"""Values that LiteLLM writes in place of a missing message."""
_DEPTH: Final = 8


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """An error body. ``fields`` are the names and texts of its strings and numbers.

    ``document`` is the decoded JSON, or the text of a body that is not JSON. ``message`` is empty
    for a web page.
    """

    document: object
    message: str
    fields: tuple[tuple[str, str], ...]

    @property
    def codes(self) -> list[str]:
        """The values of the fields that hold codes."""
        return [text for name, text in self.fields if name in CODES]

    @property
    def texts(self) -> list[str]:
        """The message, and all other texts in fields that hold messages."""
        others = [text for name, text in self.fields if name in MESSAGES and text != self.message]
        return [text for text in (self.message, *others) if not _PAGE.match(text)]


def parse_body(content: bytes) -> ErrorBody:
    """Parse a body as JSON, or decode it as text."""
    try:
        document = cast("object", msgspec.json.decode(content[:1_000_000]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        document = content[:MOST_READ].decode(errors="replace").strip()
    fields = () if isinstance(document, str) else tuple(_limit(MOST_READ, _iter_fields(document)))
    return ErrorBody(document=document, message=_find_message(document), fields=fields)


def _iter_fields(body: object, field: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, str]]:
    """Yield the field name and text of each string and number, except those of ``ECHOES``."""
    if isinstance(body, str | int | float):
        yield field, str(body)
    elif depth and isinstance(body, dict):
        for name, value in cast("dict[str, object]", body).items():
            if name not in ECHOES:
                yield from _iter_fields(value, name, depth - 1)
    elif depth and isinstance(body, list):
        for item in cast("list[object]", body):
            yield from _iter_fields(item, field, depth - 1)


def _limit(characters: int, fields: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for name, text in fields:
        yield name, text[:characters]
        characters -= len(text) + 1
        if characters <= 0:
            return


def _find_message(body: object, depth: int = _DEPTH) -> str:
    if not depth:
        return ""
    if isinstance(body, str):
        inner = _inner_document(body)
        if inner is not None and (message := _find_message(inner, depth - 1)):
            return message
        return "" if _PAGE.match(body) else body[:MOST_READ]
    if isinstance(body, dict):
        fields = cast("dict[str, object]", body)
        inner = next((fields[name] for name in MESSAGES if _is_set(fields.get(name))), None)
        return _find_message(inner, depth - 1)
    if isinstance(body, list):
        return _find_message(next(iter(cast("list[object]", body)), None), depth - 1)
    return ""


def _is_set(value: object) -> bool:
    if isinstance(value, str):
        return bool(value) and value.lower() not in _NO_WORDS
    return isinstance(value, dict | list) and bool(cast("object", value))


def _inner_document(text: str) -> dict[str, object] | None:
    """Return the JSON object that a message ends with, or None."""
    start = text.find("{")
    if start < 0 or not text.rstrip().endswith("}"):
        return None
    try:
        return msgspec.json.decode(text[start:].strip(), type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError):
        return None
