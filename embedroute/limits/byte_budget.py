"""Limits the bytes of request bodies, and of responses, in flight: in total and per caller."""

from typing import Final, Self

from embedroute.config import Config, Mistake, Settings
from embedroute.errors import Overloaded

BODY_SHARES: Final = 4
"""Number of callers that can use their full share for request bodies at the same time."""
RESPONSE_SHARES: Final = 2
"""The same for responses. A caller may have half, because twenty large ones at once are usual."""
MOST_ACCOUNTS: Final = 1024
"""Number of accounts to keep; above it, accounts without bytes in flight are dropped."""


class ByteBudget:
    """The bytes of bodies in flight in one gateway, in total and per caller.

    A request body is counted from before it is read until its response is sent, because the objects
    decoded from it live as long. A response is counted while it is sent, in the form in which it is
    held. Callers are identified by name.
    """

    def __init__(self, most: int, most_each: int, bodies: str) -> None:
        """Allow ``most`` bytes in total, and ``most_each`` for each caller.

        More is allowed for a body that is the only one. Messages call them ``bodies``.
        """
        self._most: int = most
        self._most_each: int = most_each
        self._bodies = bodies
        self.total: int = 0
        self._accounts: dict[str, Account] = {}

    @classmethod
    def for_requests(cls, settings: Settings) -> Self:
        """Make the budget for request bodies that the ``[gateway]`` table configures."""
        return cls(*request_limits(settings), "request bodies")

    @classmethod
    def for_responses(cls, settings: Settings) -> Self:
        """Make the budget for responses that the ``[gateway]`` table configures."""
        return cls(*response_limits(settings), "responses that clients have not read")

    def change(self, most: int, most_each: int) -> None:
        """Apply other limits. What is in flight remains counted."""
        self._most = most
        self._most_each = most_each

    # Event loops in several threads may share one gateway. CPython switches threads only at calls
    # and jumps, so the additions below are not interrupted. A lock would double the cost.

    def reserve(self, caller: str, size: int) -> "Account":
        """Add ``size`` bytes to the account of a caller and return the account.

        Call ``release`` with the account and the same size afterwards.

        Raises:
            Overloaded: the limit for this caller or for all callers would be exceeded.
        """
        account = self._accounts.get(caller) or self._open_account(caller)
        account.in_flight += size
        self.total += size
        if account.in_flight > self._most_each or self.total > self._most:
            self._check(account, size)
        return account

    def release(self, account: "Account", size: int) -> None:
        """Subtract ``size`` bytes from an account and from the total."""
        account.in_flight -= size
        self.total -= size

    def _check(self, account: "Account", size: int) -> None:
        """Refuse ``size`` bytes above a limit, unless nothing else is in flight."""
        caller_is_over = account.in_flight > max(self._most_each, size)
        if not caller_is_over and self.total <= max(self._most, size):
            return
        self.release(account, size)
        if caller_is_over:
            raise Overloaded(
                f"This caller has more than {self._most_each} bytes of {self._bodies} in flight; "
                "wait for responses, or send fewer requests in parallel."
            )
        raise Overloaded(
            f"The gateway has too many bytes of {self._bodies} in flight; try again shortly."
        )

    def _open_account(self, caller: str) -> "Account":
        if len(self._accounts) >= MOST_ACCOUNTS:
            accounts = [*self._accounts.items()]
            self._accounts = {name: account for name, account in accounts if account.in_flight}
        return self._accounts.setdefault(caller, Account())


def request_limits(settings: Settings) -> tuple[int, int]:
    """Return the most bytes of request bodies in flight, and of each caller."""
    most = settings.max_body_bytes_in_flight
    return most, max(most // BODY_SHARES, settings.max_body_bytes)


def response_limits(settings: Settings) -> tuple[int, int]:
    """Return the most bytes of responses in flight, and of each caller."""
    most = settings.max_response_bytes_in_flight
    return most, most // RESPONSE_SHARES


class Account:
    """The bytes of one caller's request bodies in flight."""

    __slots__ = ("in_flight",)

    def __init__(self) -> None:
        """Start with no bytes in flight."""
        self.in_flight: int = 0


def admission_mistakes(config: Config) -> list[str]:
    """Return the mistakes in a config's limits on request bodies."""
    most = config.gateway.max_body_bytes_in_flight
    largest = config.gateway.max_body_bytes
    if most >= largest:
        return []
    mistake = f"[gateway] max_body_bytes_in_flight = {most} is less than max_body_bytes = {largest}"
    advice = "Set it to at least that value; four times as much is usual."
    paths = [("gateway", name) for name in ("max_body_bytes", "max_body_bytes_in_flight")]
    return [Mistake(f"{mistake}. {advice}", *paths)]
