"""Parses requests and encodes responses of HTTP/1.1. Pure functions."""

from typing import NamedTuple

REASONS = {
    200: "OK",
    204: "No Content",
    307: "Temporary Redirect",
    400: "Bad Request",
    404: "Not Found",
    429: "Too Many Requests",
}


class Message(NamedTuple):
    """A complete request, with header names in lower case and ``body`` without framing."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def take(buffer: bytearray) -> Message | None:
    """Remove the first request from ``buffer``; return None if it is not complete yet.

    Raises:
        ValueError: this is not HTTP/1.1.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    first, *lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    headers: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in lines):
        before = f"{headers[name.lower()]}, " if name.lower() in headers else ""
        headers[name.lower()] = before + value.strip(" \t")
    found = _body(buffer, end + 4, headers)
    if found is None:
        return None
    body, end = found
    del buffer[:end]
    return Message(method, path, headers, body)


def _body(buffer: bytearray, start: int, headers: dict[str, str]) -> tuple[bytes, int] | None:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return _chunks(buffer, start)
    end = start + int(headers.get("content-length", 0))
    return (bytes(buffer[start:end]), end) if len(buffer) >= end else None


def _chunks(buffer: bytearray, at: int) -> tuple[bytes, int] | None:
    parts = []
    while (line := buffer.find(b"\r\n", at)) >= 0:
        size = int(buffer[at:line].partition(b";")[0], 16)
        if size == 0:
            # Trailers end at the first empty line, which may be the one right here.
            end = buffer.find(b"\r\n\r\n", line)
            return (b"".join(parts), end + 4) if end >= 0 else None
        at = line + 2 + size + 2
        parts.append(bytes(buffer[line + 2 : at - 2]))
    return None


def head(status: int, headers: dict[str, object]) -> bytes:
    """Encode a status line and headers. ``_`` in names becomes ``-``; None omits a header."""
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}"]
    lines += [
        f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value is not None
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def whole(content: bytes, status: int = 200, **headers: object) -> bytes:
    """Encode a complete response; ``headers`` extend or override content type and length."""
    plain = {"content_type": "application/json", "content_length": len(content)}
    return head(status, {**plain, **headers}) + content


def chunk(content: bytes) -> bytes:
    """Frame one chunk; an empty one ends the body."""
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"
