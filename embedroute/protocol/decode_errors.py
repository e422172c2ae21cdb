"""Refuses bodies with duplicate keys or deep nesting, and explains decoding errors.

JSON allows duplicate keys, but parsers resolve them differently, so an API must not accept them.
An explanation names the field that is wrong and says what it must be.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final, NoReturn, cast, get_args

import msgspec

from embedroute.backend import Dtype
from embedroute.errors import InvalidRequest
from embedroute.inputs import ImageURL
from embedroute.protocol.requests import (
    Content,
    CreateEmbeddingRequest,
    Debug,
    MaxPrice,
    Percentiles,
    Preferences,
    Quantization,
    Sort,
    SortKey,
    Truncate,
)
from embedroute.text import LONGEST_ECHO, closest, echo

FIELDS: Final[Mapping[str, Sequence[str]]] = {
    "": CreateEmbeddingRequest.__struct_fields__,
    "provider": Preferences.__struct_fields__,
    "provider.sort": Sort.__struct_fields__,
    "provider.max_price": MaxPrice.__struct_fields__,
    "provider.preferred_max_latency": Percentiles.__struct_fields__,
    "provider.preferred_min_throughput": Percentiles.__struct_fields__,
    "debug": Debug.__struct_fields__,
    **{f"{name}[]": Content.__struct_fields__ for name in ("input", "inputs")},
    **{f"{name}[].content[]": ("type", "text", "image_url") for name in ("input", "inputs")},
    **{f"{name}[].content[].image_url": ImageURL.__struct_fields__ for name in ("input", "inputs")},
}
"""Path of each object in a body → its keys. Array indexes are written as ``[]``."""

CHOICES: Final[Mapping[str, Sequence[str]]] = {
    "encoding_format": ("float", "base64"),
    "provider.sort": get_args(SortKey),
    "provider.sort.by": get_args(SortKey),
    "provider.sort.partition": ("model", "none"),
    "provider.data_collection": ("allow", "deny"),
    "provider.quantizations[]": get_args(Quantization),
    "output_dtype": get_args(Dtype),
    "truncate": get_args(Truncate)[:3],
    "debug.trace_level": ("summary", "full"),
    "input[].content[].type": ("text", "image_url"),
    "inputs[].content[].type": ("text", "image_url"),
}
"""Path of each enumeration in a body → its values."""


DEEPEST = 32
"""Maximum levels of nesting of a body."""

_NOT_BRACKETS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[^][{}"]+', re.DOTALL)


def refuse_duplicate_keys(body: bytes, colons: int, texts: Sequence[str]) -> None:
    """Refuse a body in which an object has a key twice.

    ``colons`` is the number of colons in the body besides those of the top-level fields that are
    set. If ``texts``, strings of the body, contain all of them, there is no duplicate key.
    Otherwise the body is parsed again.
    """
    if "".join(texts).count(":") != colons or b"\\u003" in body:  # an escaped colon
        parse_again(body)


def parse_again(body: bytes, path: str = "") -> None:
    """Parse a body, or the value at ``path`` in it, to refuse duplicate keys and deep nesting."""
    if measure_depth(body) > DEEPEST - bool(path):
        refuse_depth()
    duplicates: list[_DuplicateKey] = []

    def make_object(pairs: list[tuple[str, object]]) -> object:
        members = dict(pairs)
        if len(members) == len(pairs):
            return members
        duplicate = _DuplicateKey(Counter(name for name, _ in pairs).most_common(1)[0][0])
        duplicates.append(duplicate)
        return duplicate

    try:
        root = json.loads(
            body.decode(),
            object_pairs_hook=make_object,
            parse_int=str,
            parse_float=str,
            parse_constant=str,
        )
    except ValueError as error:
        # Ignored fields were skipped before, not parsed.
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if duplicates:
        param = next(
            join(place, value)
            for place, value in iter_values(root, path)
            if isinstance(value, _DuplicateKey)
        )[:LONGEST_ECHO]
        raise InvalidRequest(
            f"Duplicate key {echo(param)} in an object. Send it once.", param=param
        )


def measure_depth(body: bytes) -> int:
    """Return how many levels deep a body is nested; 0 if it has too few brackets to matter."""
    if body.count(b"[") + body.count(b"{") <= DEEPEST:
        return 0
    return max(
        accumulate(1 if bracket in b"[{" else -1 for bracket in _NOT_BRACKETS.sub(b"", body)),
        default=0,
    )


class _DuplicateKey(str):
    """Takes the place of an object that has this key twice."""

    __slots__ = ()


def iter_values(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield each value of a parsed body with its path, outer values first."""
    yield path, value
    if isinstance(value, dict):
        members = cast("dict[str, object]", value)
        for name, member in members.items():
            yield from iter_values(member, join(path, name))
    elif isinstance(value, list):
        items = cast("list[object]", value)
        for index, item in enumerate(items):
            yield from iter_values(item, f"{path}[{index}]")


