"""Defines what a store does."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from embedroute.stores.leases import Demand, Grant
from embedroute.stores.usage import UsageStore


class StoreError(Exception):
    """A store cannot be used; the message says why, without secrets."""


class StoreKey(NamedTuple):
    """The key of a vector: the public name of its model, and the digest that identifies it."""

    model: str
    digest: bytes


class ModelEntries(msgspec.Struct, frozen=True, kw_only=True):
    """How many vectors of a model a store has, and their bytes."""

    model: str
    entries: int
    bytes: int


class Charge(NamedTuple):
    """A part of a reservation: at most ``limit`` may be spent and reserved in ``counter``.

    Amounts are integers, in billionths of a US dollar.
    """

    counter: str
    limit: int
    amount: int


class Refusal(NamedTuple):
    """The first charge of a reservation that does not fit, and what is left in its counter."""

    position: int
    left: int


class BudgetStore(Protocol):
    """Counts what was spent and what is reserved, exactly and for all processes."""

    def reserve(
        self, reservation: str, charges: Sequence[Charge], seconds: float
    ) -> Refusal | None:
        """Reserve all charges, or none of them; they are released after ``seconds``."""
        ...

    def settle(self, reservation: str, spent: Sequence[tuple[str, int]]) -> None:
        """Release a reservation, and add to each counter what was spent.

        The reservation may have expired, or may not exist.
        """
        ...


class LeaseStore(Protocol):
    """Divides limits among processes (``embedroute.stores.leases``), by one clock for all."""

    def lease(self, holder: str, demands: Sequence[Demand], seconds: float) -> Sequence[Grant]:
        """Replace what ``holder`` holds of each limit; it is lost after ``seconds``."""
        ...


class KeyStore(Protocol):
    """Stores API keys as opaque bytes (``embedroute.stores.StoredKey``), by their names."""

    def read_keys(self, version: str) -> tuple[str, Sequence[bytes] | None]:
        """Return a text that changes with the keys, and all keys unless it is ``version``."""
        ...

    def put_key(self, name: str, value: bytes) -> bool:
        """Store a key; return False if there is one with this name."""
        ...

    def drop_key(self, name: str) -> bool:
        """Remove a key; return whether there was one."""
        ...


class VectorStore(Protocol):
    """Stores vectors as opaque bytes."""

    def get_vectors(self, keys: Sequence[StoreKey]) -> Sequence[bytes | None]:
        """Return the value of each key, or None if there is none."""
        ...

    def put_vectors(self, entries: Sequence[tuple[StoreKey, bytes]], seconds: float) -> None:
        """Store values in one transaction or round trip; they expire after ``seconds``."""
        ...

    def drop_vectors(self, keys: Sequence[StoreKey]) -> None:
        """Remove the values of ``keys``."""
        ...

    def count_vectors(self) -> Sequence[ModelEntries]:
        """Count the entries of each model, sorted by its name."""
        ...

    def purge_vectors(self, model: str | None) -> int:
        """Remove the entries of ``model``, or all; return how many there were."""
        ...


class Store(VectorStore, BudgetStore, LeaseStore, KeyStore, UsageStore, Protocol):
    """A store. One thread at a time calls its methods.

    Its class is called with the URL and the ``StoreSettings``, and raises ``ValueError`` with a
    message for the operator if it cannot use them. It connects in ``open``. A method may raise
    any exception; it must not repeat its message's secrets.
    """

    def open(self) -> None:
        """Connect, and check that the store can be used. It is called again after ``close``."""
        ...

    def close(self) -> None:
        """Close the connection. It may be called at any time, also twice."""
        ...
