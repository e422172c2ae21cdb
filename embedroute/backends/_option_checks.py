"""Validates the base URLs and headers in the options of backends, and the options of requests.

Error messages do not repeat the values, because they may contain secrets.
"""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from embedroute.backend import TRANSPORT_HEADERS, Batch, Secret
from embedroute.errors import UpstreamRejectedInput

_UNWRITABLE: Final = re.compile(r"[\s?#\\\x00-\x1f\x7f]")


def check_base_url(url: str) -> None:
    """Check that a path can be appended to ``url`` and a request sent to it.

    Raises:
        ValueError: it is not an http or https URL, or it has a query or a fragment.
    """
    is_invalid = bool(_UNWRITABLE.search(url)) or not _has_host(url)
    del url  # the traceback keeps this frame, and the URL may contain a password
    if is_invalid:
        raise ValueError(
            "base_url must be http://HOST or https://HOST with at most a port and a path"
        )


def _has_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0


_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def check_values(**options: str | Secret | None) -> None:
    """Check that each option can be sent as the value of a header.

    Raises:
        ValueError: one contains a line break or another character that RFC 9110 §5.5 forbids.
    """
    for name, value in options.items():
        _check_value(name, value)


def check_headers(option: str, headers: Mapping[str, str | Secret]) -> None:
    """Check that headers can be sent, and that they are not headers that the transport sets itself.

    Raises:
        ValueError: one is invalid; the message contains its name.
    """
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or name.lower() in TRANSPORT_HEADERS:
            raise ValueError(f"{option} cannot set a header {name!r}")
        _check_value(f"{option}.{name}", value)


def _check_value(name: str, value: str | Secret | None) -> None:
    problem = _find_problem(value.reveal() if isinstance(value, Secret) else value)
    if problem:  # not raised in _find_problem: the traceback would keep a frame with the secret
        raise ValueError(f"{name} {problem}")


def _find_problem(text: str | None) -> str:
    if text and not _VALUE.fullmatch(text):
        return "contains a line break or another character that is not allowed in a header"
    if text and text != text.strip(" \t"):
        return "has leading or trailing white space, which is not allowed in a header"
    return ""


def refuse_options(batch: Batch) -> None:
    """Refuse the options of a request that an OpenAI-compatible API does not have.

    Raises:
        UpstreamRejectedInput: the batch has one; ``param`` names it.
    """
    name = next(iter(batch.options), "truncate" if batch.truncate else None)
    if name is not None:
        raise UpstreamRejectedInput(
            f"The OpenAI-compatible API of this server has no '{name}'. Omit it.", param=name
        )
