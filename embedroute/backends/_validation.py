"""What an address must be for ``/embeddings`` and the like to be put behind it.

What a header must be for a request to carry it; values are not repeated, for they may be secrets.
"""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from embedroute.backend import Secret

_UNWRITABLE: Final = re.compile(r"[\s?#\\\x00-\x1f\x7f]")


def check_base_url(url: str) -> None:
    """Refuse what no request could be sent to; the URL is not repeated, for it may hold a password.

    Raises:
        ValueError: it is no http or https URL, or a query or fragment would swallow what is put behind it.
    """
    wrong = bool(_UNWRITABLE.search(url)) or not _names_a_host(url)
    del url  # this frame stays with the error
    if wrong:
        raise ValueError(
            "base_url must be http://HOST or https://HOST with at most a port and a path"
        )


def _names_a_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0


_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_FRAMING: Final = frozenset({"connection", "content-length", "transfer-encoding", "upgrade"})


def check_values(**options: str | Secret | None) -> None:
    """Refuse options that no header could carry, each under its name.

    Raises:
        ValueError: one holds a line break, or another character that HTTP has no room for (RFC 9110 §5.5).
    """
    for name, value in options.items():
        _check_value(name, value)


def check_headers(option: str, headers: Mapping[str, str | Secret]) -> None:
    """Refuse headers that could not be sent, or that say where a request ends, which is the engine's to say.

    Raises:
        ValueError: names the header at fault.
    """
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or name.lower() in _FRAMING:
            raise ValueError(f"{option} cannot set a header {name!r}")
        _check_value(f"{option}.{name}", value)


def _check_value(name: str, value: str | Secret | None) -> None:
    fault = _find_fault(value.reveal() if isinstance(value, Secret) else value)
    if fault:  # raised here, and not where the text is a variable: frames stay with an error
        raise ValueError(f"{name} {fault}")


def _find_fault(text: str | None) -> str:
    if text and not _VALUE.fullmatch(text):
        return "holds a line break or another character that no header can carry"
    if text and text != text.strip(" \t"):
        return "has space around it, which no header can carry"
    return ""
