"""Prints docs/python-api.md, the reference of the Python API, from signatures and docstrings.

Usage: scripts/docs_python.py > docs/python-api.md; ``scripts/docs`` does it.
"""

import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Final, Literal

import msgspec
import numpy as np
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import embedroute
import embedroute.fastapi
from embedroute import backend, errors, testing

WIDTH: Final = 88
"""The longest signature in one line."""

HEAD: Final = """\
# Python API

`scripts/docs` writes this page from the signatures and docstrings of the code.

Everything on this page is public and follows semantic versioning. Names that are not on it may
change at any time. A default of `...` is an object that the page does not write out.

| name in `embedroute` | what it is |
| --- | --- |"""

OTHER_MODULES: Final = """
Other modules: `embedroute.fastapi` has the router, `embedroute.backend` what a backend is made of,
`embedroute.errors` all errors, and `embedroute.testing` what tests use."""

ERRORS: Final = """\
`gateway.embed` raises these, and [backends](backends.md#errors) do. All are in `embedroute.errors`.
[Errors](errors.md#in-process) says when a caller gets which. A class takes the arguments of its
base, unless its own are listed below the table.

| class | base | status | code | meaning |
| --- | --- | --- | --- | --- |"""

SECTIONS: Final[Mapping[str, tuple[str, Sequence[object]]]] = {
    "Gateway": ("", (embedroute.Gateway, embedroute.Embeddings, embedroute.Caller)),
    "ASGI": (
        "",
        (
            embedroute.embeddings_app,
            embedroute.EmbeddingsMiddleware,
            embedroute.fastapi.embeddings_router,
            embedroute.fastapi.add_error_handlers,
        ),
    ),
    "Config": (
        "The structs of the config file. [Configuration](configuration.md) describes their fields.",
        (
            embedroute.Config,
            embedroute.Settings,
            embedroute.ApiKey,
            embedroute.CacheSettings,
            embedroute.StoreSettings,
            embedroute.LimitSettings,
            embedroute.RateLimits,
            embedroute.Provider,
            embedroute.Model,
            embedroute.Endpoint,
            embedroute.RetryPolicy,
            embedroute.BreakerPolicy,
            embedroute.Budget,
        ),
    ),
    "Backends": (
        "What the author of a [backend](backends.md) uses, from `embedroute.backend`.",
        (
            backend.Accepts,
            backend.Backend,
            backend.Batch,
            backend.Credentials,
            backend.HTTPBackend,
            backend.LocalBackend,
            backend.Secret,
            backend.UpstreamRequest,
            backend.UpstreamResponse,
            backend.Vectors,
        ),
    ),
    "Testing": (
        "From `embedroute.testing`.",
        (
            testing.check_backend,
            testing.ScriptedBackend,
            testing.expected_vector,
        ),
    ),
}
"""Heading → its introduction, and the classes and functions below it."""

ALIASES: Final = {
    ASGIApp: "ASGIApp",
    Receive: "Receive",
    Send: "Send",
    Scope: "Scope",
    Message: "Message",
    None: "None",
    types.NoneType: "None",
    Ellipsis: "...",
    Any: "Any",
}
"""Type → how it is written."""

METHODS: Final[Mapping[object, Sequence[str]]] = {
    embedroute.Gateway: ("from_file", "from_env", "embed", "embed_sync", "reload", "lifespan"),
    embedroute.Embeddings: ("vectors", "array", "providers"),
    embedroute.Caller: (),
    embedroute.EmbeddingsMiddleware: (),
    embedroute.Model: (),
    embedroute.Endpoint: (),
}
"""Class → the methods that a user calls, if these are not all without an underscore."""


def main() -> None:
    """Print the page."""
    print(HEAD)
    for name in embedroute.__all__:
        print(f"| `{name}` | {_summary_of(name)} |")
    print(OTHER_MODULES)
    for heading, (introduction, objects) in SECTIONS.items():
        if heading == "Testing":
            _print_errors()
        print(f"\n## {heading}")
        if introduction:
            print(f"\n{introduction}")
        for each in objects:
            _print_entry(each)


