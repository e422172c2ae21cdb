"""Converts the values of an in-process request to the types of JSON.

Host applications may pass their own kinds of strings, numbers, lists and dicts.
``msgspec.to_builtins`` cannot do this: it makes a list of a set, whose order would assign vectors
to the wrong texts, it does not say where a value is, and it does not limit how many there are.
"""

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
from embedroute.vectors import SupportsArray, list_items

_PLAIN: Final = frozenset({str, int, float, bool, NoneType})


class Coercer:
    """Converts the values of one request, up to a total number of list items and dict members."""

    def __init__(self, max_values: int) -> None:
        """Set the maximum number of list items and dict members."""
        self._remaining = max_values

    def coerce(self, value: object, param: str = "") -> object:
        """Convert the value of the field ``param``; structs and decimals are left to msgspec.

        Raises:
            InvalidRequest: the type has no equivalent in JSON, such as a set or an iterator, or
                there are too many values.
            RecursionError: the value contains itself.
        """
        if type(value) in _PLAIN:
            return value
        converted: object
        match value:
            case msgspec.Struct() | Decimal():
                converted = value
            case Enum():
                converted = self.coerce(value.value, param)
            case str():
                converted = str.__str__(value)
            case UserString():
                converted = value.data
            case Sequence() if not isinstance(value, bytes | bytearray | memoryview):
                converted = self._coerce_sequence(cast("Sequence[object]", value), param)
            case Mapping():
                converted = self._coerce_mapping(cast("Mapping[object, object]", value), param)
            case Integral():
                converted = int(value)
            case Real() if not isinstance(value, Rational):
                converted = float(value)
            case _:
                converted = self._coerce_array(value, param)
        return converted

    def _coerce_mapping(self, mapping: Mapping[object, object], param: str) -> dict[str, object]:
        self._count(len(mapping), param)
        fields: dict[str, object] = {}
        for key, value in mapping.items():
            if not isinstance(key, str):
                raise InvalidRequest(
                    f"The name of a field must be a string, not {key!r:.80}.", param=param or None
                )
            name = str.__str__(key)
            fields[name] = self.coerce(value, join(param, name))
        return fields

    def _coerce_sequence(self, items: Sequence[object], param: str) -> list[object]:
        self._count(len(items), param)
        if set(map(type, items)) <= _PLAIN:
            return list(items)
        return [self.coerce(item, f"{param}[{index}]") for index, item in enumerate(items)]

    def _coerce_array(self, value: object, param: str) -> list[object]:
        """Convert an array of numpy or a column of a data frame, such as a pandas Series."""
        items = list_items(value, self._remaining) if isinstance(value, SupportsArray) else None
        if items is None:
            raise _unsupported_type(value, param)
        return self._coerce_sequence(items, param)

    def _count(self, values: int, param: str) -> None:
        self._remaining -= values
        if self._remaining < 0:
            raise InvalidRequest(
                f"{echo(param)} holds too many values. Send fewer inputs in one request.",
                param=param,
            )


def _unsupported_type(value: object, param: str) -> InvalidRequest:
    kind = type(value)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    advice = ""
    if isinstance(value, AbstractSet):
        advice = " A set has no order; pass a list."
    elif isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | memoryview):
        advice = " Pass a list."
    return InvalidRequest(
        f"{echo(param)} must be a string, a number, a list or a dict, not {name}.{advice}",
        param=param,
    )
