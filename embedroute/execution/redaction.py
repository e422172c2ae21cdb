"""Removes secrets from messages and debug output: an upstream may echo the key it received."""

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, cast
from urllib.parse import quote, unquote

import msgspec

from embedroute.backend import Secret, behind
from embedroute.text import printable

MASK: Final = "[redacted]"

MIN_FRAGMENT: Final = 8
"""Any run of this many characters of a key is hidden: upstreams mask a key but repeat its ends."""

MOST_READ: Final = 20_000
"""Characters of an upstream's message that are processed; the rest is dropped."""

OWN_WORDS: Final = re.compile(r"The (?:upstream|backend)(?: answered [0-9]{3})?(?!\w)")
_CREDENTIALS: Final = re.compile(r"""(?<=://)[^/\s"'<>]+(?=@)""")
_CREDENTIALS_OF_URL: Final = re.compile("(?<=://)[^/]+(?=@)")
_USER_INFO: Final = re.compile("(?<=://)[^/]*@")

Redactor = Callable[[str], str]
"""Returns a text without secrets."""


def list_secrets(options: msgspec.Struct) -> list[str]:
    """List the secrets in a backend's options and in their tables, the longest first.

    A secret is a ``Secret``, or the credentials in a URL.
    """
    secrets: list[str] = []
    for option in msgspec.structs.astuple(options):
        is_table = isinstance(option, Mapping)
        for value in cast("Mapping[str, object]", option).values() if is_table else [option]:
            secrets += _secrets_in(value)
    return sorted(secrets, key=len, reverse=True)


def _secrets_in(value: object) -> Iterable[str]:
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, str) and (found := _CREDENTIALS_OF_URL.search(value)):
        for credentials in (found[0], unquote(found[0])):
            yield from (credentials, credentials.partition(":")[2])


def public_url(url: str, secrets: Sequence[str]) -> str:
    """Return a URL for log lines: without user info, query, fragment and ``secrets``."""
    without_query = url.partition("#")[0].partition("?")[0]
    return make_redactor(secrets)(_USER_INFO.sub("", without_query))


def redact_message(text: str, secrets: Sequence[str]) -> str:
    """Return an error message for the client: without ``secrets``, printable and shortened.

    The gateway's own words at the start are not hidden: they appear with every key, so they reveal
    nothing about a key that contains them. A run that begins in them and ends after them is hidden.
    """
    own_words = OWN_WORDS.match(text)
    redact = make_redactor(secrets, own_words.end() if own_words else 0)
    return printable(redact(text[:MOST_READ]))


def mentions(error: BaseException, secrets: Sequence[str]) -> bool:
    """Return whether the text of an exception, or of one in its chain, holds a secret."""
    text = repr(behind(error))
    return make_redactor(secrets)(text) != text


def make_redactor(secrets: Sequence[str], own: int = 0) -> Redactor:
    """Return a function that removes ``secrets`` and the credentials of URLs from texts.

    It hides each run of ``MIN_FRAGMENT`` characters of a secret (plain, base64 or percent-encoded),
    and each shorter secret that is a whole word. The first ``own`` characters are the gateway's own
    words: what lies within them is not hidden.
    """
    runs = {run for secret in secrets for form in _encodings(secret) for run in _runs(form)}
    short = [secret for secret in secrets if 0 < len(secret) < MIN_FRAGMENT]
    patterns = [_CREDENTIALS, *(re.compile(_whole_word(secret)) for secret in short)]

    def redact(text: str) -> str:
        spans = [match.span() for pattern in patterns for match in pattern.finditer(text)]
        if runs:
            found = [start for start, run in enumerate(_runs(text)) if run in runs]
            spans += [(start, start + MIN_FRAGMENT) for start in found]
        parts: list[str] = []
        position = 0
        for start, end in sorted(span for span in spans if span[1] > own):
            if start > position or not parts:  # otherwise the last mask covers this span too
                parts += [text[position:start], MASK]
            position = max(position, end)
        return "".join([*parts, text[position:]])

    return redact


def _runs(text: str) -> Iterable[str]:
    return (text[end - MIN_FRAGMENT : end] for end in range(MIN_FRAGMENT, len(text) + 1))


def _encodings(secret: str) -> Sequence[str]:
    raw = secret.encode(errors="replace")
    percent = "%" + raw.hex("%")
    # The base64 form depends on how many bytes precede the key in its group of three.
    base64 = [b64encode(bytes(offset) + raw).decode() for offset in range(3)]
    urlsafe = [form.replace("+", "-").replace("/", "_") for form in base64]
    return [secret, quote(raw, safe=""), percent, percent.upper(), *base64, *urlsafe]


def _whole_word(secret: str) -> str:
    # An end of the secret that is not a word character needs no boundary.
    return rf"(?:(?<!\w)|(?!\w)){re.escape(secret)}(?:(?!\w)|(?<!\w))"
