"""Takes secrets out of what debug and errors show: an upstream may echo the key it was sent."""

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
"""Characters of a key, in a row, that are not shown; upstreams that mask the rest of a key repeat its ends."""

MASK = "[redacted]"

MOST_READ = 20_000
"""Characters of an upstream's message that are looked at."""

LONGEST_CAPTURE = 1_000_000
"""Bytes of all the bodies sent upstream for a request that debug shows; and of all that came back."""

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
"""Fields whose text says nothing of the input, so that a summary may show it."""

KEPT_AT_ONCE: Final = 1 << 14
"""Bytes of a body up to which ``capture`` takes some milliseconds at most; a larger one is read in a worker thread."""

Redactor = Callable[[str], str]
"""Takes secrets out of a text."""

OWN_WORDS: Final = re.compile(r"The (?:upstream|backend)(?: answered [0-9]{3})?(?!\w)")
"""How the gateway's own messages of a failure begin; what comes after may be an upstream's."""

_CREDENTIALS = re.compile(r"""(?<=://)[^/\s"'<>]+(?=@)""")
"""Those of an address inside a text."""
_USER_INFO = re.compile("(?<=://)[^/]+(?=@)")
"""Those of a text that is an address."""


def list_secrets(options: msgspec.Struct) -> list[str]:
    """Every secret that a backend's options hold, as themselves, as values of a table, or in a URL; the longest first."""
    held = [
        one
        for value in msgspec.structs.astuple(options)
        for one in (
            cast("Mapping[str, object]", value).values() if isinstance(value, Mapping) else (value,)
        )
    ]
    return sorted((secret for one in held for secret in _secrets_in(one)), key=len, reverse=True)


def _secrets_in(value: object) -> Iterator[str]:
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, str) and (found := _USER_INFO.search(value)):
        for written in (found[0], unquote(found[0])):
            yield written
            yield written.partition(":")[2]


def redact_message(text: str, secrets: Sequence[str]) -> str:
    """Word a failure for a client: ``secrets`` are hidden first, then it is made printable and cut.

    A key may hold one of our own words; they stand there whatever the key is, so they tell nothing of it.
    """
    own = OWN_WORDS.match(text)
    return printable(make_redactor(secrets, own.end() if own else 0)(text[:MOST_READ]))


def mentions(error: BaseException, secrets: Sequence[str]) -> bool:
    """Whether the text of an exception, or of one behind it, holds a secret."""
    text = repr(behind(error))
    return make_redactor(secrets)(text) != text


def make_redactor(secrets: Sequence[str], own: int = 0) -> Redactor:
    """Prepare to take ``secrets`` out of many texts.

    Hidden is any run of ``MIN_FRAGMENT`` characters of one, be it as it is, in base64 or percent-encoded; a shorter one where
    it is no part of a longer word; and credentials inside URLs. What lies within the first ``own`` characters is shown.
    """
    runs = {
        form[at : at + MIN_FRAGMENT]
        for secret in secrets
        for form in _forms(secret)
        for at in range(len(form) - MIN_FRAGMENT + 1)
    }
    short = sorted(
        {secret for secret in secrets if 0 < len(secret) < MIN_FRAGMENT}, key=len, reverse=True
    )
    return partial(
        _hidden,
        frozenset(runs),
        re.compile("|".join(map(_as_word, short))) if short else _CREDENTIALS,
        own,
    )


def _as_word(secret: str) -> str:
    # At an end that is no letter, digit or underscore itself, no longer word can go on.
    return rf"(?:(?<!\w)|(?!\w)){re.escape(secret)}(?:(?!\w)|(?<!\w))"


