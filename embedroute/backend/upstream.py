"""One exchange with an upstream, as plain values: what a backend writes and what it reads.

Plugin authors take these from :mod:`embedroute.backend`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from io import BytesIO
from typing import Any, Final, Self, TypeVar, cast

import msgspec

from embedroute.backend.secret import Secret, repr_as_in_rich, without_credentials
from embedroute.errors import InvalidUpstreamResponse
from embedroute.runtime import TimeSlice

T = TypeVar("T")

PIECE: Final = 1 << 16
"""Characters of a text that are written at a time in a large body; that takes up to 1 ms."""

_ENCODER = msgspec.json.Encoder()
_IN_PIECES: ContextVar[bool] = ContextVar("embedroute.in_pieces", default=False)


class UpstreamRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One HTTP request to an upstream; header names in lower case."""

    url: str
    content: bytes
    headers: Mapping[str, str | Secret]
    method: str = "POST"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show where it goes; not its query, headers and body, which may hold keys and inputs."""
        url = without_credentials(self.url).partition("?")[0]
        return [("method", self.method), ("url", url), ("bytes", len(self.content))]

    __repr__ = repr_as_in_rich

    @classmethod
    def json(
        cls,
        url: str,
        body: Mapping[str, object],
        *,
        bearer: Secret | None = None,
        headers: Mapping[str, str | Secret] = {},
    ) -> Self:
        """POST ``body`` as JSON; keys whose value is None are left out.

        ``headers`` that name the type of the body themselves are sent as they are. A backend that gives the same
        ``MappingProxyType`` with every request spares the engine from writing them anew.

        Raises:
            ValueError: a number in ``body`` is NaN or infinite, for which JSON has no word.
        """
        kept = {name: value for name, value in body.items() if value is not None}
        if _IN_PIECES.get():
            content, has_null = _in_pieces(kept)
        else:
            content = _ENCODER.encode(kept)
            has_null = b"null" in content
        # The encoder writes such a number as null, so nearly no body has to be searched for one.
        if has_null and (lost := next(_non_finite(msgspec.to_builtins(kept), "body"), None)):
            raise ValueError(f"{lost}, which JSON cannot say.")
        if bearer is not None and bearer.reveal():
            headers = {
                "content-type": "application/json",
                **headers,
                "authorization": Secret(f"Bearer {bearer.reveal()}"),
            }
        elif "content-type" not in headers:
            headers = {"content-type": "application/json", **headers}
        return cls(url=url, content=content, headers=headers)


def write_in_pieces(build: Callable[[], T]) -> T:
    """Call ``build`` in a worker thread that lets the event loop go on between the pieces of a large body.

    Encoding one text of 32 MiB takes up to 170 ms, in which no other thread can run.
    """
    token = _IN_PIECES.set(True)
    try:
        return build()
    finally:
        _IN_PIECES.reset(token)


def _in_pieces(body: object) -> tuple[bytes, bool]:
    """Write a body, and tell whether anything but a text in it may be null."""
    # A buffer that grows is not copied when it is given away: joining pieces would hold the loop up.
    written, null, turn = BytesIO(), False, TimeSlice()
    for piece, is_text in _pieces(body):
        written.write(piece)
        null = null or (not is_text and b"null" in piece)
        turn.yield_gil()
    return written.getvalue(), null


def _pieces(value: object) -> Iterator[tuple[bytes, bool]]:
    """Write a value as the encoder does, piece by piece; tell of each whether it is part of a text."""
    kind = type(value)
    if kind is str:
        yield from ((piece, True) for piece in _pieces_of_text(cast("str", value)))
    elif kind is dict and all(type(name) is str for name in cast("dict[object, object]", value)):
        yield from _pieces_of_object(cast("dict[str, object]", value))
    elif kind in (list, tuple) and not _holds_numbers(cast("Sequence[object]", value)):
        yield from _pieces_of_array(cast("Sequence[object]", value))
    elif isinstance(value, msgspec.Struct):
        yield from _pieces(msgspec.to_builtins(value))
    else:
        yield _ENCODER.encode(value), False


def _holds_numbers(values: Sequence[object]) -> bool:
    return len(values) > 0 and isinstance(values[0], int | float)


def _pieces_of_object(fields: Mapping[str, object]) -> Iterator[tuple[bytes, bool]]:
    yield b"{", True
    for position, (name, value) in enumerate(fields.items()):
        yield b"%b%b:" % (b"," if position else b"", _ENCODER.encode(name)), True
        yield from _pieces(value)
    yield b"}", True


def _pieces_of_array(values: Sequence[object]) -> Iterator[tuple[bytes, bool]]:
    yield b"[", True
    for position, value in enumerate(values):
        if position:
            yield b",", True
        yield from _pieces(value)
    yield b"]", True


def _pieces_of_text(text: str) -> Iterator[bytes]:
    if len(text) <= PIECE:
        yield _ENCODER.encode(text)
        return
    yield b'"'
    for start in range(0, len(text), PIECE):
        yield _ENCODER.encode(text[start : start + PIECE])[1:-1]
    yield b'"'


def _non_finite(value: object, place: str) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place} is {value}"
    elif isinstance(value, dict):
        for name, inner in cast("dict[object, object]", value).items():
            yield from _non_finite(inner, f"{place}.{name}")
    elif isinstance(value, list | tuple):
        for at, inner in enumerate(cast("list[object]", value)):
            yield from _non_finite(inner, f"{place}[{at}]")


class Headers(Mapping[str, str]):
    """An answer's headers, found without regard to case; of equal names the last one counts.

    They are decoded when one is asked for, which on a good day is never.
    """

    __slots__ = ("_decoded", "_pairs")

    def __init__(self, pairs: Iterable[tuple[str | bytes, str | bytes]]) -> None:
        """Hold the pairs as they came."""
        self._pairs = pairs
        self._decoded: dict[str, str] | None = None

    def _all(self) -> dict[str, str]:
        if self._decoded is None:
            self._decoded = {_text(name).lower(): _text(value) for name, value in self._pairs}
        return self._decoded

    def __getitem__(self, name: str) -> str:
        return self._all()[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return repr(self._all())


def _text(part: str | bytes) -> str:
    return part if isinstance(part, str) else part.decode("latin-1")


class Source:
    """Where responses came from: ``caught`` becomes true when their upstream is found to have mixed up responses."""

    __slots__ = ("caught",)

    def __init__(self) -> None:
        """Trust the responses until their upstream is caught."""
        self.caught = False


class UpstreamResponse(msgspec.Struct, frozen=True, gc=False):
    """One HTTP answer of an upstream; its headers are found without regard to case.

    ``source`` is set by the engine on a response that came over a reused connection.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    source: Source | None = None

    def __post_init__(self) -> None:
        """Read headers as HTTP does, whoever gives them."""
        if type(self.headers) is not Headers:
            msgspec.structs.force_setattr(self, "headers", Headers(self.headers.items()))

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show the status; not headers and body, in which an upstream may repeat a key or an input."""
        return [("status", self.status), ("bytes", len(self.content))]

    __repr__ = repr_as_in_rich

    def json(self, type: Any = Any) -> Any:
        """Decode the body, into ``type`` if one is given.

        Raises:
            InvalidUpstreamResponse: the body is not JSON, or not of that type.
        """
        try:
            return _get_decoder(type).decode(self.content)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidUpstreamResponse(
                f"The upstream's body is not the JSON that was due: {error}"
            ) from None


def _get_decoder(type: object) -> msgspec.json.Decoder[object]:
    """A decoder is made once for each type, of which a backend has few."""
    try:
        return _known_decoder(type)
    except TypeError:  # it cannot be hashed, or is no type, which msgspec says better
        return msgspec.json.Decoder(type)


@lru_cache(maxsize=128)
def _known_decoder(type: object) -> msgspec.json.Decoder[object]:
    return msgspec.json.Decoder(type)
