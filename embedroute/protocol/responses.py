"""Defines the result of a request, and encodes its vectors."""

from collections.abc import Iterator, Sequence

import msgspec

from embedroute import vectors
from embedroute.protocol.bodies import Embedding
from embedroute.runtime import LARGE, groups
from embedroute.trace import RequestTrace
from embedroute.vectors import Array


class Embeddings(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The result of one request.

    ``rows`` are n arrays of shape (d,), row i for input i. ``model`` names the vector space.
    """

    rows: Sequence[Array]
    model: str
    prompt_tokens: int
    trace: RequestTrace

    @property
    def vectors(self) -> Array:
        """The rows as one array of shape (n, d)."""
        return vectors.stack(self.rows)

    @property
    def large(self) -> bool:
        """Whether the body is so large that it must be written in steps."""
        return len(self.rows) * self.rows[0].nbytes >= LARGE

    @property
    def providers(self) -> Sequence[str]:
        """The providers of the vectors; empty if all came from the cache."""
        return tuple(self.trace.providers)


ENCODER = msgspec.json.Encoder(decimal_format="string")
"""Encodes all response bodies; prices become strings, so that no JSON parser rounds them."""


# The JSON around a vector and its index, as the encoder writes it in small responses.
_BEFORE_VECTOR, _, _AFTER_VECTOR = ENCODER.encode(
    Embedding(embedding=msgspec.Raw(b"7"), index=0, object="embedding")
).partition(b"7")
_BEFORE_INDEX, _, _AFTER_INDEX = _AFTER_VECTOR.partition(b"0")


def iter_body(envelope: bytes, rows: Sequence[Array], *, base64: bool) -> Iterator[bytes]:
    """Yield the pieces of a body; ``envelope`` is the body with an empty list of vectors.

    Pieces save the memory and time to copy them into one body.
    """
    before, brackets, after = envelope.partition(b"[]")
    write = vectors.to_base64 if base64 else vectors.to_json
    yield before + brackets[:1]
    for group in groups(len(rows)):
        pieces = list[bytes]()
        for index, row in enumerate(rows[group], group.start):
            pieces += (
                b"," + _BEFORE_VECTOR if index else _BEFORE_VECTOR,
                write(row),
                b"%b%d%b" % (_BEFORE_INDEX, index, _AFTER_INDEX),
            )
        yield b"".join(pieces)
    yield brackets[1:] + after


def encode_rows(rows: Sequence[Array], *, base64: bool) -> list[Embedding]:
    """Encode n arrays of shape (d,), in order, each with its ``index``."""
    write = vectors.to_base64 if base64 else vectors.to_json
    return [
        Embedding(msgspec.Raw(write(row)), index, "embedding") for index, row in enumerate(rows)
    ]