def join(path: str, name: str) -> str:
    """Return the path of a key of the object at ``path``."""
    return f"{path}.{name}" if path else name


def refuse_depth() -> NoReturn:
    """Raise the error for a body with too many levels of nesting."""
    raise InvalidRequest(f"The body is nested deeper than {DEEPEST} levels.")


_PATH_MARK = " - at `"
_PATH = re.compile(r"(?:key in )?\$\.?(?P<path>[\w.\[\]]*)`")
_INDEX = re.compile(r"\[\d+\]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_TYPES = re.compile(r"Expected `(.+)`, got `(.+)`")
_BOUND = re.compile(r"Expected `(.+?)` (of length )?(>=|<=) (\d+)")

WORDS: Final[Mapping[str, str]] = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
    "null": "null",
}

EXAMINED: Final = 1 << 16
"""Maximum bytes of a body that is parsed a second time for a more exact error message."""


def explain_error(
    error: Exception,
    body: bytes,
    fields: Mapping[str, Sequence[str]],
    choices: Mapping[str, Sequence[str]],
) -> InvalidRequest:
    """Make the error for the client from an error of the decoder.

    ``fields`` maps the path of each object that forbids unknown keys to its keys; the path of the
    root is "". ``choices`` maps the path of each enumeration to its values. Array indexes are
    written as ``[]`` in both.
    """
    if not isinstance(error, msgspec.ValidationError):
        return _explain_syntax_error(error, body)
    problem, path = _split_path(str(error))
    if unknown := _UNKNOWN.match(problem):
        # Of a large body only the first unknown key is named.
        root = json.loads(body, parse_int=str) if len(body) <= EXAMINED else None
        return _unknown_keys(root, path, unknown[1], fields)
    if missing := _MISSING.match(problem):
        return _refuse(join(path, missing[1]), "is required.")
    if not path:
        return InvalidRequest("The body must be a JSON object.")
    return _refuse(path, _describe(problem, choices.get(_INDEX.sub("[]", path), ())))


def _split_path(message: str) -> tuple[str, str]:
    """Split msgspec's message into the problem and the path at its end."""
    problem, _, place = message.rpartition(_PATH_MARK)
    match = _PATH.fullmatch(place) if problem else None
    return (problem, match["path"]) if match else (message, "")


def broken_string(error: Exception, quoted: bytes, param: str | None) -> InvalidRequest:
    """Make the error for an invalid string at ``param``; ``quoted`` is the invalid piece of it."""
    try:
        surrogate = isinstance(error, msgspec.MsgspecError) and _SURROGATE.search(
            json.loads(quoted)
        )
    except ValueError:
        surrogate = None
    if surrogate and param is not None:
        return _refuse(param, "contains half of a surrogate pair. Send complete characters.")
    if _is_not_utf8(error):
        return InvalidRequest("The body is not valid JSON: it is not UTF-8.")
    return InvalidRequest("The body is not valid JSON: a string is malformed.", param=param)


def _is_not_utf8(error: Exception) -> bool:
    """Return whether a body was refused for its encoding: msgspec 0.23 has no class for that."""
    return isinstance(error, UnicodeDecodeError) or "UTF-8" in str(error)


def _explain_syntax_error(error: Exception, body: bytes) -> InvalidRequest:
    if _is_not_utf8(error):
        return InvalidRequest("The body is not valid JSON: it is not UTF-8.")
    if not body.strip():
        return InvalidRequest("The body is empty. Send a JSON object.")
    if param := _lone_surrogate(body):
        return _refuse(param, "contains half of a surrogate pair. Send complete characters.")
    return InvalidRequest(f"The body is not valid JSON: {error}.")


