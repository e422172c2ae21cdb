"""Reads the body of an error response: its message, its fields, and whether it is a web page.

The formats are OpenAI's, Google's, FastAPI's, flat and nested objects, and plain text. Some
gateways put the whole JSON body of their own upstream into a message; the innermost message is
used then.
"""

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Final, cast

import msgspec

MOST_DECODED: Final = 1_000_000
"""Maximum bytes of a response body that are decoded."""
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
_SENTENCE: Final = re.compile(r"\A(?!\s*<).*?[^\W\d_]{2}\s+\S", re.DOTALL)
_NO_WORDS: Final = frozenset({"none", "null"})
"""Values that LiteLLM writes in place of a missing message."""
_DEPTH: Final = 8

_CHARSET: Final = re.compile(
    r"charset\s*=\s*[\"']?((?:utf|iso|windows|cp|gb|big5|euc|shift|koi8|latin|us-ascii)[\w-]*)",
    re.IGNORECASE,
)
"""A charset in a content type. Python has other codecs, which are not for texts."""
_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """An error body. ``fields`` are the names and texts of its strings and numbers.

    ``document`` is the decoded JSON, or the text of a body that is not JSON. ``message`` is empty
    for a web page, and for JSON without a sentence.
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


def parse_body(content: bytes, content_type: str = "") -> ErrorBody:
    """Parse a body as JSON, or decode it as text.

    JSON is UTF-8. Some servers send it, or a text, in the charset of their ``content_type``.
    """
    content = content[:MOST_DECODED]
    document = _decode_json(content)
    if document is msgspec.UNSET:
        text = _decode_text(content, content_type)
        document = _decode_json(text)
        if document is msgspec.UNSET:
            document = text[:MOST_READ].strip()
    fields = () if isinstance(document, str) else tuple(_limit(MOST_READ, _iter_fields(document)))
    message = _find_message(document) or _find_sentence(fields)
    return ErrorBody(document=document, message=message, fields=fields)


def _find_sentence(fields: Sequence[tuple[str, str]]) -> str:
    """Return the first text of several words, for an API that names its message otherwise."""
    sentences = [(name in CODES, text) for name, text in fields if _SENTENCE.search(text)]
    return min(sentences, key=itemgetter(0))[1] if sentences else ""


def _decode_json(content: bytes | str) -> object:
    """Return the document, or UNSET if the content is not JSON."""
    try:
        return cast("object", msgspec.json.decode(content))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.UNSET


def _decode_text(content: bytes, content_type: str) -> str:
    """Decode a text by its byte order mark, else by its charset, else as UTF-8."""
    declared = _CHARSET.search(content_type)
    charset = declared[1] if declared else "utf-8"
    charset = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), charset)
    try:
        return content.decode(charset, errors="replace")
    except LookupError:
        return content.decode(errors="replace")


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
