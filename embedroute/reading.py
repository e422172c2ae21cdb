"""Fits tables that people wrote to structs, naming every mistake with its place and not only the first."""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Literal, cast, get_args, get_origin

import msgspec

from embedroute.secret import Secret
from embedroute.wording import did_you_mean


def as_table(value: object) -> Mapping[str, object] | None:
    """Take ``value`` as a table, if it is one or a struct of one's fields."""
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else None


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
        found = environ.get(name, "")
        if not found:
            raise ValueError(f"the environment variable {name} is not set")
        return found
    if source == "file":
        try:
            text = Path(name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"the file {name} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def fit(
    place: str,
    table: Mapping[str, object],
    wanted: type[msgspec.Struct],
    environ: Mapping[str, str],
    also: Sequence[str] = (),
) -> tuple[dict[str, object], list[str]]:
    """Fit a table to a struct's fields one by one, so that every mistake is named and not only the first.

    ``also`` are words that stand beside the fields in the same table, for suggestions.
    """
    fields = {field.name: field for field in msgspec.structs.fields(wanted)}
    words = [*fields, *also]
    mistakes = [f'[{place}] unknown option "{name}"{did_you_mean(name, words)}' for name in table if name not in fields]
    fitted: dict[str, object] = {}
    for name, field in fields.items():
        if name in table:
            try:
                fitted[name] = _read(table[name], field.type, environ)
            except msgspec.ValidationError as error:
                mistakes.append(f"[{place}] {name}: {_plain(error)}{_choices(error, field.type)}")
        elif field.required:
            mistakes.append(f'[{place}] option "{name}" is missing')
    return fitted, mistakes


def _read(given: object, wanted: object, environ: Mapping[str, str]) -> object:
    given = str(given) if isinstance(given, Decimal) else given
    return msgspec.convert(given, wanted, dec_hook=secret_hook(environ))


def _plain(error: msgspec.ValidationError) -> str:
    return str(error).partition(" - at `$`")[0].replace("`", "").replace(" - at $", " at ")


def _choices(error: msgspec.ValidationError, wanted: object) -> str:
    words = _words(wanted) if str(error).startswith("Invalid enum value") else ()
    return f"; use {', '.join(words)}" if words else ""


def _words(wanted: object) -> Sequence[str]:
    inner = get_args(wanted)
    return inner if get_origin(wanted) is Literal else [word for it in inner for word in _words(it)]


def quoted(name: str) -> str:
    """Write a table's name as TOML does."""
    return name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else f'"{name}"'
