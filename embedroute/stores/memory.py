"""Counts in the memory of one process."""

import threading
import time
from collections.abc import Callable, Sequence

from embedroute.stores.base import Charge, Refusal


class MemoryBudgets:
    """The ``BudgetStore`` of a gateway without a store. It forgets everything at its end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing spent."""
        self._clock = clock
        self._lock = threading.Lock()  # several event loops may share a gateway
        self._spent: dict[str, int] = {}
        self._reserved: dict[str, tuple[float, Sequence[Charge]]] = {}

    def reserve(
        self, reservation: str, charges: Sequence[Charge], seconds: float
    ) -> Refusal | None:
        """Reserve all charges, or none of them."""
        with self._lock:
            now = self._clock()
            reserved = self._sum_reserved(now)
            for index, (counter, limit, amount) in enumerate(charges):
                left = limit - self._spent.get(counter, 0) - reserved.get(counter, 0)
                if amount > left:
                    return Refusal(index, left)
            self._reserved[reservation] = now + seconds, charges
        return None

    def settle(self, reservation: str, spent: Sequence[tuple[str, int]]) -> None:
        """Release a reservation, and add what was spent."""
        with self._lock:
            self._reserved.pop(reservation, None)
            for counter, amount in spent:
                self._spent[counter] = self._spent.get(counter, 0) + amount

    def _sum_reserved(self, now: float) -> dict[str, int]:
        sums: dict[str, int] = {}
        for key, (expires, charges) in list(self._reserved.items()):
            if expires <= now:
                del self._reserved[key]
                continue
            for counter, _, amount in charges:
                sums[counter] = sums.get(counter, 0) + amount
        return sums
