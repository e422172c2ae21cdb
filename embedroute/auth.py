"""Keys → Caller: who asks, decided from the headers alone, in constant time and without keeping a key."""

import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Final, cast

import msgspec

from embedroute.config import STATE_AUTH, ApiKey, Config, UnknownFields
from embedroute.errors import PermissionDenied, Unauthorized
from embedroute.protocol import EmbeddingRequest
from embedroute.text import echo

LONGEST_KEY = 256
"""Bytes; a longer credential is refused before it is hashed."""

_BEARER = re.compile(rb"bearer +([\x21-\x7e]+)", re.IGNORECASE)


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who sends a request, and what it may do.

    ``models`` None allows all; ``debug`` None leaves it to the gateway's setting; ``namespace`` keeps this
    caller's cache entries apart from those of other namespaces, and "" means what the setting
    ``[cache] shared`` says. Lists of names may come in any collection.

    Raises:
        TypeError: ``name`` or ``namespace`` is not a string, or a list of names is not one.
    """

    name: str
    models: frozenset[str] | None = None
    debug: bool | None = None
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    namespace: str = ""

    def __post_init__(self) -> None:
        """Take names from lists too: they come from a host, which may hold them in any collection."""
        for field, given in (("name", self.name), ("namespace", self.namespace)):
            if not isinstance(cast("object", given), str):
                raise TypeError(f"Caller({field}=…) must be a string, not {given!r:.80}.")
        if self.models is not None:
            msgspec.structs.force_setattr(self, "models", frozenset(_names("models", self.models)))
        msgspec.structs.force_setattr(self, "only", tuple(_names("only", self.only)))
        msgspec.structs.force_setattr(self, "ignore", tuple(_names("ignore", self.ignore)))

    def may_debug(self, *, otherwise: bool) -> bool:
        """Whether this caller may see traces and upstream bodies; ``otherwise`` is the gateway's own setting."""
        return otherwise if self.debug is None else self.debug


def _names(field: str, given: object) -> list[str]:
    if isinstance(given, Iterable) and not isinstance(given, str | bytes):
        names = list(cast("Iterable[object]", given))
        if all(isinstance(name, str) for name in names):
            return cast("list[str]", names)
    raise TypeError(f"Caller({field}=…) must be a list of names, not {given!r:.80}.")


ANYONE: Final = Caller(name="anyone")
"""The caller of an open gateway, and of the host application itself."""


COMMON: Final = ("gateway", "")
"""The cache scope of callers who share the entries of a gateway."""


def cache_scope(caller: Caller, *, shared: bool) -> tuple[str, str]:
    """Say whose cache entries a caller uses: two callers share them only if their scopes are equal.

    The kind in front keeps a key's name, a namespace of the same text and the gateway's common
    entries apart. ``shared`` is the setting of ``[cache]``.
    """
    if caller.namespace:
        return "namespace", caller.namespace
    if shared or caller is ANYONE:
        return COMMON
    return "caller", caller.name


def authorize(caller: Caller, name: str, request: EmbeddingRequest, *, debug: bool) -> None:
    """Let a caller use the model of this ``name``, and look inside if it asks to; ``debug`` is the gateway's own setting.

    Raises:
        PermissionDenied: it may not.
    """
    if caller.models is not None and name not in caller.models:
        raise PermissionDenied(
            f"This key may not use the model {echo(request.model)}.",
            param="model",
            code="model_not_allowed",
        )
    if request.debug.any_flag_set() and not caller.may_debug(otherwise=debug):
        raise PermissionDenied(
            "This key may not use 'debug'; leave it out.", param="debug", code="debug_not_allowed"
        )


def access_mistakes(config: Config, unread: UnknownFields) -> list[str]:
    """The mistakes of a config that does not say who may call."""
    if config.gateway.auth is None and not unread.at("gateway", "auth"):
        return [STATE_AUTH]
    if config.gateway.auth == "keys" and not config.keys and not unread.at("keys"):
        return [
            '[gateway] auth = "keys" needs at least one [keys.NAME] table with key = "env:VARIABLE".'
        ]
    return []


class ApiKeys:
    """The configured keys, held as HMAC-SHA256 under a random pepper."""

    def __init__(self, keys: Mapping[str, ApiKey]) -> None:
        """Hash ``keys``, name → key; the keys themselves are not kept."""
        self._begun = hmac.new(secrets.token_bytes(32), digestmod="sha256")
        self._callers = {
            self._digest(key.key.reveal().encode()): _caller(name, key)
            for name, key in keys.items()
        }

    def _digest(self, token: bytes) -> bytes:
        digest = self._begun.copy()  # which costs half of beginning with the pepper
        digest.update(token)
        return digest.digest()

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Find whose key the ``Authorization`` header holds.

        Raises:
            Unauthorized: there is none, there are two, or nobody's key is in it.
        """
        # Without the pepper nobody can steer a digest, so how long the look-up takes tells nothing of a key.
        caller = self._callers.get(self._digest(bearer_token(headers)))
        if caller is None:
            raise Unauthorized("Incorrect API key provided; check the Authorization header.")
        return caller


def _caller(name: str, key: ApiKey) -> Caller:
    models = None if key.models is None else frozenset(key.models)
    return Caller(
        name=name,
        models=models,
        debug=key.debug,
        only=tuple(key.only),
        ignore=tuple(key.ignore),
        namespace=key.namespace or "",
    )


def bearer_token(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Take the token out of the one ``Authorization: Bearer`` header (RFC 6750 §2.1).

    Raises:
        Unauthorized: there is no such header, more than one, or it is not of that form.
    """
    given = [value for name, value in headers if name == b"authorization"]
    found = (
        _BEARER.fullmatch(given[0])
        if len(given) == 1 and len(given[0]) <= LONGEST_KEY + 7
        else None
    )
    if found is None:
        raise Unauthorized("An API key is required; send one header 'Authorization: Bearer KEY'.")
    return found[1]
