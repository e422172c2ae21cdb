"""The fields of a body by path, for answers that name the one at fault: the keys of each object, the words of each choice.

What JSON allows and an API must not: duplicate keys, which parsers resolve in different ways, and depth.

Turns msgspec's error texts into refusals that name the field and say what it must be.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final, NoReturn, cast, get_args

import msgspec

from embedroute.errors import InvalidRequest
from embedroute.inputs import ImageURL
from embedroute.protocol.requests import (
    Content,
    CreateEmbeddingRequest,
    Debug,
    Dtype,
    EmbeddingOptions,
    GoogleOptions,
    GoogleTask,
    MaxPrice,
    MistralOptions,
    Percentiles,
    Preferences,
    Quantization,
    Sort,
    SortKey,
)
from embedroute.text import LONGEST_ECHO, closest, echo

FIELDS: Final = {
    "": CreateEmbeddingRequest.__struct_fields__,
    "provider": Preferences.__struct_fields__,
    "provider.sort": Sort.__struct_fields__,
    "provider.max_price": MaxPrice.__struct_fields__,
    "provider.preferred_max_latency": Percentiles.__struct_fields__,
    "provider.preferred_min_throughput": Percentiles.__struct_fields__,
    "embedding_options": EmbeddingOptions.__struct_fields__,
    "embedding_options.google": GoogleOptions.__struct_fields__,
    "embedding_options.mistral": MistralOptions.__struct_fields__,
    "debug": Debug.__struct_fields__,
    **{f"{name}[]": Content.__struct_fields__ for name in ("input", "inputs")},
    **{f"{name}[].content[]": ("type", "text", "image_url") for name in ("input", "inputs")},
    **{f"{name}[].content[].image_url": ImageURL.__struct_fields__ for name in ("input", "inputs")},
}
"""The objects of a body, by path, with the keys that each has; array indexes stand as ``[]``."""

CHOICES: Final = {
    "encoding_format": ("float", "base64"),
    "provider.sort": get_args(SortKey),
    "provider.sort.by": get_args(SortKey),
    "provider.sort.partition": ("model", "none"),
    "provider.data_collection": ("allow", "deny"),
    "provider.quantizations[]": get_args(Quantization),
    "embedding_options.google.task_type": get_args(GoogleTask),
    "embedding_options.mistral.output_dtype": get_args(Dtype),
    "debug.trace_level": ("summary", "full"),
    "input[].content[].type": ("text", "image_url"),
    "inputs[].content[].type": ("text", "image_url"),
}
"""The enumerations of a body, by path, with their values."""


DEEPEST = 32
"""Levels of nesting that a body may have."""

_FLAT: Final = frozenset({str, int, list})
_NOT_BRACKETS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[^][{}"]+', re.DOTALL)


def refuse_duplicate_keys(
    body: bytes, request: msgspec.Struct, texts: Sequence[str] | None
) -> None:
    """Refuse a body in which any object names a key twice.

    ``request`` is what the body decoded to and ``texts`` are its string values, None if an input is an object.
    Each member of an object has one colon outside strings, so if the body's colons are those of the set fields
    and of the texts, nothing was said twice; only a body where that sum does not come out is parsed again.
    """
    values = [value for value in msgspec.structs.astuple(request) if value is not None]
    if texts is not None and _FLAT.issuperset(map(type, values)) and b"\\u003" not in body:
        expected = len(values) + "".join(texts).count(":")
        if body.count(b":") == expected:
            return
    parse_again(body)


def parse_again(body: bytes, place: str = "") -> None:
    """Parse a body, or the value at a ``place`` of one, so that duplicate keys and depth come out."""
    if measure_depth(body) > DEEPEST - bool(place):
        refuse_depth()
    twice: list[_Twice] = []

    def unique(pairs: list[tuple[str, object]]) -> object:
        held = dict(pairs)
        if len(held) == len(pairs):
            return held
        twice.append(_Twice(Counter(name for name, _ in pairs).most_common(1)[0][0]))
        return twice[-1]

    try:
        root = json.loads(
            body.decode(),
            object_pairs_hook=unique,
            parse_int=str,
            parse_float=str,
            parse_constant=str,
        )
    except ValueError as error:
        # Fields that are ignored were only skipped so far.
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if twice:
        param = next(
            join(path, node) for path, node in places(root, place) if isinstance(node, _Twice)
        )[:LONGEST_ECHO]
        raise InvalidRequest(
            f"The key {echo(param)} stands twice in one object; send it once.", param=param
        )


def measure_depth(body: bytes) -> int:
    """Return how many levels deep a body is nested; 0 if it has too few brackets to matter."""
    if body.count(b"[") + body.count(b"{") <= DEEPEST:
        return 0
    return max(
        accumulate(1 if bracket in b"[{" else -1 for bracket in _NOT_BRACKETS.sub(b"", body)),
        default=0,
    )


class _Twice(str):
    """Stands in a parsed body where an object named this key twice."""

    __slots__ = ()


def places(node: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every value of a parsed body, outer ones first, each with its path as ``param`` writes it."""
    yield path, node
    if isinstance(node, dict):
        members = cast("dict[str, object]", node)
        for name, value in members.items():
            yield from places(value, join(path, name))
    elif isinstance(node, list):
        items = cast("list[object]", node)
        for index, value in enumerate(items):
            yield from places(value, f"{path}[{index}]")


