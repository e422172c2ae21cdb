"""Reads images that are base64 ``data:`` URLs, for APIs that take the bytes of an image."""

from typing import NamedTuple

from embedroute.errors import InvalidRequest
from embedroute.inputs import ImagePart


class Image(NamedTuple):
    """An image: its media type (``image/png``) and its bytes in base64."""

    media_type: str
    payload: str


def read_image(part: ImagePart) -> Image:
    """Return the image of a part.

    Raises:
        InvalidRequest: its URL is not a base64 ``data:`` URL.
    """
    head, comma, payload = part.image_url.url.removeprefix("data:").partition(";base64,")
    if not comma:
        raise InvalidRequest(
            "This model accepts images only as base64 'data:' URLs.", param="input"
        )
    return Image(head, payload)
