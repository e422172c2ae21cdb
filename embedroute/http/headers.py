"""What the status lines and headers of a response say about its framing; pure."""

import re
from typing import Final

from embedroute.errors import Unavailable
from embedroute.http import LARGEST_HEAD, LARGEST_REPLY, MOST_HEADERS, head_too_large, refuse_compressed, too_large

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-9])[0-9]{2}(?: [\t -~\x80-\xff]*)?\r\n")

RawHeaders = list[tuple[bytes, bytes]]


def has_sound_status_lines(head: bytes) -> bool:
    """Tell whether the status lines of a response, and of 1xx responses before it, are those of HTTP/1.0 or HTTP/1.1.

    llhttp reads RTSP and ICE responses too, those of HTTP/0.9 and HTTP/2.0, and control characters in a reason.
    ``head`` begins with the first status line and holds the last response's head.
    """
    start = 0
    while line := _STATUS_LINE.match(head, start):
        if line[1] != b"1":
            return True
        start = head.find(b"\r\n\r\n", start) + 4
    return False


def length_of(headers: RawHeaders, heard: int = 0, largest: int = LARGEST_REPLY) -> int | None:
    """Read how long the body is, 0 for one in chunks; None for one that ends with its connection.

    ``heard`` is how many bytes have come so far, the headers among them.

    Raises:
        BadAnswer: the body is compressed, or too large by its own word.
        Unavailable: it is transferred in a coding that nobody asked for, or the headers are too many or too large.
    """
    if heard > LARGEST_HEAD and sum(len(name) + len(value) for name, value in headers) > LARGEST_HEAD:
        raise head_too_large()
    if len(headers) > MOST_HEADERS:
        raise Unavailable(f"The upstream's answer has more than {MOST_HEADERS} headers.")
    found = None
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"content-length":
            found = int(value)
            if found > largest:
                raise too_large(largest)
        elif lowered == b"transfer-encoding":
            found = 0
            if value.strip().lower() != b"chunked":
                raise Unavailable("The upstream transfers its answer in a coding that it was not asked for.")
        elif lowered == b"content-encoding":
            refuse_compressed(value.decode("latin-1"))
    return found
