"""Converts tables that operators wrote to structs, and reports every mistake with its location.

A mistake in one value does not prevent the conversion of the others.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Final, Self, TypeGuard, cast, get_args, get_origin

import msgspec

from embedroute.backend import Secret
from embedroute.config.misplaced import find_place
from embedroute.config.type_words import at_step, expected, has_secret, members, shown
from embedroute.text import closest, did_you_mean

TablePath = tuple[str, ...]
"""The path to a table or to a value in it: ``("models", "m", "endpoints", "0")``."""


class UnreadPaths(msgspec.Struct, frozen=True):
    """The paths whose values could not be read because of a mistake."""

    paths: frozenset[TablePath]

    def at(self, *path: str) -> bool:
        """Return whether the value at ``path``, or a table that contains it, could not be read."""
        return any(path[:depth] in self.paths for depth in range(1, len(path) + 1))


class Mistake(str):
    """A line of the report that is true only if the values at ``paths`` are known.

    If one of them could not be read, that is reported already, and this line is left out.
    """

    __slots__ = ("paths",)

    paths: tuple[TablePath, ...]

    def __new__(cls, text: str, *paths: TablePath) -> Self:
        """Create a line that depends on the values at ``paths``."""
        mistake = super().__new__(cls, text)
        mistake.paths = paths
        return mistake


class ConvertResult(msgspec.Struct, frozen=True):
    """The values that were converted, the mistakes in the others, and the names of those."""

    values: dict[str, object]
    mistakes: list[str]
    unread: set[str]


def as_table(value: object) -> Mapping[str, object] | None:
    """Return ``value`` as a table if it is a struct or a mapping with string keys."""
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    is_table = isinstance(value, Mapping) and all(
        isinstance(name, str) for name in cast("Mapping[object, object]", value)
    )
    return cast("Mapping[str, object]", value) if is_table else None


class SecretReference(Secret):
    """An ``env:NAME`` of a config made in Python, until a gateway reads it from its ``environ``."""

    __slots__ = ()


_HEADER: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,128}")
_OWN_HEADERS: Final = frozenset({"authorization", "cookie", "host", "proxy-authorization"})


class HeaderSecret(Secret):
    """A ``header:NAME``: each caller's own secret, from this header of its requests.

    ``header`` is its name in lower case. The text is only the reference.
    """

    __slots__ = ("header",)

    def __init__(self, header: str) -> None:
        """Refer to ``header``.

        Raises:
            ValueError: it is not the name of a header, or one with another meaning.
        """
        self.header: str = header.lower()
        if not _HEADER.fullmatch(self.header) or self.header in _OWN_HEADERS:
            raise ValueError(f"header:{header} is not the name of a header for a key of its own")
        super().__init__(f"header:{self.header}")


def secret_hook(environ: Mapping[str, str] | None) -> Callable[[type, object], object]:
    """Make the msgspec hook that decodes a ``Secret``.

    A secret is written as ``env:NAME``, as ``file:PATH``, or literally. Without an ``environ``,
    ``env:NAME`` becomes a ``SecretReference``.
    """

    def decode(type_: type, value: object) -> object:
        if type_ is object:
            return value
        if type_ is not Secret:
            raise NotImplementedError
        if isinstance(value, SecretReference):
            value = value.reveal()
        if isinstance(value, Secret):
            return value
        if not isinstance(value, str):
            raise TypeError("must be a string: env:NAME, file:PATH or the secret itself")
        if environ is None and value.startswith("env:"):
            return SecretReference(value)
        if value.startswith("header:"):
            return HeaderSecret(value.removeprefix("header:"))
        return Secret(_read_secret(value, environ or {}))

    return decode


def _read_secret(text: str, environ: Mapping[str, str]) -> str:
    source, _, name = text.partition(":")
    if source == "env":
        variable = environ.get(name, "").strip()
        if not variable:
            raise ValueError(f"the environment variable {name} is not set")
        return variable
    if source == "file":
        try:
            text = Path(name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"the file {name} cannot be read: {error.strerror}") from None
        except ValueError:
            raise ValueError(f"the file {name} is not valid UTF-8") from None
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def convert_fields(
    path: TablePath,
    table: Mapping[str, object],
    type_: type[msgspec.Struct],
    environ: Mapping[str, str] | None,
    read_elsewhere: Sequence[str] = (),
    variables: Mapping[str, str] = {},
) -> ConvertResult:
    """Convert the values of a table to the field types of a struct, and report every mistake.

    ``path`` is the TOML path of the table. ``read_elsewhere`` are the fields of the table that are
    not of this struct: an unknown name may be one of them misspelt. ``variables`` are the usual
    environment variables of secrets, by field. If an unknown name resembles a field, the field
    counts as misspelt and is not reported as missing too.
    """
    fields = _fields_of(type_)
    names = [*fields, *sorted({*read_elsewhere} - {*table})]
    unknown = [name for name in table if name not in fields]
    misspelt = {
        suggestion
        for name in unknown
        if (suggestion := closest(name, names)) is not None and suggestion not in table
    }
    place = format_path(path)
    result = ConvertResult({}, [], misspelt)
    for name in unknown:
        advice = did_you_mean(name, names)
        if not advice and (advice := _name_with_dots(path, name, table[name])):
            result.unread.update(fields.keys() - table.keys())
        advice = advice or find_place(path, name)
        result.mistakes.append(f'[{place}] unknown option "{name}"{advice}')
    for name, field in fields.items():
        if name in table:
            _convert_field(result, path, name, table[name], field.type, environ)
        elif field.required and name not in misspelt:
            advice = ""
            if has_secret(field.type):
                advice = f'. Set {name} = "env:{variables.get(name, "VARIABLE")}".'
            result.mistakes.append(f'[{place}] option "{name}" is missing{advice}')
            result.unread.add(name)
    return result


@lru_cache(maxsize=256)
def _fields_of(type_: type[msgspec.Struct]) -> Mapping[str, msgspec.structs.FieldInfo]:
    # Cached: resolving the annotations takes a third of the time that a gateway takes to build.
    return {field.name: field for field in msgspec.structs.fields(type_)}


def _name_with_dots(path: TablePath, name: str, value: object) -> str:
    """Explain a dot in the header of a table such as ``[models.text-embedding-3.5]``."""
    if len(path) != 2 or not isinstance(value, Mapping):
        return ""
    kind, start = path
    return (
        f"; a dot separates tables in TOML. Write a name that contains one in quotes: "
        f'[{kind}."{start}.{name}"]'
    )


def _convert_field(
    result: ConvertResult,
    path: TablePath,
    name: str,
    value: object,
    type_: object,
    environ: Mapping[str, str] | None,
) -> None:
    try:
        result.values[name] = _convert(value, type_, environ)
    except msgspec.ValidationError as error:
        result.mistakes.extend(_mistakes(error, path, name, value, type_, environ))
        result.unread.add(name)


def _convert(value: object, type_: object, environ: Mapping[str, str] | None) -> object:
    return msgspec.convert(
        value if type_ is object else _to_builtins(value), type_, dec_hook=secret_hook(environ)
    )


def _to_builtins(value: object) -> object:
    # A struct made in Python was not validated. msgspec validates it if it is given as a dict.
    if isinstance(value, msgspec.Struct):
        return {name: _to_builtins(item) for name, item in msgspec.structs.asdict(value).items()}
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
        return {name: _to_builtins(item) for name, item in items}
    return str(value) if isinstance(value, Decimal) else value


def _errors(
    path: TablePath, name: str, value: object, type_: object, environ: Mapping[str, str] | None
) -> list[str]:
    try:
        _convert(value, type_, environ)
    except msgspec.ValidationError as error:
        return _mistakes(error, path, name, value, type_, environ)
    return []


def _mistakes(
    error: msgspec.ValidationError,
    path: TablePath,
    name: str,
    value: object,
    type_: object,
    environ: Mapping[str, str] | None,
) -> list[str]:
    """Return the mistakes inside an invalid value, or else the one in the value itself."""
    nested = list(_nested_errors(path, name, value, type_, environ))
    return nested or [f"[{format_path(path)}] {_explain(error, name, value, type_)}"]


def _nested_errors(
    path: TablePath, name: str, value: object, type_: object, environ: Mapping[str, str] | None
) -> Iterator[str]:
    table = as_table(value)
    for member in members(type_):
        # A struct that allows unknown fields may decode itself differently.
        if (
            table is not None
            and _is_struct(member)
            and member.__struct_config__.forbid_unknown_fields
        ):
            yield from convert_fields((*path, name), table, member, environ).mistakes
        for step, item, item_type in _items(value, member):
            yield from _errors(path, f"{name}{step}", item, item_type, environ)


def _is_struct(type_: object) -> TypeGuard[type[msgspec.Struct]]:
    return isinstance(type_, type) and issubclass(type_, msgspec.Struct)


def _items(value: object, type_: object) -> Iterator[tuple[str, object, object]]:
    """Yield the path, the value and the type of each item of a mapping or a sequence."""
    origin = get_origin(type_)
    arguments = [argument for argument in get_args(type_) if argument is not ...]
    if not isinstance(origin, type):
        return
    if isinstance(value, Mapping) and issubclass(origin, Mapping):
        for key, item in cast("Mapping[object, object]", value).items():
            yield f".{quoted(str(key))}", item, arguments[1]
    elif isinstance(value, list | tuple) and issubclass(origin, Collection) and len(arguments) == 1:
        for index, item in enumerate(cast("Sequence[object]", value)):
            yield f"[{index}]", item, arguments[0]


_STEP: Final = re.compile(r"\.([^.\[`]+)|\[([0-9]+)\]")


def _explain(error: msgspec.ValidationError, name: str, value: object, type_: object | None) -> str:
    """Describe the mistake in a value whose items are valid, or have no description of their own.

    An error of a secret, or of the author of a backend, has its own text.
    """
    text = str(error)
    is_wrong_secret = isinstance(error.__cause__, TypeError) and Secret in members(type_)
    if error.__cause__ is not None and not is_wrong_secret:
        message = str(error.__cause__)
        return f"{name} {message}" if message.startswith("must ") else f"{name}: {message}"
    if "- at `key` in" in text:
        return f"{name} must be a table whose names are strings"
    text, _, location = text.partition(" - at `$")
    for field, index in _STEP.findall(location):
        type_ = at_step(type_, field or index)
        name += f".{field}" if field else f"[{index}]"
        value = _at(value, field or index)
    if type_ is None:
        return f"{name}: {text.replace('`', '')}"
    words = expected(type_, with_limits="`, got `" not in text)
    return f"{name} must be {words}; got {shown(value, type_)}"


def _at(value: object, step: str) -> object:
    table = as_table(value)
    if table is not None:
        return table.get(step)
    is_list = isinstance(value, list | tuple) and step.isdigit()
    return cast("Sequence[object]", value)[int(step)] if is_list else None


def format_path(path: TablePath) -> str:
    """Format a path as the header of a TOML table."""
    return ".".join(map(quoted, path))


def quoted(name: str) -> str:
    """Format a name as a TOML key, in quotes if necessary."""
    is_bare = name.replace("-", "").replace("_", "").isalnum() and name.isascii()
    return name if is_bare else f'"{name}"'
