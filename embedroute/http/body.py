"""The body of an answer as it comes in."""

from io import BytesIO


class Body:
    """The pieces of one body, copied once each; nearly all bodies are one piece, which is not."""

    __slots__ = ("_first", "_rest")

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._first = b""
        self._rest: BytesIO | None = None

    def add(self, piece: bytes, length: int) -> None:
        """Add the next piece of a body of ``length`` bytes, 0 if nobody said how many."""
        if not self._first:
            self._first = piece
        elif self._rest is None:
            # Memory that is not touched yet, and given away without a copy: joining pieces would hold the loop up.
            self._rest = BytesIO(bytes(length))
            self._rest.write(self._first + piece)
        else:
            self._rest.write(piece)

    def take(self) -> bytes:
        """Give the whole body away."""
        whole = self._rest.getvalue() if self._rest else self._first
        self._first, self._rest = b"", None
        return whole
