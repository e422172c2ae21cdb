"""The circuit breaker of an endpoint: when calls are admitted after failures.

Time is an argument: every method takes ``now`` in seconds of one monotonic clock.
"""

from enum import StrEnum
from typing import Final

import msgspec

from embedroute.errors import UpstreamError
from embedroute.upstream_errors.neutral import neutral

_DOUBLINGS: Final = 32
"""Doublings of a cool-down at most; more would overflow a float in an outage of days."""


class BreakerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """After how many failures in a row a breaker opens, and for how many seconds.

    The cool-down of a spent account doubles each time, from ``quota_cooldown`` to
    ``longest_quota_cooldown``.
    """

    failures: int = 5
    initial_cooldown: float = 5.0
    longest_cooldown: float = 120.0
    rejection_cooldown: float = 30.0
    quota_cooldown: float = 300.0
    longest_quota_cooldown: float = 3600.0


class State(StrEnum):
    """The state of a breaker: closed admits all calls, open none, half-open one probe at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """The circuit breaker of one endpoint.

    A call gets a permit and returns it with its outcome. Each change of the breaker begins a new
    epoch: it opens, closes, or starts or ends a probe. A permit is the number of the epoch in which
    the call began.

    An outcome with a permit of an earlier epoch is stale and changes nothing: a late success does
    not close the breaker, and a late failure does not extend the outage or start another. Only the
    probe can end its own probe.

    Failures that an input may have caused make the breaker *suspect* the endpoint instead of
    opening. It opens by ``confirm``, or is cleared by ``clear``, after the gateway has sent a
    harmless text of its own.
    """

    def __init__(self, policy: BreakerPolicy) -> None:
        """Create a closed breaker."""
        self.open_until = 0.0
        self.refusal: UpstreamError | None = None
        self.suspected = False
        self._policy = policy
        self._epoch = 1
        self._probing = False
        self._cooldowns = 0
        self._refusals = 0
        self._failures = 0
        self._own_failures = 0
        self._suspected_refusal: UpstreamError | None = None

    def state(self, now: float) -> State:
        """Return the state at the time ``now``."""
        if self._cooldowns == 0:
            return State.CLOSED
        return State.OPEN if now < self.open_until else State.HALF_OPEN

    def acquire(self, now: float) -> int:
        """Return a permit for a call, or 0 if the call may not be made.

        Pass the permit to one of the ``record_*`` methods or to ``release``.
        """
        if self._cooldowns:
            if self._probing or now < self.open_until:
                return 0
            self._next_epoch(probing=True)
        return self._epoch

    def record_success(self, permit: int) -> None:
        """Reset the count of failures; the probe's success closes the breaker."""
        if permit == self._epoch:
            self._reset()

    def record_failure(
        self, permit: int, now: float, *, counts: bool = True, by_input: bool = False
    ) -> None:
        """Record a failure; enough of them in a row, or one of the probe, open the breaker.

        With ``counts=False`` it is not counted, but a failed probe still opens the breaker.
        ``by_input``: an input may have caused it, so it opens nothing by itself.
        """
        if permit != self._epoch:
            return
        self._failures += counts
        self._own_failures += counts and not by_input
        most = self._policy.failures
        if by_input:
            self.suspected = self.suspected or self._probing or self._failures >= most
        elif self._probing or self._own_failures >= most:
            self._open_after_failures(now)

    def record_rejection(
        self, permit: int, now: float, refusal: UpstreamError | None, cooldown: float
    ) -> None:
        """Open at once for ``cooldown`` seconds: further calls would be rejected as well.

        Every caller gets the refusal until a probe succeeds, so a neutral copy of it is stored.
        """
        if permit == self._epoch:
            self._refusals += 1
            self._open(now + cooldown, None if refusal is None else neutral(refusal))

    def suspect(self, permit: int, refusal: UpstreamError) -> None:
        """Suspect the endpoint of rejecting every call as ``refusal``."""
        if permit == self._epoch:
            self.suspected = True
            self._suspected_refusal = refusal

    def confirm(self, now: float) -> None:
        """Open: the endpoint has failed for the gateway's own text as well."""
        refusal = self._suspected_refusal
        if refusal is not None:
            self._open(now + self._policy.rejection_cooldown, neutral(refusal))
        elif self.suspected or self._cooldowns == 0:
            self._open_after_failures(now)

    def clear(self) -> None:
        """Reset: the endpoint has embedded the gateway's own text."""
        if self.suspected or self._cooldowns == 0:
            self._reset()

    def withdraw(self) -> None:
        """Drop the suspicion: the gateway could not send its own text."""
        if self.suspected:
            self._forget_suspicion()
            if self._probing:
                self._next_epoch()

    def doubled(self, first: float, longest: float) -> float:
        """Return a cool-down that starts at ``first`` seconds and doubles with each refusal."""
        return min(longest, first * 2 ** min(self._refusals, _DOUBLINGS))

    def release(self, permit: int) -> None:
        """Return the permit of a call without a usable outcome, so that another probe can start."""
        if self._probing and permit == self._epoch:
            self._next_epoch()

    def _open_after_failures(self, now: float) -> None:
        cooldown = self._policy.initial_cooldown * 2 ** min(self._cooldowns, _DOUBLINGS)
        self._open(now + min(self._policy.longest_cooldown, cooldown), None)

    def _open(self, until: float, refusal: UpstreamError | None) -> None:
        self.open_until = until
        self.refusal = refusal
        self._cooldowns += 1
        self._failures = 0
        self._own_failures = 0
        self._forget_suspicion()
        self._next_epoch()

    def _reset(self) -> None:
        self._failures = 0
        self._own_failures = 0
        self._refusals = 0
        self._forget_suspicion()
        if self._probing:
            self._cooldowns = 0
            self.refusal = None
            self._next_epoch()

    def _forget_suspicion(self) -> None:
        self.suspected = False
        self._suspected_refusal = None

    def _next_epoch(self, *, probing: bool = False) -> None:
        self._epoch += 1
        self._probing = probing
