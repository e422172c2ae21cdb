"""Converts the values of an in-process request to the types of JSON.

Host applications may pass their own kinds of strings, numbers, lists and dicts.
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

_PLAIN: Final = frozenset({str, int, float, bool, NoneType})
_BYTES: Final = (bytes, bytearray, memoryview)


class Coercer:
    """Converts the values of one request, up to a total number of list items and dict members."""

    def __init__(self, max_values: int) -> None:
        """Set the maximum number of list items and dict members."""
        self._remaining = max_values

    def coerce(self, value: object, param: str = "") -> object:
        """Convert the value of the field ``param``; structs and decimals are left to msgspec.

        Raises:
            InvalidRequest: the type has no equivalent in JSON, such as a set, an iterator or an
                array, or there are too many values.
            RecursionError: the value contains itself.
        """
        kind = type(value)
        if kind in _PLAIN or isinstance(value, msgspec.Struct | Decimal):
            return value
        if kind is dict or (kind is not list and isinstance(value, Mapping)):
            return self._coerce_mapping(cast("Mapping[object, object]", value), param)
        if isinstance(value, Enum):
            return self.coerce(value.value, param)
        if isinstance(value, str | UserString):
            return str.__str__(value) if isinstance(value, str) else value.data
        if isinstance(value, Sequence) and not isinstance(value, _BYTES):
            return self._coerce_sequence(cast("Sequence[object]", value), param)
        if isinstance(value, Real) and (
            isinstance(value, Integral) or not isinstance(value, Rational)
        ):
            return int(value) if isinstance(value, Integral) else float(value)
        raise _unsupported_type(cast("object", value), param)

    def _coerce_mapping(self, mapping: Mapping[object, object], param: str) -> dict[str, object]:
        self._count(len(mapping), param)
        fields: dict[str, object] = {}
        for key, value in mapping.items():
            if not isinstance(key, str):
                raise InvalidRequest(
                    f"The name of a field must be a string, not {key!r:.80}.", param=param or None
                )
            name = str.__str__(key)
            if type(value) in _PLAIN:
                fields[name] = value
            else:
                fields[name] = self.coerce(value, join(param, name))
        return fields

    def _coerce_sequence(self, items: Sequence[object], param: str) -> list[object]:
        self._count(len(items), param)
        if set(map(type, items)) <= _PLAIN:
            return list(items)
        return [self.coerce(item, f"{param}[{index}]") for index, item in enumerate(items)]

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
    elif isinstance(value, Iterable) and not isinstance(value, _BYTES):
        advice = " Pass a list."
    return InvalidRequest(
        f"{echo(param)} must be a string, a number, a list or a dict, not {name}.{advice}",
        param=param,
    )
