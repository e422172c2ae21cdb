"""What a backend's class says of itself: its base, its methods, its fields, its secrets and what it accepts."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Final, cast

from msgspec.structs import replace

from embedroute.backend import Accepts, Backend, BackendBase, HTTPBackend, LocalBackend, Secret
from embedroute.testing.samples import attempt
from embedroute.vectors import DTYPES

MARK: Final = "embedroute-s3cret"
"""Stands in for every secret while it is looked for where none may be."""

METHODS: Final[Mapping[type[BackendBase], tuple[str, ...]]] = {
    HTTPBackend: ("def build(self, batch)", "def parse(self, batch, reply)"),
    LocalBackend: ("def load(self)", "def run(self, model, batch)"),
    Backend: ("async def embed(self, batch)",),
}
"""Base → what its author writes."""


def class_mistakes(backend: object) -> Iterator[str]:
    """Name what is wrong with a backend before any of its code is run."""
    base = next((base for base in METHODS if isinstance(backend, base)), None)
    if isinstance(backend, type):
        yield f'{backend.__name__} is a class: make an object of it, {backend.__name__}(api_key=Secret("k")) or the like.'
    elif base is None:
        yield f"{type(backend).__name__} is no backend: subclass HTTPBackend, LocalBackend or Backend."
    else:
        yield from _method_mistakes(type(backend), base)
        yield from _field_mistakes(cast("BackendBase", backend))
        yield from _accepts_mistakes(
            type(backend).__dict__.get("accepts", cast("BackendBase", backend).accepts)
        )


def _method_mistakes(kind: type, base: type[BackendBase]) -> Iterator[str]:
    for written in METHODS[base]:
        name = written.partition("(")[0].rpartition(" ")[2]
        method: Callable[..., object] = getattr(kind, name)
        if method is getattr(base, name):
            yield f"{name} is missing: write {written}."
        elif inspect.iscoroutinefunction(method) and not written.startswith("async"):
            yield f"{name} is async: write {written}; the host does the waiting."


def _field_mistakes(backend: BackendBase) -> Iterator[str]:
    fields: Mapping[str, object] = {
        name: getattr(backend, name) for name in backend.__struct_fields__
    }
    if "accepts" in fields:
        yield "'accepts' is a field, which would win over config: annotate it as ClassVar[Accepts], or not at all."
    for name, value in fields.items():
        if isinstance(value, str) and {"key", "token", "secret", "password"} & set(
            name.lower().split("_")
        ):
            yield f"'{name}' is a str, which shows in logs: annotate it as Secret."


def _accepts_mistakes(accepts: object) -> Iterator[str]:
    if inspect.ismemberdescriptor(accepts):
        return  # a field, which is a mistake of its own
    if not isinstance(accepts, Accepts):
        yield f"accepts is a {type(accepts).__name__}: write accepts = Accepts(…)."
        return
    for dtype in accepts.dtypes:
        if dtype not in DTYPES:
            yield f"accepts lists the dtype {dtype!r}: there are {', '.join(DTYPES)}."
    if not (accepts.texts or accepts.tokens or "image" in accepts.modalities):
        yield "accepts takes neither texts nor tokens nor images: nothing could be sent."


def marked(backend: BackendBase) -> BackendBase:
    """Put ``MARK`` in the place of every secret, tables of them included."""
    held = {name: _marked(getattr(backend, name)) for name in backend.__struct_fields__}
    return attempt("__post_init__", "Let it take any secret.", lambda: replace(backend, **held))


def _marked(value: object) -> object:
    if isinstance(value, Secret):
        return Secret(MARK)
    table = cast("Mapping[str, object]", value if isinstance(value, Mapping) else {})
    holds = any(isinstance(held, Secret) for held in table.values())
    return {name: _marked(held) for name, held in table.items()} if holds else cast("object", value)


def secret_mistakes(backend: BackendBase) -> Iterator[str]:
    """Look for secrets in what logs show of a backend."""
    if MARK in attempt("repr", "Leave __repr__ to the base.", lambda: repr(marked(backend))):
        yield f"A secret shows in repr({type(backend).__name__}): keep it in its Secret field alone."