def _summary_of(name: str) -> str:
    if name == "__version__":
        return "The version of the package, a string."
    return _first_sentence(inspect.getdoc(getattr(embedroute, name)) or "")


def _first_sentence(text: str) -> str:
    paragraph = to_markdown(text).split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


def _print_entry(each: Any) -> None:
    print(f"\n### `{each.__name__}`\n")
    if not inspect.isclass(each):
        print(_code(f"{write_signature(each)}: ..."))
        _print_text(inspect.getdoc(each))
        return
    is_struct = issubclass(each, msgspec.Struct)
    print(_code(_write_struct(each) if is_struct else _write_class(each)))
    _print_text(each.__doc__)
    if not is_struct and not issubclass(each, Enum):
        _print_text(each.__init__.__doc__)
    for name in METHODS.get(each, _methods_of(each)):
        print(f"\n#### `{each.__name__}.{name}`\n")
        member = inspect.getattr_static(each, name)
        function = getattr(member, "__func__", member)
        if isinstance(function, property):
            kind = write_type(inspect.signature(function.fget).return_annotation)
            print(_code(f"{name}: {kind}"))
        else:
            decorator = _decorator_of(member)
            print(_code(f"{decorator}{write_signature(function)}: ..."))
        _print_text(inspect.getdoc(function))


def _decorator_of(member: object) -> str:
    kinds = {classmethod: "@classmethod\n", staticmethod: "@staticmethod\n"}
    return next((text for kind, text in kinds.items() if isinstance(member, kind)), "")


def _methods_of(kind: type) -> list[str]:
    """List the documented public methods and properties of a class, its own and inherited ones."""
    own = [base for base in kind.__mro__ if base.__module__.startswith("embedroute")]
    members = {name: member for base in reversed(own) for name, member in vars(base).items()}
    return [
        name
        for name, member in members.items()
        if not name.startswith("_")
        and isinstance(member, types.FunctionType | classmethod | staticmethod | property)
        and inspect.getdoc(member)
    ]


def _write_class(kind: Any) -> str:
    if issubclass(kind, Enum):
        members = [f"    {each.name} = {write_default(each.value)}" for each in kind]
        return "\n".join([f"class {kind.__name__}({kind.__base__.__name__}):", *members])
    signature = write_signature(kind.__init__)
    return f"class {kind.__name__}:\n{textwrap.indent(signature, '    ')}: ..."


def _write_struct(kind: type[msgspec.Struct]) -> str:
    """Return a class with the fields of a struct, which are also the arguments in this order."""
    hints = typing.get_type_hints(kind)
    lines: list[str] = []
    for field in msgspec.structs.fields(kind):
        value = _default_of(field)
        default = "" if value is inspect.Parameter.empty else f" = {write_default(value)}"
        lines.append(f"    {field.name}: {write_type(hints[field.name])}{default}")
    return "\n".join([f"class {kind.__name__}:", *(lines or ["    ..."])])


def _default_of(field: msgspec.structs.FieldInfo) -> object:
    if field.required:
        return inspect.Parameter.empty
    if field.default_factory is msgspec.NODEFAULT:
        return field.default
    return field.default_factory()


def write_signature(function: Callable[..., object]) -> str:
    """Return ``def name(…) -> type``, one parameter a line if it is long."""
    signature = inspect.signature(function)
    parameters = list(_write_parameters(signature))
    result = write_type(signature.return_annotation)
    is_async = inspect.iscoroutinefunction(function)
    start = f"{'async ' if is_async else ''}def {function.__name__}"
    line = f"{start}({', '.join(parameters)}) -> {result}"
    if len(line) <= WIDTH:
        return line
    each = "".join(f"    {parameter},\n" for parameter in parameters)
    return f"{start}(\n{each}) -> {result}"


