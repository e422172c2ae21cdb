"""Takes secrets out of what debug and errors show: an upstream may echo the key it was sent."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, cast

import msgspec

from embedroute.backend import BackendBase, Secret, UpstreamReply, UpstreamRequest
from embedroute.journal import Journal

AFFIX = 8
"""Characters at either end of a key that upstreams repeat when they mask the rest."""

LONGEST_CAPTURE = 1_000_000
"""Bytes of an upstream's body that debug shows."""

PLAIN: Final = frozenset(
    {"model", "encoding_format", "dimensions", "object", "type", "code", "message", "input_type", "outputDimensionality"}
)
"""Fields whose text says nothing of the input, so that a summary may show it."""

_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")


def secrets_of(options: msgspec.Struct) -> list[str]:
    """Every secret that a backend's options hold, as themselves or as the values of a table; the longest first."""
    held = [
        secret
        for value in msgspec.structs.astuple(options)
        for secret in (cast("Mapping[str, object]", value).values() if isinstance(value, Mapping) else (value,))
    ]
    return sorted((secret.reveal() for secret in held if isinstance(secret, Secret)), key=len, reverse=True)


def scrub(text: str, secrets: Sequence[str]) -> str:
    """Replace every one of ``secrets``, the longest first, in ``text``, then their ends, then credentials inside URLs."""
    ends = [end for secret in secrets for end in (secret[:AFFIX], secret[-AFFIX:]) if len(end) == AFFIX]
    for part in filter(None, [*secrets, *ends]):
        text = text.replace(part, "[redacted]")
    return _CREDENTIALS.sub("[redacted]@", text)


def capture(
    journal: Journal, provider: str, backend: BackendBase, request: UpstreamRequest, reply: UpstreamReply | None
) -> None:
    """Keep one exchange for debug: headers from the struct's own marking of secrets, bodies scrubbed besides."""
    secrets = secrets_of(backend)
    if journal.sent is not None:
        headers = {name: "[redacted]" if isinstance(value, Secret) else value for name, value in request.headers.items()}
        body = _body(request.content, secrets, full=journal.full)
        journal.sent.append({"provider": provider, "url": scrub(request.url, secrets), "headers": headers, "body": body})
    if journal.got is not None and reply is not None:
        journal.got.append(
            {"provider": provider, "status": reply.status, "body": _body(reply.content, secrets, full=journal.full)}
        )


def _body(content: bytes, secrets: Sequence[str], *, full: bool) -> object:
    text = scrub(content[:LONGEST_CAPTURE].decode(errors="replace"), secrets)
    try:
        body = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return text if full else f"[{len(text)} characters]"
    # JSON may spell a secret with escapes, which are gone only now.
    return _mapped(body, lambda said: scrub(said, secrets)) if full else _outline(body, "", secrets)


def _mapped(value: object, change: Callable[[str], str]) -> object:
    """Change every text in a body, names of fields included."""
    if isinstance(value, dict):
        return {change(key): _mapped(inner, change) for key, inner in cast("dict[str, object]", value).items()}
    if isinstance(value, list):
        return [_mapped(inner, change) for inner in cast("list[object]", value)]
    return change(value) if isinstance(value, str) else value


def _outline(value: object, name: str, secrets: Sequence[str]) -> object:
    """Keep the shape of a body and drop what the input could stand in."""
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        return {scrub(key, secrets): _outline(inner, key, secrets) for key, inner in fields.items()}
    if isinstance(value, list):
        return f"[{len(cast('list[object]', value))} items]"
    if isinstance(value, str):
        return scrub(value, secrets) if name in PLAIN else f"[{len(value)} characters]"
    return value
