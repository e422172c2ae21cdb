"""Responses with faults in the transfer: incomplete, missing, endless or framed wrongly."""

from itertools import repeat

from tests.fault_upstream.messages import chunk, head, whole
from tests.fault_upstream.modes import FOREVER, End, doubtful, harmless, lie, stall
from tests.fault_upstream.truth import say, write

JSON = {"content_type": "application/json"}
GIB = 1 << 30
SOON = 0.01
"""Seconds in which the client reads the sent bytes, before a RST discards them."""


# Sound HTTP that is seldom seen.


@harmless
def chunked(ask):
    """In chunks of 100 bytes, with an extension and a trailer."""
    content = write(ask.answer())
    yield head(200, {**JSON, "transfer_encoding": "chunked"})
    for at in range(0, len(content), 100):
        yield chunk(content[at : at + 100]).replace(b"\r\n", b";a=b\r\n", 1)
    yield b"0\r\nx-checksum: 1\r\n\r\n"


@harmless
def until_close(ask):
    """No length: the body ends with the connection."""
    return [head(200, {**JSON, "connection": "close"}), write(ask.answer()), End.FIN]


@harmless
def dribbled(ask):
    """In twenty pieces with pauses between, the head cut anywhere."""
    content = b"".join(say(ask.answer()))
    size = len(content) // 20 + 1
    for at in range(0, len(content), size):
        yield content[at : at + size]
        yield 0.002


