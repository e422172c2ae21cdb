"""Describes the types of options in the words of a config.

An operator reads ``deadline must be a number of seconds; got "30s"``, and not the words of the
library that converts the values.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from types import UnionType
from typing import Annotated, Final, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from embedroute.backend import Secret

LONGEST_VALUE: Final = 40
"""Maximum characters of an operator's text that a mistake quotes."""

_NOUNS: Final[Mapping[object, tuple[str, str]]] = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    Secret: ("a string: env:NAME, file:PATH or the secret itself", "strings"),
    object: ("a value", "values"),
}


_KINDS: Final[Sequence[tuple[type, str]]] = (
    (str, "a string"),
    (int, "a number"),
    (float, "a number"),
    (date, "a date or a time"),
    (time, "a date or a time"),
    (Mapping, "a table"),
    (Sequence, "a list"),
)
"""What a value is called; the first row of its type counts."""


class _Member(NamedTuple):
    """One type of a union, without ``Annotated``, and its constraints."""

    type: object
    metas: tuple[Meta, ...]


def expected(type_: object, *, with_limits: bool) -> str:
    """Describe a type: ``one of "keys", "open", "host"`` or ``a number of seconds``.

    ``with_limits`` adds what a value of the right kind must meet: ``greater than 0``.
    """
    return _or([_noun(member, with_limits) for member in _described(type_)])


def shown(value: object, type_: object) -> str:
    """Return ``value`` as TOML shows it if it is short; never one that may be a secret."""
    type_name = type(value).__name__
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float) and not has_secret(type_):
        text = _quoted(value) if isinstance(value, str) else str(value)
        if len(text) <= LONGEST_VALUE + len('""'):
            return text
    if isinstance(value, Sequence) and not value and not isinstance(value, str):
        return "an empty list"
    kinds = (name for kind, name in _KINDS if isinstance(value, kind))
    return next(kinds, f"a value of the type {type_name}")


def members(type_: object) -> Iterator[object]:
    """Yield the types of a union, or the type itself; ``Annotated`` is removed."""
    return (member.type for member in _members(type_))


def has_secret(type_: object) -> bool:
    """Return whether a value of this type may be a secret or contain one."""
    return any(
        member is Secret or any(map(has_secret, _arguments(member))) for member in members(type_)
    )


def at_step(type_: object, step: str) -> object | None:
    """Return the type of an item of a value, or None if it is not known.

    ``step`` is the name of a field or of a key, or the index in a list.
    """
    for member in members(type_):
        origin = get_origin(member)
        arguments = _arguments(member)
        if isinstance(member, type) and issubclass(member, msgspec.Struct):
            fields = {field.encode_name: field.type for field in msgspec.structs.fields(member)}
            if step in fields:
                return fields[step]
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            return arguments[1]
        elif step.isdigit() and arguments:
            return arguments[min(int(step), len(arguments) - 1)]
    return None


def _members(type_: object, metas: tuple[Meta, ...] = ()) -> Iterator[_Member]:
    origin = get_origin(type_)
    arguments = get_args(type_)
    if origin is Annotated:
        own = tuple(item for item in arguments[1:] if isinstance(item, Meta))
        yield from _members(arguments[0], (*metas, *own))
    elif origin in (Union, UnionType):
        for argument in arguments:
            yield from _members(argument, metas)
    else:
        yield _Member(type_, metas)


def _described(type_: object) -> list[_Member]:
    """List the members that a config can express; ``float`` includes ``int``, TOML has no null."""
    found = [member for member in _members(type_) if member.type is not type(None)]
    has_float = any(member.type is float for member in found)
    return [member for member in found if not (has_float and member.type is int)]


def _arguments(type_: object) -> list[object]:
    return [argument for argument in get_args(type_) if argument is not ...]


def _noun(member: _Member, with_limits: bool) -> str:  # noqa: FBT001 - from `expected`
    noun, _ = _nouns(member)
    examples = [example for meta in member.metas for example in meta.examples or ()]
    if examples:
        return f"{noun} such as {_quoted(str(examples[0]))}"
    return f"{noun}{_limits(member.metas)}" if with_limits else noun


def _nouns(member: _Member) -> tuple[str, str]:
    """Return the words for one value of the type, and for several."""
    if member.type in _NOUNS:
        one, many = _NOUNS[member.type]
        unit = next((meta.extra["unit"] for meta in member.metas if meta.extra), None)
        return (f"{one} of {unit}", f"{many} of {unit}") if unit else (one, many)
    origin = get_origin(member.type)
    if origin is Literal:
        words = [_quoted(str(word)) for word in get_args(member.type)]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}", ", ".join(words)
    if _is_table(origin or member.type):
        items = _items(member.type)
        return f"a table{items}", f"tables{items}"
    if isinstance(origin, type):
        items = _items(member.type)
        return f"a list{items}", f"lists{items}"
    name = getattr(member.type, "__name__", str(member.type))
    return f"a value of the type {name}", f"values of the type {name}"


def _is_table(type_: object) -> bool:
    return isinstance(type_, type) and issubclass(type_, (msgspec.Struct, Mapping))


def _items(type_: object) -> str:
    """Return `` of strings`` for the items of a list or the values of a table, if they have a type.

    A tuple may have items of several types.
    """
    arguments = _arguments(type_)
    types = arguments[1:] if _is_table(get_origin(type_)) else arguments
    nouns = dict.fromkeys(_nouns(member)[1] for item in types for member in _described(item))
    if not nouns or "values" in nouns:
        return ""
    return f" of {_or(nouns)}"


_LIMITS: Final = (
    (("min_length", "max_length"), " of {} to {} characters"),
    (("min_length",), " that is not empty"),
    (("ge", "le"), " from {} to {}"),
    (("gt", "le"), " greater than {} and at most {}"),
    (("gt",), " greater than {}"),
    (("ge",), " that is at least {}"),
)
"""Constraints, and the words for them; the first row whose constraints are all set counts."""


def _limits(metas: Iterable[Meta]) -> str:
    limits = {
        name: limit
        for meta in metas
        for name in ("gt", "ge", "le", "min_length", "max_length")
        if (limit := getattr(meta, name)) is not None
    }
    words = (
        template.format(*(limits[name] for name in names))
        for names, template in _LIMITS
        if limits.keys() >= {*names}
    )
    return next(words, "")


def _or(words: Iterable[str]) -> str:
    *others, last = dict.fromkeys(words)
    return f"{', '.join(others)} or {last}" if others else last


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
