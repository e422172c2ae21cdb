"""Reads the static files of the dashboard, which are part of the package."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final

import msgspec

TYPES: Final[Mapping[str, bytes]] = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}
"""Suffix of a file → its content type."""
PAGE: Final = "index.html"
POLICY: Final = (
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)
"""Headers of every file: the page loads nothing from elsewhere and runs no inline script."""


class Asset(msgspec.Struct, frozen=True):
    """A file and its content type."""

    content: bytes
    content_type: bytes


@cache
def read_assets() -> Mapping[str, Asset]:
    """Read all files of the dashboard."""
    folder = files("embedroute.server.dashboard") / "static"
    return {
        file.name: Asset(file.read_bytes(), TYPES[file.name.rpartition(".")[2]])
        for file in folder.iterdir()
    }


def find_asset(path: str) -> Asset | None:
    """Return the file for a path below ``/dashboard``, which is empty for the page itself.

    Only the last part counts, so that the page also works with a slash at the end of its path.
    """
    return read_assets().get(path.rpartition("/")[2] or PAGE)