def _write_parameters(signature: inspect.Signature) -> Iterator[str]:
    starred = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        starred = starred or parameter.kind is parameter.VAR_POSITIONAL
        text = stars.get(parameter.kind, "") + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {write_type(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {write_default(parameter.default)}"
        yield text


def write_type(hint: object) -> str:
    """Return a type as code writes it, without modules and without constraints."""
    if isinstance(hint, list):
        return f"[{', '.join(map(write_type, hint))}]"
    if isinstance(hint, str | typing.ForwardRef):
        return re.sub(r"\w+\.", "", getattr(hint, "__forward_arg__", hint))
    if hint in ALIASES:
        return ALIASES[hint]
    if typing.get_origin(hint) is not None and typing.get_args(hint):
        return _write_generic(typing.get_origin(hint), typing.get_args(hint))
    return getattr(hint, "__name__", None) or str(hint)


def _write_generic(origin: Any, arguments: tuple[Any, ...]) -> str:
    if origin is typing.Annotated:
        return write_type(arguments[0])
    if origin is Literal:
        return f"Literal[{', '.join(map(write_default, arguments))}]"
    if origin in {types.UnionType, typing.Union}:
        return " | ".join(map(write_type, arguments))
    if origin is np.ndarray:  # of a dtype
        return f"NDArray[{write_type(typing.get_args(arguments[1])[0])}]"
    return f"{origin.__name__}[{', '.join(map(write_type, arguments))}]"


def write_default(value: object) -> str:
    """Return a default as code writes it, or ``...`` for an object that is not a simple one."""
    if isinstance(value, str):
        return '"' + value.replace('"', '\\"') + '"'
    if value is None or isinstance(value, bool | int | float | bytes):
        return repr(value)
    if isinstance(value, tuple | list):
        items = ", ".join(map(write_default, value))
        return f"({items}{',' * (len(value) == 1)})" if isinstance(value, tuple) else f"[{items}]"
    if isinstance(value, dict | frozenset) and not value:
        return f"{type(value).__name__}()" if isinstance(value, frozenset) else "{}"
    try:
        is_empty = isinstance(value, msgspec.Struct) and type(value)() == value
    except TypeError:
        return "..."
    return f"{type(value).__name__}()" if is_empty else "..."


def _print_errors() -> None:
    print(f"\n## Errors\n\n{ERRORS}")
    kinds = [getattr(errors, name) for name in errors.__all__]
    classes = [kind for kind in vars(errors).values() if kind in kinds and inspect.isclass(kind)]
    classes = [kind for kind in classes if issubclass(kind, errors.EmbedrouteError)]
    for kind in classes:
        base = kind.__bases__[0].__name__
        code = f"`{kind.code}`" if kind.code else "-"
        text = _first_sentence(kind.__doc__ or "")
        print(f"| `{kind.__name__}` | `{base}` | {kind.status} | {code} | {text} |")
    for kind in [each for each in classes if "__init__" in vars(each)]:
        print(f"\n### `{kind.__name__}`\n")
        print(_code(_write_class(kind)))
        _print_text(kind.__doc__)
    _print_entry(errors.Measure)


def _code(text: str) -> str:
    return f"```py\n{text}\n```"


def _print_text(text: str | None) -> None:
    if text:
        print(f"\n{to_markdown(inspect.cleandoc(text))}")


def to_markdown(text: str) -> str:
    """Convert a docstring: code in single backticks, sections as lists, ``::`` as code blocks."""
    text = re.sub(r":mod:`([\w.]+)`", r"`\1`", text)
    text = re.sub(r":\w+:`~?\.?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL)
    text = re.sub(r"^(\w+):\n((?:    .*\n?|\n)+)", _write_section, text, flags=re.MULTILINE)
    return re.sub(r"::\n\n((?:    .*\n?|\n)+)", _write_block, text).strip()


def _write_section(match: re.Match[str]) -> str:
    heading, body = match.groups()
    items = re.split(r"\n(?=\S)", textwrap.dedent(body).strip())
    lines = [" ".join(item.split()) for item in items]
    return f"{heading}:\n\n" + "".join(
        "- " + re.sub(r"^(\w+):", r"`\1`:", line) + "\n" for line in lines
    )


def _write_block(match: re.Match[str]) -> str:
    return f":\n\n{_code(textwrap.dedent(match[1]).strip())}\n\n"


if __name__ == "__main__":
    main()
