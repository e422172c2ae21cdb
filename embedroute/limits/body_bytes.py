"""Admits request bodies: bounds the bytes of those under way, in all and per caller."""

from typing import Final, Self

from embedroute.config import Config, Settings, UnknownFields
from embedroute.errors import Overloaded

CALLERS: Final = 4
"""How many callers can use all of their bytes at a time."""
MOST_ACCOUNTS: Final = 1024
"""Accounts that are kept; beyond that, those that hold nothing are dropped."""


class BodyBudget:
    """The bytes of request bodies under way in one gateway, in all and per caller.

    A body counts from before it is read until its answer is sent, because what is made of it lives
    as long. Callers are told apart by name.
    """

    def __init__(self, most: int, largest: int) -> None:
        """Allow ``most`` bytes in all, and each caller a quarter of that or one body of ``largest``."""
        self._most = most
        self._most_each = max(most // CALLERS, largest)
        self.total = 0
        self._accounts: dict[str, Account] = {}

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Take the bounds from the ``[gateway]`` table."""
        return cls(settings.max_body_bytes_in_flight, settings.max_body_bytes)

    # Loops in several threads may share one gateway. CPython switches threads only at calls and
    # jumps, so the additions below lose nothing; a lock would double the cost of counting.

    def reserve(self, caller: str, size: int) -> "Account":
        """Add ``size`` bytes to the account of a caller, which is good until they are released.

        Raises:
            Overloaded: the caller, or all callers together, would have too many under way.
        """
        account = self._accounts.get(caller) or self._opened(caller)
        account.held += size
        self.total += size
        if account.held > self._most_each or self.total > self._most:
            raise self._refused(account, size)
        return account

    def release(self, account: "Account", size: int) -> None:
        """Take ``size`` bytes away again."""
        account.held -= size
        self.total -= size

    def _refused(self, account: "Account", size: int) -> Overloaded:
        over = account.held > self._most_each
        self.release(account, size)
        if over:
            return Overloaded(
                f"More than {self._most_each} bytes of request bodies of this caller are under way; "
                "wait for their answers, or send fewer requests at a time."
            )
        return Overloaded("Too many bytes of request bodies are under way; try again shortly.")

    def _opened(self, caller: str) -> "Account":
        if len(self._accounts) >= MOST_ACCOUNTS:
            self._accounts = {name: it for name, it in [*self._accounts.items()] if it.held}
        return self._accounts.setdefault(caller, Account())


class Account:
    """The bytes of one caller's request bodies under way."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        """Hold nothing yet."""
        self.held = 0


def admission_mistakes(config: Config, unread: UnknownFields) -> list[str]:
    """Name the bounds on bodies that contradict each other."""
    most, largest = config.gateway.max_body_bytes_in_flight, config.gateway.max_body_bytes
    names = ("max_body_bytes", "max_body_bytes_in_flight")
    if most >= largest or any(unread.at("gateway", name) for name in names):
        return []
    mistake = f"[gateway] max_body_bytes_in_flight = {most} is less than max_body_bytes = {largest}"
    return [f"{mistake}. Set it to at least that; four times as much is usual."]
