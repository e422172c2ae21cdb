"""Decodes ``embedding_options``, and the fields of single APIs that the config allows at top level.

The structs come from the backends: the namespace of an API → the struct of its parameters.
"""

import json
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from embedroute.backend import LONGEST_NAME, Options, Truncate
from embedroute.errors import InvalidRequest
from embedroute.protocol import decode_errors
from embedroute.text import echo

Namespaces = Mapping[str, type[Options]]
"""The name of an API in ``embedding_options`` → the struct of its parameters."""

FIELD: Final = "embedding_options"


class RequestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a request, besides those that every API has.

    ``by_api`` holds ``embedding_options``. ``fields`` are the top-level fields that the config
    allows. ``truncate`` is what to do with a text that is too long; None leaves it to the endpoint.
    """

    by_api: Mapping[str, Options] = {}
    fields: Mapping[str, Any] = {}
    truncate: Truncate | None = None


NO_OPTIONS: Final = RequestOptions()


def make_options_struct(namespaces: Namespaces) -> type[msgspec.Struct]:
    """Return the struct of ``embedding_options`` with these namespaces, for its JSON Schema."""
    fields: list[tuple[str, Any, Any]] = [
        (name, struct | None, None) for name, struct in namespaces.items()
    ]
    options = msgspec.defstruct("EmbeddingOptions", fields, frozen=True, forbid_unknown_fields=True)
    options.__doc__ = "Parameters of single upstream APIs, by API."
    return options


def parse_options(values: Mapping[str, Any], namespaces: Namespaces) -> Mapping[str, Options]:
    """Convert the value of ``embedding_options``.

    Raises:
        InvalidRequest: an API or a field is unknown, or a value is invalid; ``param`` names it.
    """
    if any(name not in namespaces for name in values):
        raise decode_errors.unknown_keys({FIELD: values}, FIELD, {FIELD: list(namespaces)})
    return {
        name: convert_options(value, namespaces[name], f"{FIELD}.{name}")
        for name, value in values.items()
        if value is not None
    }


def convert_options(value: object, struct: type[Options], path: str = "") -> Options:
    """Convert the value at ``path`` to ``struct``.

    Raises:
        InvalidRequest: a field is unknown, or a value is invalid; ``param`` names it.
    """
    if isinstance(value, struct):
        return value
    _refuse_long_strings(value, path)
    try:
        return msgspec.convert(value, struct)
    except msgspec.ValidationError as error:
        nested: object = value
        for name in reversed(path.split(".") if path else ()):
            nested = {name: nested}
        names = tuple(field.encode_name for field in msgspec.structs.fields(struct))
        raise decode_errors.explain_error(
            _at_path(error, path),
            json.dumps(nested, default=msgspec.to_builtins).encode(),
            {path: names},
            _list_choices(struct, path),
        ) from None


def _at_path(error: msgspec.ValidationError, path: str) -> msgspec.ValidationError:
    """Return the error with the place of the struct put before the place in the struct."""
    problem, mark, place = str(error).rpartition(" - at `$")
    if not mark:
        problem, place = str(error), "`"
    return msgspec.ValidationError(f"{problem} - at `${path and '.'}{path}{place}")


@cache
def _list_choices(struct: type[Options], path: str) -> Mapping[str, tuple[str, ...]]:
    prefix = f"{path}." if path else ""
    return {
        f"{prefix}{field.encode_name}{suffix}": list_literals(field.type)
        for field in msgspec.structs.fields(struct)
        for suffix in ("", "[]")
    }


def list_literals(type_: object) -> tuple[str, ...]:
    """List the values of all ``Literal`` types in a type, without the empty string."""
    if get_origin(type_) is Literal:
        return tuple(value for value in get_args(type_) if value != "")
    return tuple(value for inner in get_args(type_) for value in list_literals(inner))


def read_allowed_fields(
    present: Mapping[str, msgspec.Raw], allowed: Collection[str]
) -> Mapping[str, Any]:
    """Return the values of the ``allowed`` fields of a body; ``null`` counts as absent.

    Raises:
        InvalidRequest: a string is too long.
    """
    values = dict[str, Any]()
    for name in present.keys() & set(allowed):
        value = msgspec.json.decode(present[name])
        if value is not None:
            _refuse_long_strings(value, name)
            values[name] = value
    return values


def _refuse_long_strings(value: object, name: str) -> None:
    for path, inner in decode_errors.iter_values(value, name):
        if isinstance(inner, str) and len(inner) > LONGEST_NAME:
            raise InvalidRequest(
                f"{echo(path)} must be at most {LONGEST_NAME} characters long.", param=path
            )
