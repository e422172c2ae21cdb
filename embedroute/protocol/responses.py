"""Defines the result of a request, and encodes its vectors."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import msgspec

from embedroute import vectors
from embedroute.backend import repr_as_in_rich
from embedroute.protocol.response_bodies import Embedding
from embedroute.runtime import LARGE, groups
from embedroute.trace import RequestTrace
from embedroute.vectors import Array, FloatArray


class Embeddings(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The result of one request: ``vectors``, and what it cost.

    ``rows`` are n arrays of shape (d,), row i for input i. ``model`` names the vector space.
    ``prompt_tokens`` are the billed tokens of all inputs. ``trace`` holds the counts of the
    request, and its events if the field ``debug`` enabled them.
    """

    rows: Sequence[Array]
    model: str
    prompt_tokens: int
    trace: RequestTrace

    @property
    def vectors(self) -> FloatArray:
        """The vectors as one array of shape (n, d) and type float32, row i for input i.

        For a quantised ``output_dtype`` the numbers are int8 or uint8; ``array`` has their type.
        """
        return cast("FloatArray", self.array)

    @property
    def array(self) -> Array:
        """The vectors as one array of shape (n, d), of float32, int8 or uint8."""
        return vectors.stack(self.rows)

    def __len__(self) -> int:
        """Return the number of inputs."""
        return len(self.rows)

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show the shape and not the numbers."""
        return [
            ("model", self.model),
            ("shape", (len(self.rows), *self.rows[0].shape)),
            ("prompt_tokens", self.prompt_tokens),
            ("providers", list(self.providers)),
        ]

    __repr__ = repr_as_in_rich

    @property
    def large(self) -> bool:
        """Whether the body is so large that it must be written in steps."""
        return len(self.rows) * self.rows[0].nbytes >= LARGE

    @property
    def providers(self) -> Sequence[str]:
        """The providers of the vectors; empty if all came from the cache."""
        return tuple(self.trace.providers)

    @property
    def truncated(self) -> Sequence[int]:
        """The positions of the inputs that were longer than the model's context.

        Their vectors are those of their first part, or the mean of the vectors of all parts: see
        ``over_length`` of the model.
        """
        return self.trace.cut_inputs


WriteRow = Callable[[Array], bytes]
"""Writes one row as JSON."""

ENCODER = msgspec.json.Encoder(decimal_format="string")
"""Encodes all response bodies; prices become strings, so that no JSON parser rounds them."""


# The JSON before, between and after a vector and its index, as the encoder writes it in small
# responses: an object is encoded with the placeholders 7 and 0, and divided at them.
_BEFORE_VECTOR, _VECTOR, _AFTER_VECTOR = ENCODER.encode(
    Embedding(embedding=msgspec.Raw(b"7"), index=0, object="embedding")
).partition(b"7")
_BEFORE_INDEX, _INDEX, _AFTER_INDEX = _AFTER_VECTOR.partition(b"0")


class LargeBody:
    """The body of a large answer. It holds the arrays, and encodes them when it is iterated.

    An answer that waits for a slow client is held in this form. ``size_is_known`` is False for
    numbers as text: only encoding them shows their size.
    """

    __slots__ = ("_after", "_before", "_is_base64", "_rows", "_write")

    def __init__(
        self,
        envelope: bytes,
        rows: Sequence[Array],
        *,
        base64: bool = False,
        write: WriteRow | None = None,
    ) -> None:
        """Hold ``rows``; ``envelope`` is the body, in which the first ``[]`` is their list.

        With ``write``, an item of the list is a row that it has written, not an object.
        """
        before, brackets, after = envelope.partition(b"[]")
        self._before = before + brackets[:1]
        self._after = brackets[1:] + after
        self._rows = rows
        self._is_base64 = base64
        self._write = write

    @property
    def size_is_known(self) -> bool:
        """Whether ``sizes`` need not encode the vectors."""
        return self._is_base64

    @property
    def array_bytes(self) -> int:
        """The bytes of the arrays."""
        return sum(row.nbytes for row in self._rows)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body in pieces of a few rows."""
        write = self._write or (vectors.to_base64 if self._is_base64 else vectors.to_json)
        yield self._before
        for group in groups(len(self._rows)):
            pieces = list[bytes]()
            for index, row in enumerate(self._rows[group], group.start):
                separator = b"," if index else b""
                if self._write is not None:
                    pieces += (separator, write(row))
                    continue
                pieces += (
                    separator + _BEFORE_VECTOR,
                    write(row),
                    b"%b%d%b" % (_BEFORE_INDEX, index, _AFTER_INDEX),
                )
            yield b"".join(pieces)
        yield self._after

    def sizes(self) -> Iterator[int]:
        """Yield sizes in bytes whose sum is the size of the body; only numbers are encoded."""
        if not self._is_base64:
            yield from map(len, self)
            return
        count = len(self._rows)
        overhead = len(_BEFORE_VECTOR) + len(_BEFORE_INDEX) + len(_AFTER_INDEX)
        yield len(self._before) + len(self._after) + count * overhead + count - 1
        yield sum(len(b"%d" % index) for index in range(count))
        yield sum(map(vectors.base64_size, self._rows))


def write_rows(envelope: bytes, rows: Sequence[Array], write: WriteRow) -> tuple[bytes] | LargeBody:
    """Write ``rows`` into ``envelope`` as a list of vectors, in several pieces if it is large.

    ``envelope`` is the body of a response; its first ``[]`` is replaced.
    """
    body = LargeBody(envelope, rows, write=write)
    return body if len(rows) * rows[0].nbytes >= LARGE else (b"".join(body),)


def encode_rows(rows: Sequence[Array], *, base64: bool) -> list[Embedding]:
    """Encode n arrays of shape (d,), in order, each with its ``index``."""
    write = vectors.to_base64 if base64 else vectors.to_json
    return [
        Embedding(msgspec.Raw(write(row)), index, "embedding") for index, row in enumerate(rows)
    ]
