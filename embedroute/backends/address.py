"""What an address must be for ``/embeddings`` and the like to be put behind it."""

import re
from typing import Final
from urllib.parse import urlsplit

_UNWRITABLE: Final = re.compile(r"[\s?#\\\x00-\x1f\x7f]")


def check_base_url(url: str) -> None:
    """Refuse what no request could be sent to; the URL is not repeated, for it may hold a password.

    Raises:
        ValueError: it is no http or https URL, or a query or fragment would swallow what is put behind it.
    """
    wrong = bool(_UNWRITABLE.search(url)) or not _names_a_host(url)
    del url  # this frame stays with the error
    if wrong:
        raise ValueError("base_url must be http://HOST or https://HOST with at most a port and a path")


def _names_a_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
