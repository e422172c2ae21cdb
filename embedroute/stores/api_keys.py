"""Keeps the API keys that are made at run time: their form in a store, and a copy in each process.

A process reads all keys when they have changed, at most every ``FRESH`` seconds, and looks requests
up in its copy. So unknown keys cost a store no more than that, however many there are, and a store
that fails locks out no key that is known.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from embedroute.auth import Caller
from embedroute.config import Budget, RateLimits
from embedroute.errors import Overloaded
from embedroute.stores.base import Store, StoreError
from embedroute.stores.worker import StoreWorker

FRESH: Final = 0.4
"""Seconds for which a copy is used without asking whether keys have changed."""
STALE: Final = 0.8
"""Seconds after which a request waits for that."""
LONGEST_WAIT: Final = 1.0
"""Seconds that a request waits at most while the store answers others."""


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its text, in the form that is stored.

    ``created`` and ``expires`` are seconds since 1970. ``digest`` is SHA-256 in hexadecimal. The
    key has 256 random bits, so it needs no salt. ``models``, ``debug``, ``only`` and ``ignore`` are
    those of ``Caller``.
    """

    name: str
    digest: str
    created: float
    expires: float | None = None
    models: list[str] | None = None
    debug: bool | None = None
    only: list[str] = []
    ignore: list[str] = []
    limits: RateLimits | None = None
    budget: Budget | None = None

    def is_expired(self, now: float) -> bool:
        """Return whether the key is no longer valid at ``now``, in seconds since 1970."""
        return self.expires is not None and self.expires <= now

    def encode(self) -> bytes:
        """Return the form in which a store keeps it."""
        return msgspec.json.encode(self)


def make_key() -> str:
    """Make the text of a new key."""
    return f"er-{secrets.token_urlsafe(32)}"


def digest_key(token: bytes) -> str:
    """Return what is stored of the text of a key."""
    return hashlib.sha256(token).hexdigest()


def decode_keys(values: Sequence[bytes]) -> Sequence[StoredKey]:
    """Return the keys of a store, sorted by name."""
    keys = [msgspec.json.decode(value, type=StoredKey) for value in values]
    return sorted(keys, key=lambda each: each.name)


class StoredKeys:
    """The copy of one process. ``clock`` is monotonic, and ``time`` returns seconds since 1970."""

    def __init__(
        self,
        worker: StoreWorker,
        clock: Callable[[], float] = time.monotonic,
        time: Callable[[], float] = time.time,
    ) -> None:
        """Start without a copy; the first lookup makes one."""
        self._worker = worker
        self._clock = clock
        self._time = time
        self._read_at = float("-inf")
        self._is_reading = False
        self._version = ""
        self._callers: Mapping[str, tuple[StoredKey, Caller]] = {}
        self._budgets: Mapping[str, Budget] = {}

    async def find(self, token: bytes) -> Caller | None:
        """Return the caller with a key, or None if there is no such key or it has expired.

        Raises:
            Overloaded: the key is unknown, and the store fails.
        """
        digest = digest_key(token)
        age = self._clock() - self._read_at
        if age >= FRESH:
            if digest not in self._callers or age >= STALE:
                await self._refresh(must_succeed=digest not in self._callers)
            elif not self._is_reading:
                self._is_reading = True
                self._worker.submit(self)
        found = self._callers.get(digest)
        if found is None or found[0].is_expired(self._time()):
            return None
        return found[1]

    def budget_of(self, name: str) -> Budget | None:
        """Return the budget of the key with this name."""
        return self._budgets.get(name)

    async def _refresh(self, *, must_succeed: bool) -> None:
        call = self._worker.call if must_succeed else self._worker.call_while_available
        try:
            await call(self.run, LONGEST_WAIT)
        except StoreError:
            if must_succeed:
                raise Overloaded(
                    "The API key cannot be checked at the moment. Try again.", retry_after=1.0
                ) from None

    def run(self, store: Store) -> None:
        """Read the keys, unless another request has just done so."""
        self._is_reading = False
        now = self._clock()
        if now - self._read_at < FRESH:
            return
        version, values = store.read_keys(self._version)
        if values is not None:
            keys = decode_keys(values)
            self._callers = {key.digest: (key, _make_caller(key)) for key in keys}
            self._budgets = {key.name: key.budget for key in keys if key.budget is not None}
        self._version = version
        self._read_at = now

    def fail(self, error: BaseException) -> None:
        """Keep the copy: the store has failed."""
        del error
        self._is_reading = False


def _make_caller(key: StoredKey) -> Caller:
    models = None if key.models is None else frozenset(key.models)
    return Caller(
        name=key.name,
        models=models,
        debug=key.debug,
        only=tuple(key.only),
        ignore=tuple(key.ignore),
        limits=key.limits,
    )
