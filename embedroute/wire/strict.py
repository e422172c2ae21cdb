"""What JSON allows and an API must not: duplicate keys, which parsers resolve in different ways."""

import json
from collections.abc import Sequence
from typing import NoReturn

import msgspec

from embedroute.errors import InvalidRequest, echo

DEEPEST = 32
"""Levels of nesting that a body may have."""


def refuse_duplicate_keys(body: bytes, request: msgspec.Struct, texts: Sequence[str]) -> None:
    """Refuse a body in which any object names a key twice.

    ``request`` is what the body decoded to and ``texts`` are its string values. Each member of an object has
    one colon outside strings, so if the body's colons are those of the set fields and of the texts, nothing
    was said twice; only a body where that sum does not come out is parsed again, key by key.
    """
    values = [value for name in request.__struct_fields__ if (value := getattr(request, name)) is not None]
    if all(isinstance(value, str | int | list) for value in values) and b"\\u003" not in body:
        expected = len(values) + sum(text.count(":") for text in texts)
        if body.count(b":") == expected:
            return
    _parse_again(body)


def _parse_again(body: bytes) -> None:
    try:
        json.loads(body, object_pairs_hook=_unique, parse_int=str, parse_float=str, parse_constant=str)
    except RecursionError:
        refuse_depth()


def refuse_depth() -> NoReturn:
    """Say how deep a body may be nested."""
    raise InvalidRequest(f"The body is nested deeper than {DEEPEST} levels.")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"The key {echo(twice)} stands twice in one object.", param=twice[:128])
    return unique
