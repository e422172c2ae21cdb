"""Responses with status 200 and valid HTTP, but an unexpected body."""

import gzip as gz
import zlib
from functools import cache

from tests.fault_upstream.messages import whole
from tests.fault_upstream.modes import doubtful, harmless, lie
from tests.fault_upstream.truth import say, write

PAGE = b"<!DOCTYPE html><html><head><title>Welcome to nginx!</title></head><body><h1>It works</h1></body></html>"
BOMB = 1 << 30
"""Bytes that the gzip bomb unpacks to."""


@lie()
def error_in_200(_ask):
    """OpenAI's error envelope, as a success."""
    return say(
        {
            "error": {
                "message": "The engine is overloaded.",
                "type": "server_error",
                "param": None,
                "code": None,
            }
        }
    )


@lie()
def error_string_in_200(_ask):
    """An error as plain text in JSON."""
    return say({"error": "CUDA out of memory"})


@lie()
def key_in_200(ask):
    """An error that repeats the key, as a success."""
    return say(
        {
            "error": {
                "message": f"Incorrect API key provided: {ask.key}.",
                "code": "invalid_api_key",
            },
            "data": ask.key,
        }
    )


@lie()
def html_200(_ask):
    """A web page."""
    return [whole(PAGE, content_type="text/html")]


@lie()
def html_as_json(_ask):
    """A web page, labelled JSON."""
    return [whole(PAGE)]


@lie()
def empty_200(_ask):
    """An empty body."""
    return [whole(b"")]


@lie()
def no_content(_ask):
    """204, which has no body."""
    return [whole(b"", 204, content_type=None, content_length=None)]


@lie()
def json_null(_ask):
    """Null."""
    return say(None)


@lie()
def json_string(_ask):
    """A string."""
    return say("ok")


@lie()
def json_list(ask):
    """The bare list of rows, without the object around it."""
    return say(ask.rows())


@lie()
def json_lists(ask):
    """The bare vectors, as in TEI's own API."""
    return say(ask.vectors())


@lie()
def empty_object(_ask):
    """No data, no error."""
    return say({})


@lie()
def data_null(ask):
    """Data is null."""
    return say({**ask.answer(), "data": None})


@lie()
def data_object(ask):
    """Data is an object, keyed by index."""
    return say(ask.answer({str(at): row for at, row in enumerate(ask.rows())}))


@lie()
def data_string(ask):
    """Data is a string."""
    return say(ask.answer("ok"))


@lie()
def rows_are_numbers(ask):
    """Data is a list of numbers."""
    return say(ask.answer([1] * len(ask.inputs)))


@lie()
def truncated_json(ask):
    """The first two thirds of the JSON, with a length to match."""
    content = write(ask.answer())
    return [whole(content[: len(content) * 2 // 3])]


@lie()
def trailing_garbage(ask):
    """More after the JSON."""
    return [whole(write(ask.answer()) + b'{"data":[]}')]


@doubtful
def invalid_utf8(ask):
    """A string that is not UTF-8, in a field that need not be read."""
    return [whole(write(ask.answer(model="?name?")).replace(b"?name?", b"\xff\xfe"))]


@doubtful
def utf16(ask):
    """JSON in UTF-16."""
    return [whole(write(ask.answer()).decode().encode("utf-16"))]


@lie()
def deep_json(_ask):
    """A hundred thousand lists within each other, which end a recursive parser."""
    return [whole(b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}")]


@doubtful
def byte_order_mark(ask):
    """A BOM before the JSON."""
    return [whole(b"\xef\xbb\xbf" + write(ask.answer()))]


@doubtful
def duplicate_keys(ask):
    """The field data twice, first empty, then right."""
    return [whole(b'{"data":[],' + write(ask.answer())[1:])]


@harmless
def pretty_json(ask):
    """White space wherever JSON allows it."""
    return [whole(b"\r\n\t " + write(ask.answer()).replace(b":", b" :\n ") + b"\n\n")]


@doubtful
def plain_text(ask):
    """The right body, labelled as text."""
    return [whole(write(ask.answer()), content_type="text/plain; charset=utf-8")]


@doubtful
def untyped(ask):
    """The right body without a type."""
    return [whole(write(ask.answer()), content_type=None)]


@doubtful
def html_label(ask):
    """The right body, labelled as a web page."""
    return [whole(write(ask.answer()), content_type="text/html")]


@doubtful
def gzip_label(ask):
    """The right body, labelled gzip, which it is not."""
    return [whole(write(ask.answer()), content_encoding="gzip")]


@doubtful
def brotli_label(ask):
    """The right body, labelled brotli, which it is not."""
    return [whole(write(ask.answer()), content_encoding="br")]


@doubtful
def gzip(ask):
    """The right body, compressed although the request forbids it."""
    return [whole(gz.compress(write(ask.answer())), content_encoding="gzip")]


@lie()
def gzip_bomb(ask):
    """The right body and then a GiB of spaces, in a MiB of gzip."""
    return [whole(_bomb(write(ask.answer())), content_encoding="gzip")]


def _bomb(start: bytes) -> bytes:
    # After a full flush, a deflate block ends on a byte and does not depend on earlier blocks, so
    # it can be repeated. The checksum is omitted: it is checked only after everything is unpacked.
    packer = zlib.compressobj(wbits=31)
    return packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH) + _spaces() * (BOMB >> 20)


@cache
def _spaces() -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(b" " * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
