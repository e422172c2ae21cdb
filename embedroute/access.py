"""Keys → Caller: who asks, decided from the headers alone, in constant time and without keeping a key."""

import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from embedroute.config import STATE_AUTH, Config
from embedroute.errors import Unauthorized
from embedroute.settings import Key

LONGEST_KEY = 256
"""Bytes; a longer credential is refused before it is hashed."""

_BEARER = re.compile(rb"bearer +([\x21-\x7e]+)", re.IGNORECASE)


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who sends a request, and what it may do.

    ``models`` None allows all; ``debug`` None leaves it to the gateway's setting; ``namespace`` keeps this
    caller's cache entries apart from those of other namespaces.
    """

    name: str
    models: frozenset[str] | None = None
    debug: bool | None = None
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    namespace: str = ""


ANYONE: Final = Caller(name="anyone")
"""The caller of an open gateway, and of the host application itself."""


def access_mistakes(config: Config) -> list[str]:
    """The mistakes of a config that does not say who may call."""
    if config.gateway.auth is None:
        return [STATE_AUTH]
    if config.gateway.auth == "keys" and not config.keys:
        return ['[gateway] auth = "keys" needs at least one [keys.NAME] table with key = "env:VARIABLE".']
    return []


class KeyRing:
    """The configured keys, held as HMAC-SHA256 under a random pepper."""

    def __init__(self, keys: Mapping[str, Key]) -> None:
        """Hash ``keys``, name → key; the keys themselves are not kept."""
        self._pepper = secrets.token_bytes(32)
        self._callers = {self._digest(key.key.reveal().encode()): _caller(name, key) for name, key in keys.items()}

    def _digest(self, token: bytes) -> bytes:
        return hmac.digest(self._pepper, token, "sha256")

    def identify(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Find whose key the ``Authorization`` header holds.

        Raises:
            Unauthorized: there is none, there are two, or nobody's key is in it.
        """
        # Without the pepper nobody can steer a digest, so how long the look-up takes tells nothing of a key.
        caller = self._callers.get(self._digest(bearer_token(headers)))
        if caller is None:
            raise Unauthorized("The API key is not valid; check the Authorization header.")
        return caller


def _caller(name: str, key: Key) -> Caller:
    models = None if key.models is None else frozenset(key.models)
    return Caller(name=name, models=models, debug=key.debug, only=tuple(key.only), ignore=tuple(key.ignore))


def bearer_token(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Take the token out of the one ``Authorization: Bearer`` header (RFC 6750 §2.1).

    Raises:
        Unauthorized: there is no such header, more than one, or it is not of that form.
    """
    given = [value for name, value in headers if name == b"authorization"]
    found = _BEARER.fullmatch(given[0]) if len(given) == 1 and len(given[0]) <= LONGEST_KEY + 7 else None
    if found is None:
        raise Unauthorized("An API key is required; send one header 'Authorization: Bearer KEY'.")
    return found[1]