def _lone_surrogate(body: bytes) -> str | None:
    """Return the path of a string with half a surrogate pair, or None.

    msgspec reports such a string as malformed or truncated.
    """
    if rb"\u" not in body or len(body) > EXAMINED:
        return None
    try:
        values = list(iter_values(json.loads(body, parse_int=str)))
    except (ValueError, RecursionError):
        return None
    paths = (path for path, value in values if isinstance(value, str) and _SURROGATE.search(value))
    # A path that contains such a half cannot be encoded in a response.
    return next((path for path in paths if not _SURROGATE.search(path)), None)


_OTHERS: Final = {
    "out of range": "is out of range.",
    "multiple of": "must be a whole number.",
}
"""Part of a problem that msgspec reports → what the field must be."""


def _describe(problem: str, choices: Sequence[str]) -> str:
    """Return what a field must be, given the problem that msgspec reports."""
    if bound := _BOUND.match(problem):
        kind, length, side, limit = bound.groups()
        if length and (side, limit) == (">=", "1"):
            return "must not be empty."
        units = {"str": " characters long", "array": " items long"}
        unit = units.get(kind.split(" ")[0], "") if length else ""
        comparison = "at least" if side == ">=" else "at most"
        return f"must be {comparison} {limit.removesuffix('.0')}{unit}."
    if types := _TYPES.match(problem):
        return f"must be {_list_types(types[1])}, not {WORDS.get(types[2], types[2])}."
    if problem.startswith("Expected `str` matching"):
        return "must be a plain decimal number."
    if choices:
        return f"must be one of {', '.join(choices)}."
    return next((words for mark, words in _OTHERS.items() if mark in problem), "is not valid.")


def _list_types(types: str) -> str:
    """Write a union of msgspec's types, such as "a string, an object or an array"."""
    names = [name for name in types.split(" | ") if name != "null"]
    if "float" in names and "int" in names:
        names.remove("int")
    words = [WORDS.get(name, name) for name in names]
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _refuse(param: str, demand: str) -> InvalidRequest:
    param = param[:LONGEST_ECHO]
    return InvalidRequest(f"{echo(param)} {demand}", param=param)


def read_members(body: bytes, other_fields: Collection[str]) -> Mapping[str, msgspec.Raw]:
    """Return the members of a valid body.

    Raises:
        InvalidRequest: there are other fields than known ones and ``other_fields``.
    """
    fields = {"": (*FIELDS[""], *other_fields)}
    present = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    known = {*fields[""]}
    if any(name not in known for name in present):
        raise unknown_keys(present, "", fields)
    return present


def unknown_keys(root: object, path: str, fields: Mapping[str, Sequence[str]]) -> InvalidRequest:
    """Make the error for unknown keys of the object at ``path`` in ``root``."""
    return _unknown_keys(root, path, _unknown_at(root, path, fields)[0], fields)


def _unknown_keys(
    root: object, path: str, name: str, fields: Mapping[str, Sequence[str]]
) -> InvalidRequest:
    """Name at most five unknown keys of the object at ``path``, each with a similar known key."""
    unknown = _unknown_at(root, path, fields)
    if not unknown:
        # The apparent path was part of the key, or another kind of content part has this key.
        at_root = _unknown_at(root, "", fields)
        path, unknown = ("", at_root) if at_root else (path, [name])
    known = [key for key in fields.get(_INDEX.sub("[]", path), ()) if key not in unknown]
    names = ", ".join(f"{echo(join(path, key))}{_suggestion(key, known)}" for key in unknown[:5])
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    advice = "Remove or rename it."
    noun = "field"
    if len(unknown) > 1:
        advice = "Remove or rename them."
        noun = "fields"
    return InvalidRequest(
        f"Unknown {noun}: {names}{more}. {advice}",
        param=join(path, unknown[0])[:LONGEST_ECHO],
    )


def _suggestion(key: str, known: Sequence[str]) -> str:
    similar = closest(key, known)
    return "" if similar is None else f' (did you mean "{similar}"?)'


def _unknown_at(value: object, path: str, fields: Mapping[str, Sequence[str]]) -> list[str]:
    """List the unknown keys of the object at ``path`` in the root ``value``."""
    known = fields.get(_INDEX.sub("[]", path), ())
    try:
        for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
            if index:
                value = cast("list[object]", value)[int(index)]
            else:
                value = cast("dict[str, object]", value)[name]
    except (KeyError, IndexError, TypeError):
        return []
    if not isinstance(value, dict):
        return []
    return [key for key in cast("dict[str, object]", value) if key not in known]
