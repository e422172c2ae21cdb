"""Resolves the names of upstreams in threads of its own, with a cache.

The system's resolver blocks a thread for as long as a DNS server does not answer. The default
threads of an event loop are few, so lookups of one name could occupy all of them and delay every
other upstream. Here each name has at most ``MOST_LOOKUPS`` threads, and they are daemon threads, so
that a lookup that hangs does not prevent the process from exiting.
"""

import copy
import math
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from itertools import zip_longest
from time import monotonic
from typing import Final

import anyio

from embedroute.runtime import time_limits
from embedroute.transport.base import DNS_TTL, dns_timeout

MOST_LOOKUPS: Final = 2
"""Lookups of one name that may be in flight."""
HANGING: Final = 5.0
"""Seconds after which a lookup counts as hanging, so that a second one may start."""
STALE_MAX_WAIT: Final = 0.25
"""Seconds after which a request uses an expired answer while the lookup continues."""
STALE_FOR: Final = 3600.0
"""Seconds after its expiry for which an answer is used if lookups fail (RFC 8767 allows days)."""
PAUSE: Final = 1.0
"""Seconds for which an expired answer is used without a lookup after a failed one."""
MOST_NAMES: Final = 1024
"""Names whose answers are kept."""

Address = tuple[int, int, int, str, tuple[str | int | bytes, ...]]
"""Family, type, protocol, canonical name and socket address, as of ``socket.getaddrinfo``."""
Lookup = Callable[[str, int], Sequence[Address]]
"""Returns the addresses of a host and port, the preferred one first; raises ``OSError``.

It runs in a thread and may block.
"""


def look_up(host: str, port: int) -> Sequence[Address]:
    """Return the addresses of a name from the system's resolver."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)


def interleave(addresses: Sequence[Address]) -> list[Address]:
    """Let the address families alternate, as RFC 8305 (section 4) recommends."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    return [
        address
        for round_of_families in zip_longest(*families.values())
        for address in round_of_families
        if address is not None
    ]


class Resolver:
    """The names of one event loop's upstreams.

    Requests that need the same name at the same time share one lookup. An answer is used for
    ``ttl`` seconds. If a later lookup fails or hangs, the expired answer is used.
    """

    def __init__(
        self,
        lookup: Lookup = look_up,
        ttl: float = DNS_TTL,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Create a resolver with an empty cache. A ``ttl`` of 0 turns the cache off."""
        self._lookup = lookup
        self._ttl = ttl
        self._clock = clock
        self._names: dict[tuple[str, int], _Name] = {}

    async def resolve(self, host: str, port: int, max_wait: float = math.inf) -> Sequence[Address]:
        """Return the addresses of a host. An IP address needs no lookup.

        Raises:
            ConnectError: the lookup has been in flight for ``max_wait`` seconds. It continues, so
                that a later request finds its answer in the cache.
            OSError: the lookup failed, or the name has no address.
            RuntimeError: no thread can be started.
        """
        with suppress(socket.gaierror):
            tcp = (socket.SOCK_STREAM, socket.IPPROTO_TCP)
            return socket.getaddrinfo(host, port, 0, *tcp, socket.AI_NUMERICHOST)
        name = self._names.get((host, port)) or self._add_name(host, port)
        now = self._clock()
        if now < name.expires_at:
            return name.addresses
        expired = name.addresses if now < name.stale_until else ()
        try:
            lookup = self._join_lookup(name, now)
        except RuntimeError:
            if not expired:
                raise
            return expired
        longest = min(max_wait, STALE_MAX_WAIT) if expired else max_wait
        await lookup.wait(lookup.began + longest - now)
        if lookup.addresses or expired:
            return lookup.addresses or expired
        if lookup.error is None:
            raise dns_timeout(max_wait)
        raise copy.copy(lookup.error) from None

    def expire(self, host: str, port: int) -> None:
        """Look a name up again at its next use: its addresses could not be reached."""
        if name := self._names.get((host, port)):
            name.expires_at = -math.inf

    def _add_name(self, host: str, port: int) -> "_Name":
        if len(self._names) >= MOST_NAMES:
            self._names.clear()
        name = _Name(host, port)
        self._names[host, port] = name
        return name

    def _join_lookup(self, name: "_Name", now: float) -> "_LookupInFlight":
        """Return the latest lookup of a name, or a new one if there is none or if it hangs.

        Raises:
            RuntimeError: no lookup is in flight, and no thread can be started.
        """
        latest = name.lookups[-1] if name.lookups else None
        is_full = len(name.lookups) >= MOST_LOOKUPS
        if latest is not None and (is_full or now - latest.began < HANGING):
            return latest
        lookup = _LookupInFlight(now)
        finish = partial(time_limits.get_call_soon_threadsafe(), self._finish, name, lookup)
        run = partial(_run, self._lookup, name.host, name.port, finish)
        thread = threading.Thread(target=run, name="embedroute-dns", daemon=True)
        try:
            # An empty context: free-threaded Python copies the starter's context into a thread.
            Context().run(thread.start)
        except RuntimeError:
            if latest is None:
                raise
            return latest
        name.lookups.append(lookup)
        return lookup

    def _finish(
        self, name: "_Name", lookup: "_LookupInFlight", result: Sequence[Address] | Exception
    ) -> None:
        """Store the result of a lookup, and wake the requests that wait for it."""
        name.lookups.remove(lookup)
        now = self._clock()
        if not result:
            result = socket.gaierror("the name has no address")
        if isinstance(result, Exception):
            lookup.error = result
            name.expires_at = max(name.expires_at, min(now + PAUSE, name.stale_until))
            lookup.ended.set()
            return
        if self._ttl:
            name.addresses = result
            name.expires_at = now + self._ttl
            name.stale_until = name.expires_at + STALE_FOR
        for each in (lookup, *name.lookups):
            each.addresses = result
            each.ended.set()


class _Name:
    """The latest answer for a host and port, and the lookups in flight, the latest one last."""

    __slots__ = ("addresses", "expires_at", "host", "lookups", "port", "stale_until")

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.addresses: Sequence[Address] = ()
        self.expires_at = -math.inf
        self.stale_until = -math.inf
        self.lookups: list[_LookupInFlight] = []


class _LookupInFlight:
    """A lookup that a thread makes, and its result."""

    __slots__ = ("addresses", "began", "ended", "error")

    def __init__(self, began: float) -> None:
        self.began = began
        self.ended = anyio.Event()
        self.addresses: Sequence[Address] = ()
        self.error: Exception | None = None

    async def wait(self, seconds: float) -> None:
        """Wait until the lookup has ended, at most ``seconds``."""
        if seconds == math.inf:
            await self.ended.wait()
        elif seconds > 0 and not self.ended.is_set():
            with suppress(TimeoutError), time_limits.fail_after(seconds):
                await self.ended.wait()


def _run(
    lookup: Lookup,
    host: str,
    port: int,
    finish: Callable[[Sequence[Address] | Exception], object],
) -> None:
    """Make a lookup in a thread, and pass its result on unless the event loop has ended."""
    result: Sequence[Address] | Exception
    try:
        result = lookup(host, port)
    except Exception as error:  # noqa: BLE001 - raised again in the tasks that wait
        result = error.with_traceback(None)
    with suppress(RuntimeError):
        finish(result)
