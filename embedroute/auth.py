"""Identifies the caller of a request by its API key, and authorizes what the caller may do."""

import hmac
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from embedroute.backend import Secret, repr_as_in_rich
from embedroute.config import STATE_AUTH, ApiKey, Config, Mistake, RateLimits
from embedroute.errors import PermissionDenied, Unauthorized
from embedroute.protocol import EmbeddingRequest
from embedroute.text import echo

LONGEST_KEY = 256
"""Bytes; a longer API key is rejected before it is hashed."""

LONGEST_UPSTREAM_KEY = 8192
"""Bytes; some providers have tokens of several thousand."""

_UPSTREAM_KEY = re.compile(rb"[\x21-\x7e]{1,%d}" % LONGEST_UPSTREAM_KEY)
_BEARER = re.compile(rb"bearer +([\x21-\x7e]+)", re.IGNORECASE)


class UpstreamKeys(Mapping[str, Secret]):
    """Keys by the name of their header in lower case; immutable and hashable, as callers are."""

    __slots__ = ("_keys",)

    def __init__(self, keys: Mapping[str, Secret]) -> None:
        """Copy ``keys``."""
        self._keys = dict(keys)

    def __getitem__(self, name: str) -> Secret:
        """Return the key of a header."""
        return self._keys[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the headers."""
        return iter(self._keys)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._keys)

    def __hash__(self) -> int:
        """Hash the names and the keys."""
        return hash(frozenset(self._keys.items()))

    def __repr__(self) -> str:
        """Show the names of the headers, and no keys."""
        return repr(self._keys)


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """The sender of a request and its permissions.

    ``models`` are the models that the caller may use; None allows all. ``debug`` says whether the
    caller may see traces and upstream bodies; None means the gateway's setting. ``only`` and
    ``ignore`` restrict the providers. Callers share cache entries within a ``namespace``; for "",
    the setting ``[cache] shared`` decides. ``limits`` hold for all requests of callers with this
    name. ``models``, ``only`` and ``ignore`` may be any iterable of strings. ``upstream_keys`` maps
    header names to the caller's own keys of providers with ``api_key = "header:NAME"``.

    Raises:
        TypeError: ``name`` or ``namespace`` is not a string, or one of ``models``, ``only`` and
            ``ignore`` is not an iterable of strings, or ``limits`` are not ``RateLimits``, or
            ``upstream_keys`` are not a mapping of strings to strings or ``Secret``.
    """

    name: str
    models: frozenset[str] | None = None
    debug: bool | None = None
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    namespace: str = ""
    limits: RateLimits | None = None
    upstream_keys: Mapping[str, Secret] = UpstreamKeys({})

    def __post_init__(self) -> None:
        """Check the types and convert the collections, because hosts may pass any collection."""
        for field, value in (("name", self.name), ("namespace", self.namespace)):
            if not isinstance(cast("object", value), str):
                raise TypeError(f"Caller({field}=…) must be a string, not {value!r:.80}.")
        if not isinstance(cast("object", self.limits), RateLimits | None):
            raise TypeError(f"Caller(limits=…) must be a RateLimits, not {self.limits!r:.80}.")
        if self.models is not None:
            msgspec.structs.force_setattr(self, "models", frozenset(_names("models", self.models)))
        msgspec.structs.force_setattr(self, "only", tuple(_names("only", self.only)))
        msgspec.structs.force_setattr(self, "ignore", tuple(_names("ignore", self.ignore)))
        if not isinstance(self.upstream_keys, UpstreamKeys):
            msgspec.structs.force_setattr(self, "upstream_keys", _secrets(self.upstream_keys))

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show the name, and the fields that differ from their defaults."""
        fields = [(name, getattr(self, name)) for name in self.__struct_fields__]
        defaults = dict(zip(self.__struct_fields__[1:], self.__struct_defaults__, strict=True))
        return [(name, value) for name, value in fields if value != defaults.get(name, ...)]

    __repr__ = repr_as_in_rich

    def may_debug(self, *, otherwise: bool) -> bool:
        """Return whether this caller may see traces and upstream bodies.

        ``otherwise`` is the gateway's setting. It applies if the caller has none of its own.
        """
        return otherwise if self.debug is None else self.debug


def _secrets(keys: object) -> UpstreamKeys:
    secrets: dict[str, Secret] = {}
    if isinstance(keys, Mapping):
        for name, key in cast("Mapping[object, object]", keys).items():
            if isinstance(name, str) and key and isinstance(key, str | Secret):
                secrets[name.lower()] = Secret(key) if isinstance(key, str) else key
        if len(secrets) == len(cast("Mapping[object, object]", keys)):
            return UpstreamKeys(secrets)
    # The value may hold keys, so it is not shown.
    raise TypeError("Caller(upstream_keys=…) must map names of headers to keys.")


def _names(field: str, value: object) -> list[str]:
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        names = list(cast("Iterable[object]", value))
        if all(isinstance(name, str) for name in names):
            return cast("list[str]", names)
    raise TypeError(f"Caller({field}=…) must be a list of names, not {value!r:.80}.")


ANYONE: Final = Caller(name="anyone")
"""The caller of a gateway with ``auth = "open"``, and of in-process calls by the host."""


COMMON: Final = ("gateway", "")
"""The cache scope of all callers that share the gateway's entries."""


def cache_scope(caller: Caller, *, shared: bool) -> tuple[str, str]:
    """Return the cache scope of a caller; callers share entries only if their scopes are equal.

    The first element is the kind of scope. It prevents a collision between a key's name and a
    namespace with the same text. ``shared`` is the setting of ``[cache]``.
    """
    if caller.namespace:
        return "namespace", caller.namespace
    if shared or caller is ANYONE:
        return COMMON
    return "caller", caller.name


def authorize(caller: Caller, name: str, request: EmbeddingRequest, *, debug: bool) -> None:
    """Check that a caller may use the model ``name``, and ``debug`` if the request contains it.

    ``name`` is the canonical name of the request's model. ``debug`` is the gateway's setting.

    Raises:
        PermissionDenied: the caller may not use the model or ``debug``.
    """
    if caller.models is not None and name not in caller.models:
        raise PermissionDenied(
            f"This caller may not use the model {echo(request.model)}.",
            param="model",
            code="model_not_allowed",
        )
    if request.debug.any_flag_set() and not caller.may_debug(otherwise=debug):
        raise PermissionDenied(
            "This caller may not use 'debug'; leave it out, or ask the operator to allow it.",
            param="debug",
            code="debug_not_allowed",
        )


def access_mistakes(config: Config) -> list[str]:
    """Return the mistakes in a config's authentication settings."""
    if config.gateway.auth is None:
        return [Mistake(STATE_AUTH, ("gateway", "auth"))]
    if config.gateway.auth == "keys" and not config.keys and config.store.url is None:
        mistake = '[gateway] auth = "keys" needs a [keys.NAME] table with key = "env:VARIABLE".'
        return [Mistake(mistake, ("keys",))]
    if config.gateway.auth == "open" and config.gateway.metrics == "key":
        mistake = '[gateway] metrics = "key" needs keys, but auth = "open". Set metrics = "open".'
        return [Mistake(mistake, ("gateway", "metrics"))]
    if config.gateway.dashboard not in DASHBOARDS[config.gateway.auth]:
        allowed = " or ".join(f'"{name}"' for name in DASHBOARDS[config.gateway.auth])
        mistake = f'[gateway] with auth = "{config.gateway.auth}", dashboard is {allowed}.'
        return [Mistake(mistake, ("gateway", "dashboard"))]
    return []


DASHBOARDS: Final[Mapping[str, Sequence[str]]] = {
    "keys": ("off", "key", "open"),
    "open": ("off", "open"),
    "host": ("off", "host", "open"),
}
"""``auth`` → what ``dashboard`` may be: whom it can identify."""


class ApiKeys:
    """The configured API keys, stored as HMAC-SHA256 digests under a random pepper."""

    def __init__(self, keys: Mapping[str, ApiKey]) -> None:
        """Hash ``keys``, which maps names to keys; the keys themselves are not stored."""
        self._hmac = hmac.new(secrets.token_bytes(32), digestmod="sha256")
        self._callers = {
            self._digest(key.key.reveal().encode()): _make_caller(name, key)
            for name, key in keys.items()
        }

    def _digest(self, token: bytes) -> bytes:
        digest = self._hmac.copy()  # half the cost of a new HMAC
        digest.update(token)
        return digest.digest()

    def find(self, token: bytes) -> Caller | None:
        """Return the caller with a key, or None if it is unknown."""
        # A client that does not know the pepper cannot choose a digest, so the time of the lookup
        # reveals nothing about a key.
        return self._callers.get(self._digest(token))

    def authenticate(self, authorization: Sequence[bytes]) -> Caller:
        """Return the caller whose key is in the values of the ``Authorization`` header.

        Raises:
            Unauthorized: the header is missing, malformed or duplicated, or the key is unknown.
        """
        caller = self.find(bearer_token(authorization))
        if caller is None:
            raise unknown_key()
        return caller


def _make_caller(name: str, key: ApiKey) -> Caller:
    models = None if key.models is None else frozenset(key.models)
    return Caller(
        name=name,
        models=models,
        debug=key.debug,
        only=tuple(key.only),
        ignore=tuple(key.ignore),
        namespace=key.namespace or "",
        limits=key.limits,
    )


def read_upstream_key(header: str, values: Sequence[bytes]) -> Secret:
    """Return the caller's own key of a provider, which is the one of the ``values`` of a header.

    Raises:
        Unauthorized: there are several values, or it is not a key.
    """
    if len(values) == 1 and _UPSTREAM_KEY.fullmatch(values[0]):
        return Secret(values[0].decode())
    raise Unauthorized(
        f"The header '{header}' must hold one key of 1 to {LONGEST_UPSTREAM_KEY} visible ASCII "
        "characters.",
        code="upstream_key_required",
    )


def unknown_key(header: str = "") -> Unauthorized:
    """Return the error of an unknown key in a ``header``, or in ``Authorization``."""
    where = f"header '{header}'" if header else "Authorization header"
    return Unauthorized(f"Incorrect API key provided; check the {where}.")


def header_token(values: Sequence[bytes], header: str) -> bytes:
    """Return the key that is the one of the ``values`` of a header of that name.

    Raises:
        Unauthorized: the header is missing or duplicated, or the key is too long.
    """
    if not values:
        raise Unauthorized(f"An API key is required; send one header '{header}: KEY'.")
    if len(values) != 1 or len(values[0]) > LONGEST_KEY:
        raise unknown_key(header)
    return values[0]


def bearer_token(authorization: Sequence[bytes]) -> bytes:
    """Return the token of the ``Authorization: Bearer`` header (RFC 6750 §2.1).

    Raises:
        Unauthorized: there is no such header, there are several, or its value is malformed.
    """
    if len(authorization) == 1 and len(authorization[0]) <= LONGEST_KEY + 7:
        match = _BEARER.fullmatch(authorization[0])
        if match is not None:
            return match[1]
    raise Unauthorized("An API key is required; send one header 'Authorization: Bearer KEY'.")
