"""Translates requests of other APIs into requests of ``POST /v1/embeddings``.

A translated request passes the same checks as one that was sent in that form. So a module of this
package only renames fields, and refuses those whose effect the gateway cannot give.
"""

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from copy import copy
from typing import Annotated, Any, Final, NoReturn, Protocol, TypeVar, get_args

import msgspec
from msgspec import Meta

from embedroute.errors import EmbedrouteError, InvalidRequest
from embedroute.protocol import (
    EmbeddingRequest,
    Embeddings,
    LargeBody,
    Limits,
    Size,
    decode_struct,
    response_bodies,
    split_members,
)
from embedroute.routing import unknown_model
from embedroute.text import echo
from embedroute.trace import RequestTrace

B = TypeVar("B", bound=msgspec.Struct)

_STRING_OR_STRINGS: Final = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
}
RawTexts = Annotated[msgspec.Raw, Meta(extra_json_schema=_STRING_OR_STRINGS)]
"""A text or an array of texts, not yet decoded."""
RawText = Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "string"})]
"""A text, not yet decoded."""
_ABSENT: Final = (None, msgspec.Raw(), msgspec.Raw(b"null"))
"""The values of an optional field that is not there; the last two are of one not yet decoded."""
Width = Size | None


class Format(Protocol):
    """How the responses of an API are written."""

    def success(self, answer: Embeddings, request: EmbeddingRequest) -> tuple[bytes] | LargeBody:
        """Write the body of a 200."""
        ...

    def error(self, error: EmbedrouteError, trace: RequestTrace) -> bytes:
        """Write the body of an error."""
        ...


class Translation(msgspec.Struct, frozen=True, kw_only=True):
    """A request of another API in the form of ``POST /v1/embeddings``.

    ``format`` writes the response; None means the dialect. ``names`` maps each field of ``body``
    that has another name in the original request to that name, for errors. ``refusal`` is why the
    request cannot be served; then ``body`` is empty.
    """

    body: bytes
    format: Format | None = None
    names: Mapping[str, str] = {}
    refusal: EmbedrouteError | None = None


class Neutral(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of ``POST /v1/embeddings``, and the original names of some of them."""

    values: Mapping[str, Any]
    names: Mapping[str, str]


Translate = Callable[[bytes, str, Limits], Generator[None, None, Translation]]
"""Translates a body, the model that the path names ("" if none), within limits."""


def read_body(body: bytes, struct: type[B], limits: Limits) -> Generator[None, None, B]:
    """Decode a body as ``struct``; fields of the type ``Raw`` are not decoded.

    Raises:
        InvalidRequest: the body does not fit ``struct``, or has a key twice.
    """
    members = yield from split_members(body, limits)
    inputs = {
        field.name: members[field.name]
        for field in msgspec.structs.fields(struct)
        if field.name in members and msgspec.Raw in (field.type, *get_args(field.type))
    }
    # Inputs may be megabytes long, and are decoded later.
    short = msgspec.json.encode({**members, **dict.fromkeys(inputs, 0)})
    yield
    return msgspec.structs.replace(decode_struct(short, struct), **inputs)


def is_text(raw: msgspec.Raw) -> bool:
    """Return whether a value is a string."""
    return bytes(memoryview(raw)[:1]) == b'"'


def write_body(**fields: object) -> bytes:
    """Write the body of a translated request; None is left out, and ``Raw`` is copied."""
    pieces: list[bytes | memoryview] = [b"{"]
    for name, value in fields.items():
        if value is None:
            continue
        # msgspec's encoder takes three times as long to copy 30 MB.
        is_raw = isinstance(value, msgspec.Raw)
        encoded = memoryview(value) if is_raw else msgspec.json.encode(value)
        comma = b"," if len(pieces) > 1 else b""
        pieces += (comma, msgspec.json.encode(name), b":", encoded)
    return b"".join([*pieces, b"}"])


def refuse(field: str, reason: str, advice: str = "Leave it out.") -> NoReturn:
    """Refuse a field that would change the vectors.

    Raises:
        InvalidRequest: always.
    """
    raise InvalidRequest(f"{echo(field)} {reason}. {advice}", param=field)


def choose_source(body: msgspec.Struct, names: Sequence[str]) -> str:
    """Return the one field of ``names`` that is set.

    Raises:
        InvalidRequest: none or several of them are set.
    """
    found = [name for name in names if getattr(body, name) not in _ABSENT]
    if len(found) != 1:
        raise InvalidRequest(
            f"Send exactly one of {', '.join(map(echo, names))}.", param=(found or names)[-1]
        )
    return found[0]


def renamed(error: EmbedrouteError, names: Mapping[str, str]) -> EmbedrouteError:
    """Return ``error`` with the names that the client knows: ``texts[3]`` for ``input[3]``."""
    error = copy(error)  # requests that wait for the same call share it
    for name, original in names.items():
        if error.param is not None and re.match(rf"{name}\b", error.param):
            error.param = original + error.param.removeprefix(name)
        error.message = re.sub(rf"'{name}(?=['.\[])", f"'{original}", error.message)
    return error


class ModelQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A request for what the gateway knows of its models.

    ``models`` are those that the caller may use. ``name`` is the model in the path, or "". ``body``
    is that of a POST. ``limits`` are those of requests.
    """

    models: Sequence[response_bodies.Model]
    name: str = ""
    body: bytes = b""
    limits: Limits

    def find(self, name: str) -> response_bodies.Model:
        """Return the model of that name.

        Raises:
            ModelNotFound: there is none, or the caller may not use it.
        """
        for model in self.models:
            if model.id == name:
                return model
        raise unknown_model(name, [model.id for model in self.models])


Answer = Callable[[ModelQuestion], msgspec.Struct]
"""Answers a question about models."""
