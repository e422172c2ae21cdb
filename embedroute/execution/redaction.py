"""Removes secrets from errors and debug output: an upstream may echo the key it received."""

import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, cast
from urllib.parse import quote, unquote

import msgspec

from embedroute.backend import BackendBase, Secret, UpstreamRequest, UpstreamResponse, behind
from embedroute.runtime import TimeSlice
from embedroute.text import printable
from embedroute.trace import RequestTrace

MIN_FRAGMENT = 8
"""Any run of this many characters of a key is hidden: upstreams mask a key but repeat its ends."""

MASK = "[redacted]"

MOST_READ = 20_000
"""Characters of an upstream's message that are processed; the rest is dropped."""

LONGEST_CAPTURE = 1_000_000
"""Bytes of all sent bodies that the debug output of a request shows; also of all received ones."""

PLAIN: Final = frozenset(
    {
        "model",
        "encoding_format",
        "dimensions",
        "object",
        "type",
        "code",
        "input_type",
        "outputDimensionality",
    }
)
"""Fields whose text does not depend on the input, so that a summary may show it."""

KEPT_AT_ONCE: Final = 1 << 14
"""Bytes of a body that ``record_exchange`` processes on the event loop, in some milliseconds.

A larger body is processed in a worker thread.
"""

Redactor = Callable[[str], str]
"""Returns a text without secrets."""

OWN_WORDS: Final = re.compile(r"The (?:upstream|backend)(?: answered [0-9]{3})?(?!\w)")
"""The start of the gateway's own error messages; the rest of a message may be an upstream's."""

_CREDENTIALS = re.compile(r"""(?<=://)[^/\s"'<>]+(?=@)""")
"""The credentials of a URL inside a text."""
_USER_INFO = re.compile("(?<=://)[^/]+(?=@)")
"""The credentials of a text that is a URL."""


def list_secrets(options: msgspec.Struct) -> list[str]:
    """List the secrets in a backend's options, the longest first.

    A secret is a ``Secret``, a ``Secret`` in a table, or the credentials in a URL.
    """
    values = [
        value
        for option in msgspec.structs.astuple(options)
        for value in (
            cast("Mapping[str, object]", option).values()
            if isinstance(option, Mapping)
            else (option,)
        )
    ]
    secrets = (secret for value in values for secret in _secrets_in(value))
    return sorted(secrets, key=len, reverse=True)


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
    runs = {
        form[start : start + MIN_FRAGMENT]
        for secret in secrets
        for form in _forms(secret)
        for start in range(len(form) - MIN_FRAGMENT + 1)
    }
    short = sorted(
        {secret for secret in secrets if 0 < len(secret) < MIN_FRAGMENT}, key=len, reverse=True
    )
    return partial(
        _redact,
        frozenset(runs),
        re.compile("|".join(map(_as_word, short))) if short else _CREDENTIALS,
        own,
    )


def _as_word(secret: str) -> str:
    # Match the secret only as a whole word. At an end that is not a word character this is given.
    return rf"(?:(?<!\w)|(?!\w)){re.escape(secret)}(?:(?!\w)|(?<!\w))"


def _forms(secret: str) -> Iterator[str]:
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


_URLSAFE: Final = str.maketrans("+/", "-_")


def _redact(runs: frozenset[str], short: re.Pattern[str], own: int, text: str) -> str:
    spans: list[tuple[int, int]] = []
    if runs:
        spans = [
            (start, start + MIN_FRAGMENT)
            for start in range(len(text) - MIN_FRAGMENT + 1)
            if text[start : start + MIN_FRAGMENT] in runs
        ]
    spans += [match.span() for pattern in (short, _CREDENTIALS) for match in pattern.finditer(text)]
    spans = sorted(span for span in spans if span[1] > own)
    return _mask_spans(text, spans) if spans else text


def _mask_spans(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Replace each sorted span of ``text`` by the mask; overlapping spans share one mask."""
    parts: list[str] = []
    position = -1
    for start, end in spans:
        if start > position:
            parts += [text[max(position, 0) : start], MASK]
        position = max(position, end)
    return "".join([*parts, text[position:]])


def record_exchange(
    trace: RequestTrace,
    provider: str,
    backend: BackendBase,
    message: UpstreamRequest | UpstreamResponse,
) -> None:
    """Record a request or a response in the trace for debug output, without secrets.

    Headers marked as ``Secret`` are masked, and the body is redacted. A large body can take a
    second, so it belongs in a worker thread, which yields the GIL between two texts.
    """
    is_response = isinstance(message, UpstreamResponse)
    exchanges = trace.received if is_response else trace.sent
    if exchanges is None:
        return
    recorded_bytes = trace.got_bytes if is_response else trace.sent_bytes
    content = message.content[: LONGEST_CAPTURE - recorded_bytes]
    redact = make_redactor(list_secrets(backend))
    if len(content) > KEPT_AT_ONCE:
        redact = _yielding_gil(redact)
    body = _redact_body(content, redact, full=trace.full)
    if isinstance(message, UpstreamResponse):
        trace.got_bytes += len(content)
        exchanges.append({"provider": provider, "status": message.status, "body": body})
        return
    trace.sent_bytes += len(content)
    headers = {
        name: MASK if isinstance(value, Secret) else value
        for name, value in message.headers.items()
    }
    exchanges.append(
        {"provider": provider, "url": redact(message.url), "headers": headers, "body": body}
    )


def _yielding_gil(redact: Redactor) -> Redactor:
    time_slice = TimeSlice()

    def redact_and_yield(text: str) -> str:
        time_slice.yield_gil()
        return redact(text)

    return redact_and_yield


def _redact_body(content: bytes, redact: Redactor, *, full: bool) -> object:
    text = content.decode(errors="replace")
    try:
        body = msgspec.json.decode(text)
        return _redact_value(body, redact) if full else _summarize(body, "", redact)
    except (msgspec.MsgspecError, RecursionError):
        return redact(text) if full else f"[{len(text)} characters]"


def _redact_value(value: object, redact: Redactor) -> object:
    """Redact every text of a body, including field names and long numbers."""
    if isinstance(value, dict):
        return {
            redact(key): _redact_value(inner, redact)
            for key, inner in cast("dict[str, object]", value).items()
        }
    if isinstance(value, list):
        return [_redact_value(inner, redact) for inner in cast("list[object]", value)]
    if isinstance(value, str):
        return redact(value)
    return _redact_number(value, redact)


def _redact_number(value: object, redact: Redactor) -> object:
    # A key may be all digits, and an upstream may repeat it as a number.
    if not isinstance(value, int) or abs(value) < 10 ** (MIN_FRAGMENT - 1):
        return value
    redacted = redact(str(value))
    return value if redacted == str(value) else redacted


def _summarize(value: object, name: str, redact: Redactor) -> object:
    """Keep the structure of a body, and drop every value that may hold an input."""
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        return {redact(key): _summarize(inner, key, redact) for key, inner in fields.items()}
    if isinstance(value, list):
        return f"[{len(cast('list[object]', value))} items]"
    if isinstance(value, str):
        return redact(value) if name in PLAIN else f"[{len(value)} characters]"
    return _redact_number(value, redact)