def join(path: str, name: str) -> str:
    """Write the path of a key of the object at ``path``."""
    return f"{path}.{name}" if path else name


def refuse_depth() -> NoReturn:
    """Say how deep a body may be nested."""
    raise InvalidRequest(f"The body is nested deeper than {DEEPEST} levels; send it flatter.")


_PLACE = " - at `"
_PATH = re.compile(r"(?:key in )?\$\.?(?P<path>[\w.\[\]]*)`")
_INDEX = re.compile(r"\[\d+\]")
_HALF = re.compile("[\ud800-\udfff]")
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
"""Bytes of a body that is parsed a second time to say more exactly what is wrong with it."""


def explain_error(
    error: Exception,
    body: bytes,
    fields: Mapping[str, Sequence[str]],
    choices: Mapping[str, Sequence[str]],
) -> InvalidRequest:
    """Word a decoding error for the client.

    ``fields`` maps the path of an object that forbids unknown keys to the keys it has; the root's path is "".
    ``choices`` maps the path of an enumeration to its values. Array indexes stand as ``[]`` in both.
    """
    if not isinstance(error, msgspec.ValidationError):
        return _syntax(error, body)
    what, path = _split(str(error))
    if unknown := _UNKNOWN.match(what):
        # A large body is not parsed again for the sake of a longer list.
        root = json.loads(body, parse_int=str) if len(body) <= EXAMINED else None
        return _unknown_keys(root, path, unknown[1], fields)
    if missing := _MISSING.match(what):
        return _refuse(join(path, missing[1]), "is required.")
    if not path:
        return InvalidRequest("The body must be a JSON object.")
    return _refuse(path, _demand(what, choices.get(_INDEX.sub("[]", path), ())))


def _split(text: str) -> tuple[str, str]:
    """Split an error text into what is wrong and the path at its end."""
    what, _, place = text.rpartition(_PLACE)
    found = _PATH.fullmatch(place) if what else None
    return (what, found["path"]) if found else (text, "")


def broken_string(error: Exception, quoted: bytes, param: str | None) -> InvalidRequest:
    """Say what is wrong with a string at ``param``, of which ``quoted`` is a piece."""
    try:
        half = isinstance(error, msgspec.MsgspecError) and _HALF.search(json.loads(quoted))
    except ValueError:
        half = None
    if half and param is not None:
        return _refuse(param, "holds half of a surrogate pair; send whole characters.")
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest("The body is not valid JSON: it is not UTF-8.")
    return InvalidRequest("The body is not valid JSON: a string of it is malformed.", param=param)


