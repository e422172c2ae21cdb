"""Limits how many connections to one origin are in use, and queues the other requests."""

from collections import deque
from typing import Final

import anyio

from embedroute.transport.base import ExchangeLimits, pool_timeout

WAIT_SHARE: Final = 0.9
"""Share of its timeout for which a request may wait for a connection."""


class ConnectionSlots:
    """The connections to one origin that are in use, and the requests that wait for one.

    Each request has the limit of its provider, and all count the same connections. Each limit has
    its own queue, in the order of arrival. A request waits only while its limit is reached, so a
    connection that becomes free can only admit a request whose limit has just been reached.

    The fast path is the caller's: increment ``in_use`` if it is below the limit, else ``wait``.
    Afterwards decrement ``in_use``, and call ``admit`` if requests are ``waiting``.
    """

    __slots__ = ("in_use", "waiting")

    def __init__(self) -> None:
        """Start with no connection in use."""
        self.in_use: int = 0
        self.waiting: dict[int, deque[anyio.Event]] = {}
        """Limit → the events of the requests that wait with it. No queue is empty."""

    async def wait(self, limits: ExchangeLimits, timeout: float) -> None:
        """Wait until fewer than ``limits.max_connections`` are in use, and count as one of them.

        Raises:
            PoolTimeout: this takes longer than ``WAIT_SHARE`` of ``timeout`` seconds.
        """
        admitted = anyio.Event()
        limit = limits.max_connections
        self.waiting.setdefault(limit, deque()).append(admitted)
        try:
            with anyio.move_on_after(timeout * WAIT_SHARE):
                await admitted.wait()
        except BaseException:
            self._give_up(limit, admitted)
            raise
        if not admitted.is_set():
            self._give_up(limit, admitted)
            raise pool_timeout(limits, timeout * WAIT_SHARE)

    def admit(self) -> None:
        """Give a connection that has become free to the request that has waited longest."""
        limit = self.in_use + 1
        if limit in self.waiting:
            admitted = self.waiting[limit][0]
            self._remove(limit, admitted)
            self.in_use += 1
            admitted.set()

    def _give_up(self, limit: int, admitted: anyio.Event) -> None:
        """Leave the queue, or pass the connection on if the request was admitted already."""
        if admitted.is_set():
            self.in_use -= 1
            self.admit()
        else:
            self._remove(limit, admitted)

    def _remove(self, limit: int, admitted: anyio.Event) -> None:
        queue = self.waiting[limit]
        queue.remove(admitted)
        if not queue:
            del self.waiting[limit]
