"""Keeps the units of a limit that this process holds as a lease of the store.

The store decides how many units a process may hold (``embedroute.stores.leases``). Here their use
is counted, and it is decided what to ask for and what to give back. One demand at a time is made
for a limit; requests may use units between a demand and its answer. Time is an argument: every
method takes ``now`` in seconds of one monotonic clock of this process.
"""

import math
from typing import Final

from embedroute.limits.rates import MINUTE, ROUNDING
from embedroute.stores import Demand, Grant

LEASE: Final = 5.0
"""Seconds after which a lease is lost, if its process has died."""
RATE_SURPLUS: Final = 32
"""A lease has up to 1/32 of the capacity besides what is needed: two seconds of a rate."""
CONCURRENT_SURPLUS: Final = 8
"""The same for concurrent requests."""
SURPLUS_OF_LEFT: Final = 4
"""Unused places for concurrent requests are kept up to 1/4 of those that are left."""
REFUSED: Final = 0.05
"""Seconds for which a refusal of the store is remembered, so that it is wanted rarely then."""


class LeasedUnits:
    """The units of one limit that this process holds.

    ``balance`` are those that requests may still use. ``spent`` are those that were used and not
    yet reported to the store; for concurrent requests, those in use. ``is_used`` is whether units
    were used lately.
    """

    __slots__ = (
        "_available",
        "_expires",
        "_kept",
        "_refused_units",
        "_refused_until",
        "_reported",
        "_synced_at",
        "balance",
        "capacity",
        "counter",
        "is_used",
        "refill",
        "spent",
    )

    def __init__(self, counter: str, capacity: int, refill: float = 0.0) -> None:
        """Hold nothing. ``refill`` are the units per second, 0 for concurrent requests."""
        self.counter: str = counter
        self.capacity: int = capacity
        self.refill: float = refill
        self.balance: int = 0
        self.spent: int = 0
        self.is_used: bool = False
        self._available = float(capacity)
        self._synced_at = 0.0
        self._expires = -math.inf
        self._refused_units = 0
        self._refused_until = -math.inf
        self._kept = 0
        self._reported = 0

    def change(self, capacity: int) -> None:
        """Apply another limit. What was used remains used."""
        if self.refill:
            self.refill: float = self.refill * capacity / self.capacity
        self.capacity: int = capacity
        self._refused_until = -math.inf

    def can_take(self, now: float, units: int) -> bool:
        """Return whether the lease has ``units``."""
        return self.balance >= units and now < self._expires

    def take(self, units: int) -> None:
        """Use units. A negative number puts units back."""
        self.balance -= units
        self.spent += units
        self.is_used = True

    def is_refused(self, now: float, units: int) -> bool:
        """Return whether the store has just refused as many units."""
        return now < self._refused_until and units >= self._refused_units

    def refuse(self, now: float, units: int) -> None:
        """Remember that the store has refused ``units``."""
        self._refused_units = units
        self._refused_until = now + REFUSED

    def wait(self, now: float, units: int) -> float:
        """Return the seconds until ``units`` are available, as far as this process knows."""
        return max(units - self._left(now), 0.0) / self.refill if self.refill else 0.0

    @property
    def has_excess(self) -> bool:
        """Whether more places for concurrent requests are unused than a process may keep."""
        return not self.refill and self.balance > self._allowance

    @property
    def must_report(self) -> bool:
        """Whether there is something to give back or to report."""
        return self.balance != 0 or (self.refill > 0 and self.spent != 0)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held, so that there is no lease to renew."""
        return not self.balance and not self.spent

    def must_renew(self, now: float) -> bool:
        """Return whether the lease expires soon."""
        return self._expires - now <= LEASE / 2

    def ask_for(self, units: int) -> Demand:
        """Return the demand that makes ``units`` available, and some more."""
        share = RATE_SURPLUS if self.refill else CONCURRENT_SURPLUS
        least = self._in_use + units
        return self._demand(least, least + self.capacity // share)

    def renew(self) -> Demand:
        """Return the demand that keeps what is held."""
        units = self._in_use + max(self.balance, 0)
        return self._demand(units, units)

    def give_excess_back(self) -> Demand:
        """Return the demand that gives back the unused places that a process may not keep."""
        self.balance = min(self.balance, self._allowance)
        return self.renew()

    def give_back(self) -> Demand:
        """Return the demand that gives back all unused units. They cannot be used any more."""
        self.balance = min(self.balance, 0)
        return self.renew()

    def record(self, grant: Grant, sent_at: float) -> None:
        """Take the answer to the last demand, which was made at ``sent_at``."""
        self.balance += grant.units - self._kept
        self.spent -= self._reported
        self._available = grant.available
        self._synced_at = sent_at
        self._expires = sent_at + LEASE

    @property
    def _in_use(self) -> int:
        return 0 if self.refill else self.spent

    @property
    def _allowance(self) -> int:
        most = self.capacity // CONCURRENT_SURPLUS + 1
        return max(min(most, math.floor(self._available / SURPLUS_OF_LEFT)), 0)

    def _demand(self, least: int, most: int) -> Demand:
        self._reported = self.spent if self.refill else 0
        self._kept = self.balance + self._in_use
        return Demand(
            counter=self.counter,
            capacity=self.capacity,
            refill=self.refill,
            spent=self._reported,
            least=least,
            most=most,
        )

    def _left(self, now: float) -> float:
        """Return the units that this process holds, and those that the store has."""
        refilled = (now - self._synced_at) * self.refill
        return min(self._available + refilled + self.balance, float(self.capacity))


class LeasedRate(LeasedUnits):
    """The units of a rate that this process holds."""

    __slots__ = ("per_minute",)

    def __init__(self, counter: str, per_minute: int) -> None:
        """Hold nothing."""
        super().__init__(counter, per_minute, per_minute / MINUTE)
        self.per_minute: int = per_minute

    def change(self, capacity: int) -> None:
        """Apply another limit. What was used remains used."""
        super().change(capacity)
        self.per_minute: int = capacity

    def reset(self, now: float) -> float:
        """Return the seconds until the bucket is full, as far as this process knows."""
        return (self.capacity - self._left(now)) / self.refill

    def remaining(self, now: float) -> int:
        """Return the units that are available, as far as this process knows."""
        return max(math.floor(self._left(now) + ROUNDING), 0)