def _forms(secret: str) -> Iterator[str]:
    raw = secret.encode(errors="replace")
    yield secret
    yield quote(secret, safe="", errors="replace")
    yield "".join([f"%{byte:02X}" for byte in raw])
    yield "".join([f"%{byte:02x}" for byte in raw])
    for before, unsure in enumerate((0, 2, 3)):
        # In base64 a key looks different after one or two other bytes, whose bits share its first letters.
        told = b64encode(bytes(before) + raw)[unsure : (before + len(raw)) * 4 // 3].decode()
        yield from (told, told.translate(_URLSAFE))


_URLSAFE: Final = str.maketrans("+/", "-_")


def _hidden(runs: frozenset[str], short: re.Pattern[str], own: int, text: str) -> str:
    marks = (
        [
            (at, at + MIN_FRAGMENT)
            for at in range(len(text) - MIN_FRAGMENT + 1)
            if text[at : at + MIN_FRAGMENT] in runs
        ]
        if runs
        else []
    )
    marks += [found.span() for pattern in (short, _CREDENTIALS) for found in pattern.finditer(text)]
    marks = sorted(mark for mark in marks if mark[1] > own)
    return _without(text, marks) if marks else text


def _without(text: str, marks: Sequence[tuple[int, int]]) -> str:
    left, at = list[str](), -1
    for begin, end in marks:
        if begin > at:
            left += [text[max(at, 0) : begin], MASK]
        at = max(at, end)
    return "".join([*left, text[at:]])


def record_exchange(
    trace: RequestTrace,
    provider: str,
    backend: BackendBase,
    message: UpstreamRequest | UpstreamResponse,
) -> None:
    """Keep a request or a reply for debug: headers from the struct's own marking of secrets, bodies scrubbed besides.

    It may take a second for a large body, so that one needs a worker thread, which rests between two texts.
    """
    is_reply = isinstance(message, UpstreamResponse)
    kept = trace.received if is_reply else trace.sent
    if kept is None:
        return
    content = message.content[
        : LONGEST_CAPTURE - (trace.got_bytes if is_reply else trace.sent_bytes)
    ]
    hide = make_redactor(list_secrets(backend))
    if len(content) > KEPT_AT_ONCE:
        hide = _resting(hide)
    body = _body(content, hide, full=trace.full)
    if isinstance(message, UpstreamResponse):
        trace.got_bytes += len(content)
        kept.append({"provider": provider, "status": message.status, "body": body})
        return
    trace.sent_bytes += len(content)
    headers = {
        name: MASK if isinstance(value, Secret) else value
        for name, value in message.headers.items()
    }
    kept.append({"provider": provider, "url": hide(message.url), "headers": headers, "body": body})


def _resting(hide: Redactor) -> Redactor:
    turn = TimeSlice()

    def hidden(text: str) -> str:
        turn.yield_gil()
        return hide(text)

    return hidden


def _body(content: bytes, hide: Redactor, *, full: bool) -> object:
    text = content.decode(errors="replace")
    try:
        body = msgspec.json.decode(text)
        return _mapped(body, hide) if full else _summarize(body, "", hide)
    except (msgspec.MsgspecError, RecursionError):
        return hide(text) if full else f"[{len(text)} characters]"


def _mapped(value: object, hide: Redactor) -> object:
    """Hide what is secret in every text of a body, names of fields and long numbers included."""
    if isinstance(value, dict):
        return {
            hide(key): _mapped(inner, hide)
            for key, inner in cast("dict[str, object]", value).items()
        }
    if isinstance(value, list):
        return [_mapped(inner, hide) for inner in cast("list[object]", value)]
    if isinstance(value, str):
        return hide(value)
    return _number(value, hide)


def _number(value: object, hide: Redactor) -> object:
    # A key may be all digits, and an upstream may repeat it as a number.
    if not isinstance(value, int) or abs(value) < 10 ** (MIN_FRAGMENT - 1):
        return value
    shown = hide(str(value))
    return value if shown == str(value) else shown


def _summarize(value: object, name: str, hide: Redactor) -> object:
    """Keep the shape of a body and drop what the input could stand in."""
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        return {hide(key): _summarize(inner, key, hide) for key, inner in fields.items()}
    if isinstance(value, list):
        return f"[{len(cast('list[object]', value))} items]"
    if isinstance(value, str):
        return hide(value) if name in PLAIN else f"[{len(value)} characters]"
    return _number(value, hide)
