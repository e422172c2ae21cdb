"""Checks the class of a backend: its base, methods, fields, secrets and ``accepts``."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Final, cast

from msgspec.structs import replace

from embedroute.backend import Accepts, Backend, BackendBase, HTTPBackend, LocalBackend, Secret
from embedroute.testing.samples import attempt
from embedroute.vectors import DTYPES

MARK: Final = "embedroute-s3cret"
"""Text that replaces all secrets, so that a leak of one can be found."""

METHODS: Final[Mapping[type[BackendBase], tuple[str, ...]]] = {
    HTTPBackend: ("def build(self, batch)", "def parse(self, batch, response)"),
    LocalBackend: ("def load(self)", "def run(self, model, batch)"),
    Backend: ("async def embed(self, batch)",),
}
"""Base class → the methods that a backend must define."""

NOT_ASYNC: Final[Mapping[type[BackendBase], tuple[str, ...]]] = {
    HTTPBackend: ("map_error", "fetch_credentials", "authorize"),
}
"""Base class → other methods that must not be async."""


def class_mistakes(backend: object) -> Iterator[str]:
    """Yield the mistakes that can be found without running the backend's code."""
    base = next((base for base in METHODS if isinstance(backend, base)), None)
    if isinstance(backend, type):
        name = backend.__name__
        yield f'{name} is a class: pass an instance, for example {name}(api_key=Secret("k")).'
    elif base is None:
        yield (
            f"{type(backend).__name__} is not a backend:"
            " subclass HTTPBackend, LocalBackend or Backend."
        )
    else:
        yield from _method_mistakes(type(backend), base)
        yield from _field_mistakes(cast("BackendBase", backend))
        yield from _accepts_mistakes(
            type(backend).__dict__.get("accepts", cast("BackendBase", backend).accepts)
        )


def _method_mistakes(kind: type, base: type[BackendBase]) -> Iterator[str]:
    for signature in METHODS[base]:
        name = signature.partition("(")[0].rpartition(" ")[2]
        method: Callable[..., object] = getattr(kind, name)
        if method is getattr(base, name):
            yield f"{name} is missing: write {signature}."
        elif inspect.iscoroutinefunction(method) and not signature.startswith("async"):
            yield f"{name} is async: write {signature}; it must not do I/O."
    for name in NOT_ASYNC.get(base, ()):
        if inspect.iscoroutinefunction(getattr(kind, name)):
            yield f"{name} is async: write def {name}; the host calls it without await."


def _field_mistakes(backend: BackendBase) -> Iterator[str]:
    fields: Mapping[str, object] = {
        name: getattr(backend, name) for name in backend.__struct_fields__
    }
    if "accepts" in fields:
        yield (
            "'accepts' is a field, which would override the config:"
            " annotate it as ClassVar[Accepts], or not at all."
        )
    for name, value in fields.items():
        if isinstance(value, str) and {"key", "token", "secret", "password"} & set(
            name.lower().split("_")
        ):
            yield f"'{name}' is a str, which shows in logs: annotate it as Secret."


def _accepts_mistakes(accepts: object) -> Iterator[str]:
    if inspect.ismemberdescriptor(accepts):
        return  # accepts is a field, which _field_mistakes reports
    if not isinstance(accepts, Accepts):
        yield f"accepts is a {type(accepts).__name__}: write accepts = Accepts(…)."
        return
    for dtype in accepts.dtypes:
        if dtype not in DTYPES:
            yield f"accepts lists the dtype {dtype!r}: use only {', '.join(DTYPES)}."
    if not (accepts.texts or accepts.tokens or "image" in accepts.modalities):
        yield "accepts allows neither texts nor tokens nor images: allow at least one kind."


def with_marked_secrets(backend: BackendBase) -> BackendBase:
    """Return a copy of ``backend`` with ``MARK`` in place of each secret, also inside mappings."""
    options = {name: _mark_secrets(getattr(backend, name)) for name in backend.__struct_fields__}
    return attempt("__post_init__", "Accept any secret.", lambda: replace(backend, **options))


def _mark_secrets(value: object) -> object:
    if isinstance(value, Secret):
        return Secret(MARK)
    table = cast("Mapping[str, object]", value if isinstance(value, Mapping) else {})
    if not any(isinstance(entry, Secret) for entry in table.values()):
        return cast("object", value)
    return {name: _mark_secrets(entry) for name, entry in table.items()}


def secret_mistakes(backend: BackendBase) -> Iterator[str]:
    """Check that the ``repr`` of a backend, which may be logged, contains no secret."""
    shown = attempt("repr", "Do not override __repr__.", lambda: repr(with_marked_secrets(backend)))
    if MARK in shown:
        yield f"A secret shows in repr({type(backend).__name__}): keep it only in its Secret field."
