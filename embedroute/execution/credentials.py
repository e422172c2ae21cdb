"""Obtains the credentials of backends, renews them in time, and sends authorized requests.

Credentials are fetched in a worker thread. Concurrent calls wait for the same fetch.
"""

import copy
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, NamedTuple

import anyio
import anyio.from_thread
import anyio.to_thread

from embedroute.backend import Credentials, HTTPBackend, UpstreamRequest, UpstreamResponse
from embedroute.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from embedroute.routing import BoundedMap
from embedroute.runtime import LARGE, fairness
from embedroute.transport import ExchangeLimits

SendAsync = Callable[[UpstreamRequest, float, ExchangeLimits], Awaitable[UpstreamResponse]]

MARGIN: Final = 300.0
"""Seconds before their end at which credentials are renewed; at most a tenth of their lifetime."""
RENEW_AFTER: Final = 30.0
"""Age in seconds from which refused credentials are renewed. Newer ones would be refused again."""
RETRY_AFTER: Final = 10.0
"""Seconds until the next attempt to renew credentials that are still valid."""
FAILURE_KEPT: Final = 1.0
"""Seconds for which other calls get the same error after a fetch has failed."""
MOST_THREADS: Final = 2
"""Fetches of one backend that may hang before no other is started."""
REFUSALS: Final = frozenset({401, 403})


class _Fetched(NamedTuple):
    """Credentials, and the times when they were fetched, must be renewed and end."""

    credentials: Credentials | None
    fetched: float
    renew: float
    ends: float


class _Entry:
    """The credentials of one backend."""

    def __init__(self, backend: HTTPBackend) -> None:
        self.backend = backend
        self.lock = anyio.Lock()
        self.current: _Fetched | None = None
        self.failure: tuple[UpstreamError, float] | None = None
        self.threads = 0


class CredentialStore:
    """The credentials of a gateway's backends, for one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Create an empty store; the first call of a backend fetches its credentials."""
        self._clock = clock
        # Bounded: each caller's own key makes a backend. An entry keeps its backend alive, so that
        # no other backend has its id.
        self._entries: BoundedMap[int, _Entry] = BoundedMap()

    async def send(
        self,
        backend: HTTPBackend,
        send: SendAsync,
        request: UpstreamRequest,
        timeout: float,
        limits: ExchangeLimits,
    ) -> UpstreamResponse:
        """Send ``request`` with the credentials of ``backend``; renew refused ones once.

        Raises:
            UpstreamTimeout: the credentials were not obtained within ``timeout`` seconds.
            UpstreamError: they could not be obtained, or as ``send``.
        """
        ends = self._clock() + timeout
        entry = self._entries.get(id(backend))
        if entry is None:
            entry = self._entries.get_or_insert(id(backend), _Entry(backend))
        obtain = partial(self._obtain, entry, send, ends, limits)
        current = entry.current
        if current is None or self._clock() >= current.renew:
            current = await obtain()
        authorized = await _authorize(backend, request, current.credentials)
        response = await send(authorized, ends - self._clock(), limits)
        if response.status not in REFUSALS or not self._may_be_stale(current):
            return response
        try:
            current = await obtain(refused=current)
        except UpstreamError:  # the refusal says more
            return response
        authorized = await _authorize(backend, request, current.credentials)
        return await send(authorized, ends - self._clock(), limits)

    def _may_be_stale(self, current: _Fetched) -> bool:
        return current.credentials is not None and self._clock() - current.fetched >= RENEW_AFTER

    async def _obtain(
        self,
        entry: _Entry,
        send: SendAsync,
        ends: float,
        limits: ExchangeLimits,
        refused: _Fetched | None = None,
    ) -> _Fetched:
        """Return credentials that need not be renewed yet, other than the ``refused`` ones."""
        seconds = ends - self._clock()
        with anyio.move_on_after(seconds):
            async with entry.lock:
                current = entry.current
                if current is None or current is refused or self._clock() >= current.renew:
                    current = await self._renew(entry, send, ends, limits, refused)
                return current
        raise UpstreamTimeout(f"The credentials were not obtained within {seconds:.1f} s.")

    async def _renew(
        self,
        entry: _Entry,
        send: SendAsync,
        ends: float,
        limits: ExchangeLimits,
        refused: _Fetched | None,
    ) -> _Fetched:
        current = entry.current
        try:
            return await self._fetch(entry, send, ends, limits)
        except Exception as error:
            now = self._clock()
            if isinstance(error, UpstreamError):
                entry.failure = (error, now + FAILURE_KEPT)
            if current is None or current is refused or now >= current.ends:
                raise
            entry.current = current._replace(renew=now + RETRY_AFTER)
            return entry.current

    async def _fetch(
        self, entry: _Entry, send: SendAsync, ends: float, limits: ExchangeLimits
    ) -> _Fetched:
        if entry.failure is not None and self._clock() < entry.failure[1]:
            raise copy.copy(entry.failure[0])
        if entry.threads >= MOST_THREADS:
            raise UpstreamUnavailable("Earlier attempts to obtain credentials have not ended yet.")

        async def send_in_time(request: UpstreamRequest) -> UpstreamResponse:
            return await send(request, max(ends - self._clock(), 0.001), limits)

        def fetch() -> _Fetched:
            entry.threads += 1
            try:
                credentials = entry.backend.fetch_credentials(
                    partial(anyio.from_thread.run, send_in_time)
                )
            finally:
                entry.threads -= 1
            # Set here, so that the result is kept even if this call has been cancelled.
            entry.current = current = self._timed(credentials)
            return current

        # Not the shared limiter: a thread that hangs must not keep others from working.
        limiter = anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(fetch, abandon_on_cancel=True, limiter=limiter)

    def _timed(self, credentials: Credentials | None) -> _Fetched:
        now = self._clock()
        lifetime = math.inf if credentials is None else credentials.lifetime
        return _Fetched(
            credentials, now, now + lifetime - min(MARGIN, lifetime / 10), now + lifetime
        )


async def _authorize(
    backend: HTTPBackend, request: UpstreamRequest, credentials: Credentials | None
) -> UpstreamRequest:
    if credentials is None:
        return request
    authorize = partial(backend.authorize, request, credentials)
    # Signing reads the whole body.
    is_large = len(request.content) >= LARGE
    return await fairness.run_in_worker(authorize) if is_large else authorize()
