"""Takes what a host application gives in process by value: its own kinds of text, number, list and dict become JSON's."""

from collections import UserString
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from enum import Enum
from numbers import Integral, Rational, Real
from types import NoneType
from typing import Final, cast

import msgspec

from embedroute.errors import InvalidRequest
from embedroute.protocol.decode_errors import join
from embedroute.text import echo

_PLAIN: Final = frozenset({str, int, float, bool, NoneType})
_BYTES: Final = (bytes, bytearray, memoryview)


class Plain:
    """Turns the values of one request into what JSON has, up to a number of items and members in all."""

    def __init__(self, most: int) -> None:
        """Let ``most`` items and members pass."""
        self._left = most

    def plain(self, value: object, param: str = "") -> object:
        """Turn ``value``, which stands at ``param``, into what JSON has; structs and decimals are left to msgspec.

        Raises:
            InvalidRequest: a set, whose order is anybody's guess, an iterator, an array, or whatever else JSON has not;
                or too many items.
            RecursionError: it holds itself.
        """
        kind = type(value)
        if kind in _PLAIN or isinstance(value, msgspec.Struct | Decimal):
            return value
        if kind is dict or (kind is not list and isinstance(value, Mapping)):
            return self._object(cast("Mapping[object, object]", value), param)
        if isinstance(value, Enum):
            return self.plain(value.value, param)
        if isinstance(value, str | UserString):
            return str.__str__(value) if isinstance(value, str) else value.data
        if isinstance(value, Sequence) and not isinstance(value, _BYTES):
            return self._array(cast("Sequence[object]", value), param)
        if isinstance(value, Real) and (
            isinstance(value, Integral) or not isinstance(value, Rational)
        ):
            return int(value) if isinstance(value, Integral) else float(value)
        raise _refusal(cast("object", value), param)

    def _object(self, given: Mapping[object, object], param: str) -> dict[str, object]:
        self._count(len(given), param)
        fields: dict[str, object] = {}
        for name, value in given.items():
            if not isinstance(name, str):
                raise InvalidRequest(
                    f"The name of a field must be a string, not {name!r:.80}.", param=param or None
                )
            plainly = str.__str__(name)
            fields[plainly] = (
                value if type(value) in _PLAIN else self.plain(value, join(param, plainly))
            )
        return fields

    def _array(self, given: Sequence[object], param: str) -> list[object]:
        self._count(len(given), param)
        if set(map(type, given)) <= _PLAIN:
            return list(given)
        return [self.plain(item, f"{param}[{at}]") for at, item in enumerate(given)]

    def _count(self, items: int, param: str) -> None:
        self._left -= items
        if self._left < 0:
            raise InvalidRequest(
                f"{echo(param)} holds too many values; send fewer inputs at a time.", param=param
            )


def _refusal(value: object, param: str) -> InvalidRequest:
    kind = type(value)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    advice = ", which has no order; send a list" if isinstance(value, AbstractSet) else ""
    if not advice and isinstance(value, Iterable) and not isinstance(value, _BYTES):
        advice = "; send a list"
    return InvalidRequest(
        f"{echo(param)} must be a text, a number, a list or a dict, not {name}{advice}.",
        param=param,
    )
