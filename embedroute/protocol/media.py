"""Validates image URLs: strict ``data:`` images, and ``https:`` URLs of allowed hosts.

The gateway never downloads an image.
"""

import binascii
import re
from collections.abc import Collection, Generator, Mapping
from typing import Final

from embedroute.errors import InvalidRequest
from embedroute.runtime import finished

LARGEST_IMAGE = 20 * 1024 * 1024
"""Maximum bytes of the image in a ``data:`` URL."""
LONGEST_URL = 8 * 1024
"""Maximum characters of an ``https:`` URL."""
PIECE: Final = 1 << 18
"""Characters of base64 that are decoded in one step."""

_BASE64 = ";base64,"
_LONGEST_HEAD = 64

MAGIC: Final[Mapping[str, re.Pattern[bytes]]] = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "image/gif": re.compile(rb"GIF8[79]a"),
}
"""Media type → first bytes of such a file."""

_HTTPS = re.compile(
    r"https://([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::443)?(?:[/?#][\x21-\x5b\x5d-\x7e]*)?", re.ASCII
)
_ADDRESS = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*")


def check_media(url: str, domains: Collection[str], param: str) -> None:
    """Check a media URL; ``domains`` are the allowed hosts of the config, in lower case.

    Raises:
        InvalidRequest: the URL is not allowed; the code is ``invalid_media_url``.
    """
    finished(check_media_in_steps(url, domains, param))


def check_media_in_steps(
    url: str, domains: Collection[str], param: str
) -> Generator[None, None, None]:
    """Check a media URL in steps, as an image may have 20 MiB.

    Raises:
        InvalidRequest: the URL is not allowed; the code is ``invalid_media_url``.
    """
    if url.startswith("data:"):
        problem = yield from _check_data_url(url)
    else:
        problem = _check_https_url(url, domains)
    if problem:
        raise InvalidRequest(f"'{param}' {problem}", param=param, code="invalid_media_url")


def _check_data_url(url: str) -> Generator[None, None, str | None]:
    """Return what is wrong with a ``data:`` URL, or None."""
    start = url.find(_BASE64, 0, _LONGEST_HEAD) + len(_BASE64)
    media_type = url[len("data:") : start - len(_BASE64)]
    if start < len(_BASE64) or media_type not in MAGIC:
        return f"must be a base64 data: URL with one of these media types: {', '.join(MAGIC)}."
    length = len(url) - start
    padding = url[max(start, len(url) - 2) :].count("=")
    if length // 4 * 3 - padding > LARGEST_IMAGE:
        return f"holds an image of more than {LARGEST_IMAGE} bytes."
    if length % 4 or url.endswith("==="):  # binascii's strict mode accepts both
        return "is not strict base64."
    return (yield from _check_image(url, start, media_type))


def _check_image(url: str, start: int, media_type: str) -> Generator[None, None, str | None]:
    wrong_type = f"does not begin with the signature of {media_type}."
    for position in range(start, len(url), PIECE):
        piece = url[position : position + PIECE]
        if piece.endswith("=") and position + PIECE < len(url):
            return "is not strict base64."
        try:
            image = binascii.a2b_base64(piece, strict_mode=True)
        except (ValueError, UnicodeEncodeError):
            return "is not strict base64."
        if position == start and not MAGIC[media_type].match(image):
            return wrong_type
        yield
    return None if len(url) > start else wrong_type


def _check_https_url(url: str, domains: Collection[str]) -> str | None:
    """Return what is wrong with an ``https:`` URL, or None."""
    if len(url) > LONGEST_URL:
        return f"is longer than {LONGEST_URL} characters."
    if not url.isascii():  # checked before lower(), which turns the Kelvin sign into an ASCII k
        return "must be ASCII. Write the host name in punycode and percent-encode the rest."
    scheme, separator, rest = url.partition("://")
    host, slash, tail = rest.partition("/")
    lowered = scheme.lower() + separator + host.lower() + slash + tail
    match = _HTTPS.fullmatch(lowered)
    if not match or _ADDRESS.fullmatch(match[1]):
        return (
            "must be a data: URL, or an https: URL with a host name (no IP address), port 443 and "
            "no user info."
        )
    if match[1] not in domains:
        return "names a host that is not listed in this gateway's media_domains."
    return None