def _syntax(error: Exception, body: bytes) -> InvalidRequest:
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest("The body is not valid JSON: it is not UTF-8.")
    if not body.strip():
        return InvalidRequest("The body is empty; send a JSON object.")
    if param := _lone_surrogate(body):
        return _refuse(param, "holds half of a surrogate pair; send whole characters.")
    return InvalidRequest(f"The body is not valid JSON: {error}.")


def _lone_surrogate(body: bytes) -> str | None:
    """Find the text with half a surrogate pair, which msgspec reports as malformed or as cut short."""
    if rb"\u" not in body or len(body) > EXAMINED:
        return None
    try:
        held = list(places(json.loads(body, parse_int=str)))
    except (ValueError, RecursionError):
        return None
    # A key that holds such a half cannot be named in an answer.
    broken = (path for path, value in held if isinstance(value, str) and _HALF.search(value))
    return next((path for path in broken if not _HALF.search(path)), None)


def _demand(what: str, choices: Sequence[str]) -> str:
    if bound := _BOUND.match(what):
        kind, length, side, limit = bound.groups()
        if length and (side, limit) == (">=", "1"):
            return "must not be empty."
        unit = (
            {"str": " characters", "array": " items"}.get(kind.split(" ")[0], "") if length else ""
        )
        return f"must be {'at least' if side == '>=' else 'at most'} {limit}{unit}{' long' if unit else ''}."
    if types := _TYPES.match(what):
        return f"must be {_listed(types[1])}, not {WORDS.get(types[2], types[2])}."
    if what.startswith(("Invalid enum value", "Invalid value")):
        return f"must be one of {', '.join(choices)}."
    if what.startswith("Expected `str` matching"):
        return "must be a plain decimal number."
    return "is out of range." if "out of range" in what else "is not valid."


def _listed(types: str) -> str:
    wanted = [word for word in types.split(" | ") if word != "null"]
    if "float" in wanted and "int" in wanted:
        wanted.remove("int")
    return " or ".join(WORDS.get(word, word) for word in wanted)


def _refuse(param: str, text: str) -> InvalidRequest:
    param = param[:LONGEST_ECHO]
    return InvalidRequest(f"{echo(param)} {text}", param=param)


def _unknown_keys(
    root: object, path: str, name: str, fields: Mapping[str, Sequence[str]]
) -> InvalidRequest:
    """Name at most five unknown keys of the object at ``path``, each with the known one it resembles."""
    unknown = _unknown_at(root, path, fields)
    if not unknown:
        # What looked like a path was the key's own text, or the key is known to another kind of content part.
        at_root = _unknown_at(root, "", fields)
        path, unknown = ("", at_root) if at_root else (path, [name])
    known = [key for key in fields.get(_INDEX.sub("[]", path), ()) if key not in unknown]
    said = ", ".join(f"{echo(join(path, key))}{_suggestion(key, known)}" for key in unknown[:5])
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    noun, them = ("fields", "them") if len(unknown) > 1 else ("field", "it")
    return InvalidRequest(
        f"Unknown {noun}: {said}{more}. Take {them} out of the body.",
        param=join(path, unknown[0])[:LONGEST_ECHO],
    )


def _suggestion(key: str, known: Sequence[str]) -> str:
    meant = closest(key, known)
    return "" if meant is None else f' (did you mean "{meant}"?)'


def _unknown_at(found: object, path: str, fields: Mapping[str, Sequence[str]]) -> list[str]:
    known = fields.get(_INDEX.sub("[]", path), ())
    try:
        for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
            found = (
                cast("list[object]", found)[int(index)]
                if index
                else cast("dict[str, object]", found)[name]
            )
    except (KeyError, IndexError, TypeError):
        return []
    held = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    return [key for key in held if key not in known]
