"""Removes secrets from error messages: an upstream may echo the key it received."""

import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, cast
from urllib.parse import quote, unquote

import msgspec

from embedroute.backend import Secret, behind
from embedroute.text import printable

MIN_FRAGMENT = 8
"""Any run of this many characters of a key is hidden: upstreams mask a key but repeat its ends."""

MASK = "[redacted]"

MOST_READ = 20_000
"""Characters of an upstream's message that are processed; the rest is dropped."""

Redactor = Callable[[str], str]
"""Returns a text without secrets."""

OWN_WORDS: Final = re.compile(r"The (?:upstream|backend)(?: answered [0-9]{3})?(?!\w)")
"""The start of the gateway's own error messages; the rest of a message may be an upstream's."""

_CREDENTIALS: Final = re.compile(r"""(?<=://)[^/\s"'<>]+(?=@)""")
"""The credentials of a URL inside a text."""
_USER_INFO: Final = re.compile("(?<=://)[^/]+(?=@)")
"""The credentials of a text that is a URL."""
_URLSAFE: Final = str.maketrans("+/", "-_")


def list_secrets(options: msgspec.Struct) -> list[str]:
    """List the secrets in a backend's options, the longest first.

    A secret is a ``Secret``, a ``Secret`` in a table, or the credentials in a URL.
    """
    values: list[object] = []
    for option in msgspec.structs.astuple(options):
        table = (
            cast("Mapping[str, object]", option) if isinstance(option, Mapping) else {"": option}
        )
        values += table.values()
    return sorted([text for value in values for text in _secrets_in(value)], key=len, reverse=True)


def _secrets_in(value: object) -> Iterator[str]:
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, str) and (match := _USER_INFO.search(value)):
        for user_info in (match[0], unquote(match[0])):
            yield user_info
            yield user_info.partition(":")[2]


def redact_message(text: str, secrets: Sequence[str]) -> str:
    """Return an error message for the client: without ``secrets``, printable and shortened.

    The start of the gateway's own messages is never hidden. A key may contain these words, but they
    appear with every key, so showing them reveals nothing.
    """
    own_words = OWN_WORDS.match(text)
    redact = make_redactor(secrets, own_words.end() if own_words else 0)
    return printable(redact(text[:MOST_READ]))


def mentions(error: BaseException, secrets: Sequence[str]) -> bool:
    """Return whether the text of an exception, or of one in its chain, holds a secret."""
    text = repr(behind(error))
    return make_redactor(secrets)(text) != text


def make_redactor(secrets: Sequence[str], own: int = 0) -> Redactor:
    """Return a function that removes ``secrets`` from texts.

    It hides each run of ``MIN_FRAGMENT`` characters of a secret (plain, base64 or percent-encoded),
    each shorter secret that is a whole word, and credentials in URLs. The first ``own`` characters
    of a text are not changed.
    """
    runs = {run for secret in secrets for form in _encodings(secret) for run in _runs(form)}
    short = sorted([secret for secret in secrets if 0 < len(secret) < MIN_FRAGMENT], key=len)
    patterns = [_CREDENTIALS]
    if short:
        patterns.append(re.compile("|".join(map(_as_word, reversed(short)))))

    def redact(text: str) -> str:
        spans = [match.span() for pattern in patterns for match in pattern.finditer(text)]
        if runs:
            found = enumerate(_runs(text))
            spans += [(start, start + MIN_FRAGMENT) for start, run in found if run in runs]
        return _mask(text, sorted(span for span in spans if span[1] > own))

    return redact


def _runs(text: str) -> Iterator[str]:
    return (text[end - MIN_FRAGMENT : end] for end in range(MIN_FRAGMENT, len(text) + 1))


def _encodings(secret: str) -> Iterator[str]:
    raw = secret.encode(errors="replace")
    yield secret
    yield quote(secret, safe="", errors="replace")
    yield "".join([f"%{byte:02X}" for byte in raw])
    yield "".join([f"%{byte:02x}" for byte in raw])
    for offset, mixed in enumerate((0, 2, 3)):
        # The base64 form depends on how many bytes precede the key in its group of three. The
        # first ``mixed`` characters also encode bits of those bytes, so they are skipped.
        encoded = b64encode(bytes(offset) + raw)[mixed : (offset + len(raw)) * 4 // 3].decode()
        yield from (encoded, encoded.translate(_URLSAFE))


def _as_word(secret: str) -> str:
    # Match the secret only as a whole word. At an end that is not a word character this is given.
    return rf"(?:(?<!\w)|(?!\w)){re.escape(secret)}(?:(?!\w)|(?<!\w))"


def _mask(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Replace each sorted span of ``text`` by the mask; overlapping spans share one mask."""
    parts: list[str] = []
    position = -1
    for start, end in spans:
        if start > position:
            parts += [text[max(position, 0) : start], MASK]
        position = max(position, end)
    return "".join([*parts, text[max(position, 0) :]])
