"""What JSON allows and an API must not: duplicate keys, which parsers resolve in different ways, and depth."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, NoReturn, cast

import msgspec

from embedroute.errors import InvalidRequest
from embedroute.wording import LONGEST_ECHO, echo

DEEPEST = 32
"""Levels of nesting that a body may have."""

_FLAT: Final = frozenset({str, int, list})
_NOT_BRACKETS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[^][{}"]+', re.DOTALL)


def refuse_duplicate_keys(body: bytes, request: msgspec.Struct, texts: Sequence[str] | None) -> None:
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
    if _depth(body) > DEEPEST - bool(place):
        refuse_depth()
    twice: list[_Twice] = []

    def unique(pairs: list[tuple[str, object]]) -> object:
        held = dict(pairs)
        if len(held) == len(pairs):
            return held
        twice.append(_Twice(Counter(name for name, _ in pairs).most_common(1)[0][0]))
        return twice[-1]

    try:
        root = json.loads(body.decode(), object_pairs_hook=unique, parse_int=str, parse_float=str, parse_constant=str)
    except ValueError as error:
        # Fields that are ignored were only skipped so far.
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if twice:
        param = next(join(path, node) for path, node in places(root, place) if isinstance(node, _Twice))[:LONGEST_ECHO]
        raise InvalidRequest(f"The key {echo(param)} stands twice in one object; send it once.", param=param)


def _depth(body: bytes) -> int:
    if body.count(b"[") + body.count(b"{") <= DEEPEST:
        return 0
    return max(accumulate(1 if bracket in b"[{" else -1 for bracket in _NOT_BRACKETS.sub(b"", body)), default=0)


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
