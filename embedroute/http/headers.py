"""Which of an answer's headers frame its body; pure."""

from embedroute.errors import Unavailable
from embedroute.http import LARGEST_HEAD, LARGEST_REPLY, head_too_large, refuse_compressed, too_large

RawHeaders = list[tuple[bytes, bytes]]


def length_of(headers: RawHeaders, heard: int = 0) -> int | None:
    """Read how long the body is, 0 for one in chunks; None for one that ends with its connection.

    ``heard`` is how many bytes have come so far, the headers among them.

    Raises:
        BadAnswer: the body is compressed, or too large by its own word.
        Unavailable: it is transferred in a coding that nobody asked for, or the headers are too large.
    """
    if heard > LARGEST_HEAD and sum(len(name) + len(value) for name, value in headers) > LARGEST_HEAD:
        raise head_too_large()
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
