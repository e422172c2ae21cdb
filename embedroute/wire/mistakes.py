"""Turns msgspec's error texts into refusals that name the field and say what it must be."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, cast

import msgspec

from embedroute.errors import InvalidRequest
from embedroute.wire.strict import join, places
from embedroute.wording import LONGEST_ECHO, closest, echo

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


def refusal_of(
    error: Exception, body: bytes, fields: Mapping[str, Sequence[str]], choices: Mapping[str, Sequence[str]]
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
        unit = {"str": " characters", "array": " items"}.get(kind.split(" ")[0], "") if length else ""
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


def _unknown_keys(root: object, path: str, name: str, fields: Mapping[str, Sequence[str]]) -> InvalidRequest:
    """Name at most five unknown keys of the object at ``path``, each with the known one it resembles."""
    unknown = _unknown_at(root, path, fields)
    if not unknown:
        # What looked like a path was the key's own text, or the key is known to another kind of content part.
        at_root = _unknown_at(root, "", fields)
        path, unknown = ("", at_root) if at_root else (path, [name])
    known = [key for key in fields.get(_INDEX.sub("[]", path), ()) if key not in unknown]
    said = ", ".join(f"{echo(join(path, key))}{_hint(key, known)}" for key in unknown[:5])
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    noun, them = ("fields", "them") if len(unknown) > 1 else ("field", "it")
    return InvalidRequest(
        f"Unknown {noun}: {said}{more}. Take {them} out of the body.", param=join(path, unknown[0])[:LONGEST_ECHO]
    )


def _hint(key: str, known: Sequence[str]) -> str:
    meant = closest(key, known)
    return "" if meant is None else f' (did you mean "{meant}"?)'


def _unknown_at(found: object, path: str, fields: Mapping[str, Sequence[str]]) -> list[str]:
    known = fields.get(_INDEX.sub("[]", path), ())
    try:
        for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
            found = cast("list[object]", found)[int(index)] if index else cast("dict[str, object]", found)[name]
    except (KeyError, IndexError, TypeError):
        return []
    held = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    return [key for key in held if key not in known]
