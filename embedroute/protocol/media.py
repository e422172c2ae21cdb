"""Which image URLs are let through: strict ``data:`` images, and ``https:`` to listed hosts; nothing is fetched."""

import binascii
import re
from collections.abc import Collection, Generator, Mapping
from typing import Final

from embedroute.errors import InvalidRequest
from embedroute.runtime import finished

LARGEST_IMAGE = 20 * 1024 * 1024
"""Bytes of an image inside a ``data:`` URL."""
LONGEST_URL = 8 * 1024
"""Characters of an ``https:`` URL."""
PIECE: Final = 1 << 18
"""Characters of base64 that are decoded at a time."""

_BASE64 = ";base64,"
_LONGEST_HEAD = 64

MAGIC: Final[Mapping[str, re.Pattern[bytes]]] = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "image/gif": re.compile(rb"GIF8[79]a"),
}
"""Media type → how such a file begins."""

_HTTPS = re.compile(
    r"https://([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::443)?(?:[/?#][\x21-\x5b\x5d-\x7e]*)?", re.ASCII
)
_ADDRESS = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*")


def check_media(url: str, domains: Collection[str], param: str) -> None:
    """Let a media URL pass, or say why not; ``domains`` are the hosts that config lists, in lower case.

    Raises:
        InvalidRequest: code ``invalid_media_url``.
    """
    finished(check_media_in_steps(url, domains, param))


def check_media_in_steps(
    url: str, domains: Collection[str], param: str
) -> Generator[None, None, None]:
    """Do the same in steps: an image may have 20 MiB.

    Raises:
        InvalidRequest: code ``invalid_media_url``.
    """
    fault = (yield from _data_fault(url)) if url.startswith("data:") else _https_fault(url, domains)
    if fault:
        raise InvalidRequest(f"'{param}' {fault}", param=param, code="invalid_media_url")


def _data_fault(url: str) -> Generator[None, None, str | None]:
    start = url.find(_BASE64, 0, _LONGEST_HEAD) + len(_BASE64)
    media_type = url[len("data:") : start - len(_BASE64)]
    if start < len(_BASE64) or media_type not in MAGIC:
        return f"must be base64 of one of {', '.join(MAGIC)}."
    length = len(url) - start
    if length // 4 * 3 - url[max(start, len(url) - 2) :].count("=") > LARGEST_IMAGE:
        return f"holds an image over {LARGEST_IMAGE} bytes."
    if length % 4 or url.endswith("==="):  # which binascii's strict mode lets pass
        return "is not strict base64."
    return (yield from _image_fault(url, start, media_type))


def _image_fault(url: str, start: int, media_type: str) -> Generator[None, None, str | None]:
    other = f"does not begin as {media_type} does."
    for at in range(start, len(url), PIECE):
        piece = url[at : at + PIECE]
        if piece.endswith("=") and at + PIECE < len(url):
            return "is not strict base64."
        try:
            image = binascii.a2b_base64(piece, strict_mode=True)
        except (ValueError, UnicodeEncodeError):
            return "is not strict base64."
        if at == start and not MAGIC[media_type].match(image):
            return other
        yield
    return None if len(url) > start else other


def _https_fault(url: str, domains: Collection[str]) -> str | None:
    if len(url) > LONGEST_URL:
        return f"is longer than {LONGEST_URL} characters."
    if not url.isascii():  # before lower(), which folds the Kelvin sign to an ASCII k
        return "must be ASCII; write a host's name in punycode and percent-encode the rest."
    scheme, separator, rest = url.partition("://")
    host, slash, tail = rest.partition("/")
    lowered = scheme.lower() + separator + host.lower() + slash + tail
    found = _HTTPS.fullmatch(lowered)
    if not found or _ADDRESS.fullmatch(found[1]):
        return "must be a data: URL, or https: to a host by name, on port 443, without user info."
    return (
        None
        if found[1] in domains
        else "names a host that this gateway does not list in media_domains."
    )
