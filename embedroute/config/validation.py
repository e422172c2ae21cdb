"""Fits tables that people wrote to structs: as much as can be read is read, and every mistake is named with its place."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Annotated, Final, Literal, TypeGuard, Union, cast, get_args, get_origin

import msgspec

from embedroute.backend import Secret
from embedroute.text import closest, did_you_mean

Place = tuple[str, ...]
"""The way to a table or a value in it: ``("models", "m", "endpoints", "0")``."""


class UnknownFields(msgspec.Struct, frozen=True):
    """The places whose value a mistake leaves unknown; what hangs on one of them cannot be judged."""

    places: frozenset[Place] = frozenset()

    def at(self, *place: str) -> bool:
        """Whether nothing is known of a place: itself or what it stands in could not be read."""
        return any(place[:depth] in self.places for depth in range(1, len(place) + 1))

    def within(self, *place: str) -> bool:
        """Whether not all is known of a place."""
        return self.at(*place) or any(it[: len(place)] == place for it in self.places)


ALL_READ: Final = UnknownFields()


class ConvertResult(msgspec.Struct, frozen=True):
    """What of a table fits a struct's fields, the mistakes in the rest, and the fields that these leave unknown."""

    values: dict[str, object]
    mistakes: list[str]
    unread: set[str]


def as_table(value: object) -> Mapping[str, object] | None:
    """Take ``value`` as a table, if it is one or a struct of one's fields."""
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    named = isinstance(value, Mapping) and all(
        isinstance(name, str) for name in cast("Mapping[object, object]", value)
    )
    return cast("Mapping[str, object]", value) if named else None


def secret_hook(environ: Mapping[str, str]) -> Callable[[type, object], object]:
    """Make msgspec read a ``Secret``: ``env:NAME``, ``file:PATH``, or the secret itself."""

    def read(wanted: type, value: object) -> object:
        if wanted is object:
            return value
        if wanted is not Secret:
            raise NotImplementedError
        return value if isinstance(value, Secret) else Secret(_reveal(value, environ))

    return read


def _reveal(text: object, environ: Mapping[str, str]) -> str:
    if not isinstance(text, str):
        raise TypeError("must be a string: env:NAME, file:PATH or the secret itself")
    source, _, name = text.partition(":")
    if source == "env":
        found = environ.get(name, "").strip()
        if not found:
            raise ValueError(f"the environment variable {name} is not set")
        return found
    if source == "file":
        try:
            text = Path(name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"the file {name} cannot be read: {error.strerror}") from None
        except ValueError:
            raise ValueError(f"the file {name} holds no text in UTF-8") from None
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def convert_fields(
    path: str,
    table: Mapping[str, object],
    type_: type[msgspec.Struct],
    environ: Mapping[str, str],
    also: Sequence[str] = (),
) -> ConvertResult:
    """Fit a table to a struct's fields one by one, so that every mistake is named and not only the first.

    ``also`` are words that stand beside the fields in the same table, for suggestions. A field that was misspelt is
    unread and not missing: that is one mistake and not two.
    """
    fields = {field.name: field for field in msgspec.structs.fields(type_)}
    words, unknown = (
        [*fields, *sorted({*also} - {*table})],
        [name for name in table if name not in fields],
    )
    unread = {
        meant
        for name in unknown
        if (meant := closest(name, words)) is not None and meant not in table
    }
    found = ConvertResult(
        {},
        [f'[{path}] unknown option "{name}"{did_you_mean(name, words)}' for name in unknown],
        unread,
    )
    for name, field in fields.items():
        if name in table:
            _fit_one(found, path, name, table[name], field.type, environ)
        elif field.required and name not in unread:
            found.mistakes.append(f'[{path}] option "{name}" is missing')
            found.unread.add(name)
    return found


def _fit_one(
    found: ConvertResult,
    path: str,
    name: str,
    value: object,
    type_: object,
    environ: Mapping[str, str],
) -> None:
    mistakes = _errors(path, name, value, type_, environ)
    found.mistakes.extend(mistakes)
    if mistakes:
        found.unread.add(name)
    else:
        found.values[name] = _read(value, type_, environ)


def _read(value: object, type_: object, environ: Mapping[str, str]) -> object:
    return msgspec.convert(
        value if type_ is object else _builtin(value), type_, dec_hook=secret_hook(environ)
    )


def _builtin(given: object) -> object:
    # A struct that Python made was never checked; written as a table it is.
    if isinstance(given, msgspec.Struct):
        return {name: _builtin(value) for name, value in msgspec.structs.asdict(given).items()}
    if isinstance(given, dict):
        return {
            name: _builtin(value) for name, value in cast("dict[object, object]", given).items()
        }
    return str(given) if isinstance(given, Decimal) else given


def _errors(
    path: str, name: str, value: object, type_: object, environ: Mapping[str, str]
) -> list[str]:
    """Name each mistake inside a value that does not fit; or the value itself, if there is none inside."""
    try:
        _read(value, type_, environ)
    except msgspec.ValidationError as error:
        inside = list(_inside(path, name, value, type_, environ))
        return inside or [f"[{path}] {name}: {_plain(error)}{_choices(error, type_)}"]
    return []


def _inside(
    path: str, name: str, given: object, type_: object, environ: Mapping[str, str]
) -> Iterator[str]:
    table = as_table(given)
    for kind in _alternatives(type_):
        # A struct that does not forbid other fields may read itself in a way of its own.
        if table is not None and _is_struct(kind) and kind.__struct_config__.forbid_unknown_fields:
            yield from convert_fields(f"{path}.{name}", table, kind, environ).mistakes
        for step, value, inner in _items(given, kind):
            yield from _errors(path, f"{name}{step}", value, inner, environ)


def _is_struct(kind: object) -> TypeGuard[type[msgspec.Struct]]:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _items(given: object, kind: object) -> Iterator[tuple[str, object, object]]:
    origin, inner = get_origin(kind), [it for it in get_args(kind) if it is not ...]
    if not isinstance(origin, type):
        return
    if isinstance(given, Mapping) and issubclass(origin, Mapping):
        for key, value in cast("Mapping[object, object]", given).items():
            yield f".{quoted(str(key))}", value, inner[1]
    elif isinstance(given, list | tuple) and issubclass(origin, Collection) and len(inner) == 1:
        for at, value in enumerate(cast("Sequence[object]", given)):
            yield f"[{at}]", value, inner[0]


def _alternatives(type_: object) -> Iterator[object]:
    """Take a type apart into those that a value of it may have."""
    if get_origin(type_) is Annotated:
        yield from _alternatives(get_args(type_)[0])
    elif get_origin(type_) in (Union, UnionType):
        for it in get_args(type_):
            yield from _alternatives(it)
    else:
        yield type_


def _plain(error: msgspec.ValidationError) -> str:
    return (
        str(error)
        .replace("`", "")
        .removesuffix(" - at $")
        .replace(" - at key in $", " as a key")
        .replace(" - at $", " at ")
    )


def _choices(error: msgspec.ValidationError, type_: object) -> str:
    words = _words(type_) if str(error).startswith("Invalid enum value") else ()
    return f"; use {', '.join(words)}" if words else ""


def _words(type_: object) -> Sequence[str]:
    inner = get_args(type_)
    return inner if get_origin(type_) is Literal else [word for it in inner for word in _words(it)]


def written(path: Place) -> str:
    """Write a place as the head of a TOML table."""
    return ".".join(map(quoted, path))


def quoted(name: str) -> str:
    """Write a table's name as TOML does."""
    return (
        name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else f'"{name}"'
    )
