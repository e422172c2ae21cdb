"""Takes secrets out of what debug and errors show: an upstream may echo the key it was sent."""

import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, cast
from urllib.parse import quote, unquote

import msgspec

from embedroute.backend import BackendBase, Secret, UpstreamReply, UpstreamRequest
from embedroute.journal import Journal
from embedroute.secret import behind
from embedroute.wording import printable

RUN = 8
"""Characters of a key, in a row, that are not shown; upstreams that mask the rest of a key repeat its ends."""

MASK = "[redacted]"

MOST_READ = 20_000
"""Characters of an upstream's message that are looked at."""

LONGEST_CAPTURE = 1_000_000
"""Bytes of an upstream's body that debug shows."""

PLAIN: Final = frozenset(
    {"model", "encoding_format", "dimensions", "object", "type", "code", "input_type", "outputDimensionality"}
)
"""Fields whose text says nothing of the input, so that a summary may show it."""

Hide = Callable[[str], str]
"""Takes secrets out of a text."""

OWN_WORDS: Final = re.compile(r"The (?:upstream|backend)(?: answered [0-9]{3})?(?!\w)")
"""How the gateway's own messages of a failure begin; what comes after may be an upstream's."""

_CREDENTIALS = re.compile(r"""(?<=://)[^/\s"'<>]+(?=@)""")
"""Those of an address inside a text."""
_USER_INFO = re.compile("(?<=://)[^/]+(?=@)")
"""Those of a text that is an address."""


def secrets_of(options: msgspec.Struct) -> list[str]:
    """Every secret that a backend's options hold, as themselves, as values of a table, or in a URL; the longest first."""
    held = [
        one
        for value in msgspec.structs.astuple(options)
        for one in (cast("Mapping[str, object]", value).values() if isinstance(value, Mapping) else (value,))
    ]
    return sorted((secret for one in held for secret in _secrets_in(one)), key=len, reverse=True)


def _secrets_in(value: object) -> Iterator[str]:
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, str) and (found := _USER_INFO.search(value)):
        for written in (found[0], unquote(found[0])):
            yield written
            yield written.partition(":")[2]


def scrub(text: str, secrets: Sequence[str]) -> str:
    """Word a failure for a client: ``secrets`` are hidden first, then it is made printable and cut.

    A key may hold one of our own words; they stand there whatever the key is, so they tell nothing of it.
    """
    own = OWN_WORDS.match(text)
    return printable(hiding(secrets, own.end() if own else 0)(text[:MOST_READ]))


def mentions(error: BaseException, secrets: Sequence[str]) -> bool:
    """Whether the text of an exception, or of one behind it, holds a secret."""
    text = repr(behind(error))
    return hiding(secrets)(text) != text


def hiding(secrets: Sequence[str], own: int = 0) -> Hide:
    """Prepare to take ``secrets`` out of many texts.

    Hidden is any run of ``RUN`` characters of one, be it as it is, in base64 or percent-encoded; a shorter one where
    it is no part of a longer word; and credentials inside URLs. What lies within the first ``own`` characters is shown.
    """
    runs = {form[at : at + RUN] for secret in secrets for form in _forms(secret) for at in range(len(form) - RUN + 1)}
    short = sorted({secret for secret in secrets if 0 < len(secret) < RUN}, key=len, reverse=True)
    return partial(_hidden, frozenset(runs), re.compile("|".join(map(_as_word, short))) if short else _CREDENTIALS, own)


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
    marks = [(at, at + RUN) for at in range(len(text) - RUN + 1) if text[at : at + RUN] in runs] if runs else []
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


def capture(
    journal: Journal, provider: str, backend: BackendBase, request: UpstreamRequest, reply: UpstreamReply | None
) -> None:
    """Keep one exchange for debug: headers from the struct's own marking of secrets, bodies scrubbed besides."""
    hide = hiding(secrets_of(backend))
    if journal.sent is not None:
        headers = {name: MASK if isinstance(value, Secret) else value for name, value in request.headers.items()}
        body = _body(request.content, hide, full=journal.full)
        journal.sent.append({"provider": provider, "url": hide(request.url), "headers": headers, "body": body})
    if journal.got is not None and reply is not None:
        journal.got.append(
            {"provider": provider, "status": reply.status, "body": _body(reply.content, hide, full=journal.full)}
        )


def _body(content: bytes, hide: Hide, *, full: bool) -> object:
    text = content[:LONGEST_CAPTURE].decode(errors="replace")
    try:
        body = msgspec.json.decode(text)
        return _mapped(body, hide) if full else _outline(body, "", hide)
    except (msgspec.MsgspecError, RecursionError):
        return hide(text) if full else f"[{len(text)} characters]"


def _mapped(value: object, hide: Hide) -> object:
    """Hide what is secret in every text of a body, names of fields and long numbers included."""
    if isinstance(value, dict):
        return {hide(key): _mapped(inner, hide) for key, inner in cast("dict[str, object]", value).items()}
    if isinstance(value, list):
        return [_mapped(inner, hide) for inner in cast("list[object]", value)]
    if isinstance(value, str):
        return hide(value)
    return _number(value, hide)


def _number(value: object, hide: Hide) -> object:
    # A key may be all digits, and an upstream may repeat it as a number.
    if not isinstance(value, int) or abs(value) < 10 ** (RUN - 1):
        return value
    shown = hide(str(value))
    return value if shown == str(value) else shown


def _outline(value: object, name: str, hide: Hide) -> object:
    """Keep the shape of a body and drop what the input could stand in."""
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        return {hide(key): _outline(inner, key, hide) for key, inner in fields.items()}
    if isinstance(value, list):
        return f"[{len(cast('list[object]', value))} items]"
    if isinstance(value, str):
        return hide(value) if name in PLAIN else f"[{len(value)} characters]"
    return _number(value, hide)
