"""Checks endpoints with a harmless text, to tell their own failures from those of inputs."""

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
import msgspec

from embedroute.backend import Batch, Vectors
from embedroute.errors import (
    EmbedrouteError,
    Overloaded,
    PoolTimeout,
    RateLimited,
    Rejected,
    UpstreamTimeout,
)
from embedroute.execution.context import DispatchContext, for_client, make_batch
from embedroute.inputs import Kind
from embedroute.routing import EndpointHealth, HealthRegistry, ResolvedEndpoint, State

HARMLESS: Final = "hello"
TIMEOUT: Final = 5.0
"""Seconds for the response."""
SHORT_TIMEOUT: Final = 1.0
"""Seconds for the response if another endpoint has already answered the request."""
VALID_FOR: Final = 1.0
"""Seconds for which the result of a check is used again."""
MOST_CHECKS: Final = 1024
"""Results that are remembered."""
RECENT: Final = 30.0
"""Seconds after an answer in which one rejection gives no reason for a check."""

Exchange = Callable[
    [ResolvedEndpoint, DispatchContext, Batch, float, frozenset[str]], Awaitable[Vectors]
]
"""Calls an endpoint with a batch, a timeout in seconds and the fields to leave out."""


class Check(msgspec.Struct, eq=False):
    """A check that began at the time ``at``. ``answered`` is its result once it is ``done``."""

    at: float
    done: anyio.Event
    answered: bool = False


class HealthChecker:
    """The checks of one event loop. Concurrent requests share one check of an endpoint."""

    def __init__(
        self, exchange: Exchange, healths: HealthRegistry, clock: Callable[[], float]
    ) -> None:
        """Create a checker that calls endpoints by ``exchange``."""
        self._exchange = exchange
        self._healths = healths
        self._clock = clock
        self._checks: dict[tuple[str, bytes], Check] = {}

    async def is_alive(
        self, candidate: ResolvedEndpoint, health: EndpointHealth, context: DispatchContext
    ) -> bool:
        """Return whether an endpoint embeds the harmless text with the parameters of a request.

        If not, the same text without the parameters tells whether they or the endpoint are to
        blame.
        """
        as_request = make_batch(candidate, {b"": HARMLESS}, context, kind=Kind.TEXT)
        plain = _plain_batch(candidate, context)
        if as_request == plain:
            return await self._share(candidate, health, context, plain, TIMEOUT)
        key_prefix = context.prepared.key_prefix
        if await self._share(candidate, health, context, as_request, TIMEOUT, key_prefix):
            return True
        await self.check(candidate, health, context)
        return False

    async def check(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        context: DispatchContext,
        timeout: float = TIMEOUT,
    ) -> None:
        """Send the harmless text without parameters, and record the result in the health."""
        plain = _plain_batch(candidate, context)
        await self._share(candidate, health, context, plain, timeout)

    async def check_rejecting(
        self,
        candidates: Sequence[ResolvedEndpoint],
        errors: Sequence[EmbedrouteError],
        context: DispatchContext,
    ) -> None:
        """Check the endpoints that rejected without a reason what another endpoint has answered.

        ``errors`` are those of the first ``candidates``.
        """
        for candidate, error in zip(candidates, errors, strict=False):
            health = self._healths.get(candidate)
            now = self._clock()
            is_closed = health.state(now) is State.CLOSED
            if isinstance(error, Rejected) and is_closed and now - health.last_answer > RECENT:
                health.suspect(now, error)
                # The client waits meanwhile, so this takes at most half of the time left.
                timeout = min(SHORT_TIMEOUT, (context.deadline - now) / 2)
                await self.check(candidate, health, context, timeout)

    async def _share(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        context: DispatchContext,
        batch: Batch,
        timeout: float,
        key_prefix: bytes = b"",
    ) -> bool:
        """Return the result of a recent check with an equal ``batch``, or make one.

        False if the endpoint accepts no texts: then a check shows nothing. ``key_prefix`` is empty
        for a check without the parameters of a request.
        """
        now = self._clock()
        timeout = min(timeout, context.deadline - now)
        if not candidate.accepts.texts:
            health.confirm_unchecked(now)
            return False
        if timeout <= 0:
            health.withdraw()
            return False
        key = candidate.key, key_prefix
        check = self._checks.get(key)
        if check is not None and now - check.at < VALID_FOR:
            with anyio.move_on_after(timeout):
                await check.done.wait()
            health.withdraw()
            return check.answered
        if len(self._checks) >= MOST_CHECKS:
            self._checks.clear()
        check = self._checks[key] = Check(now, anyio.Event())
        try:
            failure = await self._send(candidate, health, context, batch, timeout)
            self._record(health, failure, timeout, counts=not key_prefix)
            check.answered = failure is None
        except BaseException:
            health.withdraw()
            raise
        finally:
            check.done.set()
        return check.answered

    async def _send(
        self,
        candidate: ResolvedEndpoint,
        health: EndpointHealth,
        context: DispatchContext,
        batch: Batch,
        timeout: float,
    ) -> EmbedrouteError | None:
        """Send the batch, and return the error if it fails."""
        began = self._clock()
        outside = sys.exception()
        failure = None
        try:
            await self._exchange(candidate, context, batch, timeout, health.omitted(began))
        except EmbedrouteError as error:
            failure = for_client(error, candidate, outside)
        context.trace.add_event(
            "health check",
            "failed" if failure else "answered",
            endpoint=candidate.name,
            ms=round((self._clock() - began) * 1000, 1),
        )
        return failure

    def _record(
        self,
        health: EndpointHealth,
        failure: EmbedrouteError | None,
        timeout: float,
        *,
        counts: bool,
    ) -> None:
        """Record the result in the health, unless it says nothing about the endpoint.

        A rate limit, a short timeout, a wait for the connection pool and exhausted resources of
        this process say nothing.
        """
        now = self._clock()
        is_short = isinstance(failure, UpstreamTimeout) and not health.usually_answers_within(
            timeout, now
        )
        if failure is None:
            health.clear(now)
        elif isinstance(failure, RateLimited | PoolTimeout | Overloaded) or is_short:
            health.withdraw()
        elif counts:
            health.confirm(now)


def _plain_batch(candidate: ResolvedEndpoint, context: DispatchContext) -> Batch:
    return Batch(candidate.model, [HARMLESS], width=context.prepared.route.model.dimensions)
