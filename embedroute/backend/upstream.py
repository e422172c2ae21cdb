"""Defines the request that a backend builds and the response that it reads.

Authors of plugins import these types from :mod:`embedroute.backend`.
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
from embedroute.reasons import NOT_JSON
from embedroute.runtime import TimeSlice

T = TypeVar("T")

PIECE: Final = 1 << 16
"""Characters of a text that are encoded at a time in a large body. This takes up to 1 ms."""

TRANSPORT_HEADERS: Final = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that only the transport may set: they apply to the connection, the framing or a proxy."""

_ENCODER = msgspec.json.Encoder()
_IN_PIECES: ContextVar[bool] = ContextVar("embedroute.in_pieces", default=False)


class UpstreamRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An HTTP request to an upstream. Header names are in lower case."""

    url: str
    content: bytes
    headers: Mapping[str, str | Secret]
    method: str = "POST"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show the destination. Query, headers and body may contain keys and inputs."""
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
        """Build a POST request with ``body`` as JSON, without the fields whose value is None.

        ``headers`` are sent unchanged; ``content-type`` is added if they do not contain it. If a
        backend passes the same ``MappingProxyType`` with every request, the ``http1`` transport
        encodes its headers only once.

        Raises:
            ValueError: a number in ``body`` is NaN or infinite, which JSON cannot represent.
        """
        fields = {name: value for name, value in body.items() if value is not None}
        if _IN_PIECES.get():
            content, has_null = _encode_in_pieces(fields)
        else:
            content = _ENCODER.encode(fields)
            has_null = b"null" in content
        # The encoder writes such a number as null, so only a body with a null has to be searched.
        if has_null:
            problem = next(_non_finite(msgspec.to_builtins(fields), "body"), None)
            if problem:
                raise ValueError(f"{problem}, which JSON cannot represent.")
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
    """Call ``build`` and let ``UpstreamRequest.json`` release the GIL between pieces of a body.

    Call this in a worker thread. Encoding a text of 32 MiB at once takes up to 170 ms, in which the
    event loop cannot run.
    """
    token = _IN_PIECES.set(True)
    try:
        return build()
    finally:
        _IN_PIECES.reset(token)


def _encode_in_pieces(body: object) -> tuple[bytes, bool]:
    """Encode a body; return it and whether a value in it, other than a text, may be null."""
    # BytesIO.getvalue does not copy; joining the pieces would block the event loop.
    buffer = BytesIO()
    has_null = False
    time_slice = TimeSlice()
    for piece, is_text in _pieces(body):
        buffer.write(piece)
        has_null = has_null or (not is_text and b"null" in piece)
        time_slice.yield_gil()
    return buffer.getvalue(), has_null


def _pieces(value: object) -> Iterator[tuple[bytes, bool]]:
    """Encode a value piece by piece; yield each piece and whether it is text or syntax."""
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


def _non_finite(value: object, path: str) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{path} is {value}"
    elif isinstance(value, dict):
        for name, inner in cast("dict[object, object]", value).items():
            yield from _non_finite(inner, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(cast("list[object]", value)):
            yield from _non_finite(inner, f"{path}[{index}]")


class Headers(Mapping[str, str]):
    """The headers of a response; names are case-insensitive, and the last of equal names is used.

    They are decoded when one is read, which most successful exchanges do not need.
    """

    __slots__ = ("_decoded", "_pairs")

    def __init__(self, pairs: Iterable[tuple[str | bytes, str | bytes]]) -> None:
        """Store the pairs without decoding them."""
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
    """A mark shared by the responses of one upstream over reused connections.

    ``unreliable`` becomes true if the upstream turns out to have mixed up responses. The cache
    then drops the vectors of these responses.
    """

    __slots__ = ("unreliable",)

    def __init__(self) -> None:
        """Start as reliable."""
        self.unreliable: bool = False


class UpstreamResponse(msgspec.Struct, frozen=True, gc=False):
    """An HTTP response of an upstream. The names of its headers are case-insensitive.

    The transport sets ``source`` on a response that came over a reused connection.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    source: Source | None = None

    def __post_init__(self) -> None:
        """Make the header names case-insensitive."""
        if type(self.headers) is not Headers:
            msgspec.structs.force_setattr(self, "headers", Headers(self.headers.items()))

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show the status. An upstream may repeat a key or an input in headers and body."""
        return [("status", self.status), ("bytes", len(self.content))]

    __repr__ = repr_as_in_rich

    def json(self, type: Any = Any) -> Any:
        """Decode the body as ``type``, a type that msgspec supports.

        Raises:
            InvalidUpstreamResponse: the body is not valid JSON, or does not match ``type``.
        """
        try:
            return _get_decoder(type).decode(self.content)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidUpstreamResponse(
                f"The upstream's response body is not the expected JSON: {error}", reason=NOT_JSON
            ) from None


def _get_decoder(type: object) -> msgspec.json.Decoder[object]:
    """Return the cached decoder of a type."""
    try:
        return _get_cached_decoder(type)
    except TypeError:  # not hashable, or not a type; msgspec's own error explains the latter
        return msgspec.json.Decoder(type)


@lru_cache(maxsize=128)
def _get_cached_decoder(type: object) -> msgspec.json.Decoder[object]:
    return msgspec.json.Decoder(type)
