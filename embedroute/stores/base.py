"""Defines what a store does."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec


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


class Store(VectorStore, Protocol):
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