@harmless
def early_hints(ask):
    """103 Early Hints, then the truth."""
    return [b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n", *say(ask.answer())]


@harmless
def sets_cookie(ask):
    """The truth and a cookie, which must never come back."""
    return say(ask.answer(), set_cookie="session=of-another-tenant; Path=/")


@harmless
def closes_politely(ask):
    """The truth, and an announced close."""
    return [*say(ask.answer(), connection="close"), End.FIN]


@harmless
def close_after_response(ask):
    """The truth, and a close without notice, which may affect the next request."""
    return [*say(ask.answer()), End.FIN]


@harmless
def closed_when_reused(ask):
    """The truth on a new connection; a reused connection is closed without a byte."""
    return say(ask.answer()) if ask.nth == 1 else [End.FIN]


@harmless
def reset_when_reused(ask):
    """The truth on a new connection; a reused connection is reset without a byte."""
    return say(ask.answer()) if ask.nth == 1 else [End.RESET]


@doubtful
def answers_twice(ask):
    """The truth, and at once a second response with the vectors in reverse."""
    wrong = say(ask.answer(ask.rows(-ask.vectors())))
    return [b"".join([*say(ask.answer()), *wrong])]


@doubtful
def answers_twice_later(ask):
    """The truth, and a moment later a second response with the vectors in reverse."""
    return [*say(ask.answer()), SOON, *say(ask.answer(ask.rows(-ask.vectors())))]


# Broken off.


@lie()
def reset_before_headers(_ask):
    """RST instead of an answer."""
    return [End.RESET]


@lie()
def fin_before_headers(_ask):
    """FIN instead of an answer."""
    return [End.FIN]


@lie()
def half_headers(_ask):
    """FIN within the head."""
    return [b"HTTP/1.1 200 OK\r\ncontent-ty", End.FIN]


@lie()
def half_body_reset(ask):
    """Half of the body, then RST."""
    return [_half(ask), SOON, End.RESET]


@lie()
def half_body_fin(ask):
    """Half of the body, then FIN."""
    return [_half(ask), End.FIN]


@lie()
def chunked_truncated(ask):
    """All of the body in chunks, but never the last, empty one."""
    return [
        head(200, {**JSON, "transfer_encoding": "chunked"}),
        chunk(write(ask.answer())),
        End.FIN,
    ]


@lie()
def until_close_truncated(ask):
    """No length, and FIN after half of the body."""
    content = write(ask.answer())
    return [head(200, {**JSON, "connection": "close"}), content[: len(content) // 2], End.FIN]


def _half(ask):
    answer = b"".join(say(ask.answer()))
    return answer[: -len(write(ask.answer())) // 2]


# Never done.


@stall
def stalled(_ask):
    """No response at all."""
    return [FOREVER]


@stall
def stalled_body(ask):
    """The head, then nothing."""
    return [head(200, {**JSON, "content_length": len(write(ask.answer()))}), FOREVER]


@stall
def stalled_half_body(ask):
    """Half of the body, then nothing."""
    return [_half(ask), FOREVER]


@stall
def length_too_long(ask):
    """All of the body, with a declared length that is one byte too high."""
    content = write(ask.answer())
    return [whole(content, content_length=len(content) + 1), FOREVER]


@stall
def never_ending(_ask):
    """A space every 20 ms for ever, so that no read ever times out."""
    yield head(200, {**JSON, "transfer_encoding": "chunked"})
    for space in repeat(chunk(b" ")):
        yield space
        yield 0.02


@stall
def never_ending_head(_ask):
    """A header every 20 ms for ever."""
    yield b"HTTP/1.1 200 OK\r\n"
    for at in range(1 << 30):
        yield b"x-%d: 1\r\n" % at
        yield 0.02


@stall
def one_xx_flood(_ask):
    """102 Processing for ever."""
    for interim in repeat(b"HTTP/1.1 102 Processing\r\n\r\n" * 10):
        yield interim
        yield 0.01


# Too much.


@lie(502, 504)
def huge_body(ask):
    """A GiB, announced, that keeps coming: the right body, then spaces."""
    content = write(ask.answer())
    yield head(200, {**JSON, "content_length": GIB})
    yield content
    yield from repeat(b" " * 65536, (GIB - len(content)) // 65536)
    yield b" " * ((GIB - len(content)) % 65536)


@lie(502, 504)
def huge_chunked(ask):
    """A GiB, not announced: the right body, then spaces."""
    yield head(200, {**JSON, "transfer_encoding": "chunked"})
    yield chunk(write(ask.answer()))
    yield from repeat(chunk(b" " * 65536), GIB // 65536)
    yield chunk(b"")


@doubtful
def big_header(ask):
    """The truth, under a header of a MiB."""
    return say(ask.answer(), x_big="a" * (1 << 20))


@doubtful
def many_headers(ask):
    """The truth, under twenty thousand headers."""
    return say(ask.answer(), **{f"x_{at}": at for at in range(20_000)})


# Not HTTP.


@lie()
def bad_status_line(ask):
    """Icecast's status line."""
    return [say(ask.answer())[0].replace(b"HTTP/1.1", b"ICY", 1), End.FIN]


@lie()
def ssh_banner(_ask):
    """Another protocol."""
    return [b"SSH-2.0-OpenSSH_9.6\r\n", End.FIN]


@lie()
def length_too_short(ask):
    """A length a byte short, so the rest looks like the next answer."""
    content = write(ask.answer())
    return [whole(content, content_length=len(content) - 1)]


@lie(502, 504)
def length_negative(ask):
    """A negative length."""
    return [whole(write(ask.answer()), content_length=-5)]


@lie()
def conflicting_length(ask):
    """Two lengths, neither of them right."""
    size = len(write(ask.answer()))
    return [
        whole(write(ask.answer()), content_length=f"{size - 2}\r\ncontent-length: {size - 1}"),
        End.FIN,
    ]


@lie()
def bad_chunk_size(ask):
    """A chunk whose size is not a number."""
    return [
        head(200, {**JSON, "transfer_encoding": "chunked"}),
        b"zz\r\n",
        write(ask.answer()),
        b"\r\n0\r\n\r\n",
        End.FIN,
    ]


@doubtful
def header_injection(ask):
    """A header line without a colon and with control characters."""
    return [say(ask.answer())[0].replace(b"\r\n", b"\r\nno colon \x00 here\r\n", 1), End.FIN]
