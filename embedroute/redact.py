"""Takes secrets out of text that was written elsewhere: an upstream may echo the key it was sent."""

import re
from collections.abc import Iterable

import msgspec

from embedroute.backend import Secret

AFFIX = 8
"""Characters at either end of a key that upstreams repeat when they mask the rest."""

_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")


def secrets_of(options: msgspec.Struct) -> list[str]:
    """Every secret that a backend's options hold."""
    return [value.reveal() for value in msgspec.structs.astuple(options) if isinstance(value, Secret)]


def scrub(text: str, secrets: Iterable[str]) -> str:
    """Replace every secret in ``text``, each one's affixes of eight characters, and credentials inside URLs."""
    for secret in secrets:
        for part in (secret, secret[:AFFIX], secret[-AFFIX:]):
            if len(part) >= AFFIX or part == secret:
                text = text.replace(part, "[redacted]")
    return _CREDENTIALS.sub("[redacted]@", text)
