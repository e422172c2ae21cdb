"""An answer's headers, and which of them frame its body; pure."""

from collections.abc import Iterator, Mapping

from embedroute.errors import Unavailable
from embedroute.http import LARGEST_REPLY, refuse_compressed, too_large

RawHeaders = list[tuple[bytes, bytes]]


class Headers(Mapping[str, str]):
    """Headers, decoded when one is asked for, which on a good day is never; of equal names the last one counts."""

    __slots__ = ("_decoded", "_raw")

    def __init__(self, raw: RawHeaders) -> None:
        """Hold the pairs as they came."""
        self._raw = raw
        self._decoded: dict[str, str] | None = None

    def _all(self) -> dict[str, str]:
        if self._decoded is None:
            self._decoded = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self._raw}
        return self._decoded

    def __getitem__(self, name: str) -> str:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def length_of(headers: RawHeaders) -> int | None:
    """Read how long the body is, 0 for one in chunks; None for one that ends with its connection.

    Raises:
        BadAnswer: the body is compressed, or too large by its own word.
        Unavailable: it is transferred in a coding that nobody asked for.
    """
    found = None
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"content-length":
            found = int(value)
            if found > LARGEST_REPLY:
                raise too_large()
        elif lowered == b"transfer-encoding":
            found = 0
            if value.strip().lower() != b"chunked":
                raise Unavailable("The upstream transfers its answer in a coding that it was not asked for.")
        elif lowered == b"content-encoding":
            refuse_compressed(value.decode("latin-1"))
    return found
