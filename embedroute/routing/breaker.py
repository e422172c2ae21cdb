"""The circuit breaker of an endpoint: when calls are admitted after failures.

Time is an argument: every method takes ``now`` in seconds of one monotonic clock.
"""

from enum import StrEnum
from itertools import count
from typing import Final

from embedroute.config import BreakerPolicy
from embedroute.errors import UpstreamError
from embedroute.routing.call_history import CallHistory
from embedroute.upstream_errors.neutral import neutral

_DOUBLINGS: Final = 32
"""Doublings of a cool-down at most; more would overflow a float in an outage of days."""
FAILURES_IN_A_ROW: Final = 2
"""Failures in a row that open a breaker at any share, as a multiple of the minimum calls."""
FAILURES_OF_SAME_INPUTS: Final = 4
"""How many times more failures lead to a check if the same inputs have failed before."""


class State(StrEnum):
    """The state of a breaker: closed admits all calls, open none, half-open a few at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """The circuit breaker of one endpoint.

    A call gets a permit, a number, and returns it with its outcome. All calls that begin while the
    breaker is closed have the same permit, and it changes when the breaker opens or closes. Each
    *probe*, a call that is admitted while it is not closed, has a permit of its own.

    An outcome with another permit is stale and changes nothing: a late success does not close the
    breaker, and a late failure does not extend the outage or start another.

    Failures that an input may have caused make the breaker *suspect* the endpoint instead of
    opening. It opens by ``confirm``, or is cleared by ``clear``, after the gateway has sent a
    harmless text of its own.
    """

    def __init__(self, policy: BreakerPolicy) -> None:
        """Create a closed breaker."""
        self.history: CallHistory = CallHistory()
        self.open_until: float = 0.0
        self.refusal: UpstreamError | None = None
        self.suspected: bool = False
        self._policy = policy
        self._permits = count(2)
        self._closed_permit = 1
        self._probes: set[int] = set()
        self._last_resorts: set[int] = set()
        self._last_probe = float("-inf")
        self._at_a_time = 0
        self._answered = 0
        self._cooldowns = 0
        self._refusals = 0
        self._failures = 0
        self._distinct = 0
        self._unconnected = 0
        self._suspected_refusal: UpstreamError | None = None

    @property
    def is_rejecting(self) -> bool:
        """Whether the endpoint is suspected of rejecting every call."""
        return self._suspected_refusal is not None

    def state(self, now: float) -> State:
        """Return the state at the time ``now``."""
        if self._cooldowns == 0:
            return State.CLOSED
        return State.OPEN if now < self.open_until else State.HALF_OPEN

    def is_recovering(self, now: float) -> bool:
        """Return whether the breaker is half-open, and a probe was answered since it was open."""
        is_answering = self._at_a_time > 1 or self._answered > 0
        return self.state(now) is State.HALF_OPEN and is_answering and not self.suspected

    def acquire(self, now: float) -> int:
        """Return a permit for a call, or 0 if the call may not be made.

        Pass the permit to one of the ``record_*`` methods or to ``release``. A probe that hangs
        does not keep others back for longer than the longest cool-down.
        """
        if self._cooldowns == 0:
            return self._closed_permit
        if now < self.open_until or self.suspected:
            return 0
        is_full = len(self._probes) >= self._at_a_time
        if is_full and now - self._last_probe < self._policy.longest_cooldown:
            return 0
        self._last_probe = now
        permit = next(self._permits)
        self._probes.add(permit)
        return permit

    def acquire_last_resort(self, *, after_refusal: bool = False) -> int:
        """Return a permit for a call to an open breaker, because no endpoint is left.

        0 if the upstream has rejected the key or the model: the call would be rejected as well,
        unless it is made ``after_refusal`` because an input may have caused the rejection.
        """
        if self._cooldowns == 0:
            return self._closed_permit
        if self.refusal is not None and not after_refusal:
            return 0
        permit = next(self._permits)
        self._last_resorts.add(permit)
        return permit

    def record_success(self, permit: int, now: float) -> None:
        """Count an answered call; an answered probe admits more probes or closes the breaker."""
        if permit == self._closed_permit:
            self.history.record(now, failed=False)
            if self._failures or self._refusals:
                self._forget_failures()
        else:
            self.history.count(now, failed=False)
            if self._end_probe(permit):
                self._record_answered_probe(now)

    def record_failure(
        self,
        permit: int,
        now: float,
        *,
        counts: bool = True,
        by_input: bool = False,
        connecting: bool = False,
    ) -> None:
        """Count a failure; too large a share of the last calls, or a failed probe, opens.

        ``by_input``: an input may have caused it, so it opens nothing by itself. ``counts`` is
        False if an input of the call had failed before. ``connecting``: no connection was made.
        """
        if permit == self._closed_permit:
            self._record_failure_while_closed(
                now, counts=counts, by_input=by_input, connecting=connecting
            )
            return
        if counts:
            self.history.count(now, failed=True)
        if permit in self._last_resorts:
            self._last_resorts.discard(permit)
        elif self._end_probe(permit):
            if by_input:
                self.suspected = True
            else:
                self._record_failed_probe(now)

    def _record_failure_while_closed(
        self, now: float, *, counts: bool, by_input: bool, connecting: bool
    ) -> None:
        self._failures += 1
        self._distinct += counts
        if by_input:
            if counts:
                self.history.count(now, failed=True)
            self._suspect_after_failures()
            return
        self.history.record(now, failed=True)
        self._unconnected = self._unconnected + 1 if connecting else 0
        if self._is_failing(now):
            self._open_after_failures(now)

    def record_rejection(
        self, permit: int, now: float, refusal: UpstreamError | None, cooldown: float
    ) -> None:
        """Open at once for ``cooldown`` seconds: further calls would be rejected as well.

        Every caller gets the refusal until a probe succeeds, so a neutral copy of it is stored.
        """
        self.history.count(now, failed=True)
        if permit == self._closed_permit or self._end_probe(permit):
            self._refusals += 1
            self._open(now + cooldown, None if refusal is None else neutral(refusal))

    def suspect(self, permit: int, refusal: UpstreamError) -> None:
        """Suspect the endpoint of rejecting every call as ``refusal``."""
        if permit == self._closed_permit or self._end_probe(permit):
            self.suspected = True
            self._suspected_refusal = refusal

    def confirm(self, now: float) -> None:
        """Open: the endpoint has failed for the gateway's own text as well."""
        refusal = self._suspected_refusal
        if refusal is not None:
            self._open(now + self._policy.rejection_cooldown, neutral(refusal))
        elif self.suspected or self._cooldowns == 0:
            self._open_after_failures(now)

    def confirm_unchecked(self, now: float) -> None:
        """Open if enough different inputs have failed: the endpoint accepts no texts to check."""
        if self._distinct >= self._policy.failures or self._cooldowns:
            self.confirm(now)
        else:
            self.withdraw()

    def clear(self, now: float) -> None:
        """Forget the failures: the endpoint has embedded the gateway's own text."""
        if self._cooldowns == 0:
            self._forget_failures()
        elif self.suspected:
            self._forget_suspicion()
            self._record_answered_probe(now)

    def withdraw(self) -> None:
        """Drop the suspicion: the gateway could not send its own text."""
        self._forget_suspicion()

    def doubled(self, first: float, longest: float) -> float:
        """Return a cool-down that starts at ``first`` seconds and doubles with each refusal."""
        return min(longest, first * 2 ** min(self._refusals, _DOUBLINGS))

    def release(self, permit: int) -> None:
        """Return the permit of a call without a usable outcome, so that another probe can start."""
        self._end_probe(permit)

    def _end_probe(self, permit: int) -> bool:
        """End the probe with this permit; return whether there was one."""
        is_probe = permit in self._probes or permit in self._last_resorts
        self._probes.discard(permit)
        self._last_resorts.discard(permit)
        return is_probe

    def _is_failing(self, now: float) -> bool:
        policy = self._policy
        if (
            self._unconnected >= policy.failures
            or self._failures >= FAILURES_IN_A_ROW * policy.minimum_calls
        ):
            return True
        calls, failed = self.history.last(now)
        return calls >= policy.minimum_calls and failed >= policy.failure_rate * calls

    def _suspect_after_failures(self) -> None:
        most = self._policy.failures
        if self._distinct >= most or self._failures >= FAILURES_OF_SAME_INPUTS * most:
            self.suspected = True

    def _record_answered_probe(self, now: float) -> None:
        self.open_until = min(self.open_until, now)
        self.refusal = None
        self._answered += 1
        if self._answered < self._at_a_time:
            return
        self._answered = 0
        self._at_a_time *= 2
        if self._at_a_time > self._policy.slow_start:
            self._cooldowns = 0
            self._closed_permit = next(self._permits)
            self.history.forget_last()
            self._forget_failures()

    def _record_failed_probe(self, now: float) -> None:
        if self._at_a_time == 1:
            self._open_after_failures(now)
        else:
            self._at_a_time //= 2
            self._answered = 0

    def _open_after_failures(self, now: float) -> None:
        cooldown = self._policy.initial_cooldown * 2 ** min(self._cooldowns, _DOUBLINGS)
        self._open(now + min(self._policy.longest_cooldown, cooldown), None)

    def _open(self, until: float, refusal: UpstreamError | None) -> None:
        self.open_until = until
        self.refusal = refusal
        self._cooldowns += 1
        self._at_a_time = 1
        self._answered = 0
        self._closed_permit = next(self._permits)
        self._probes.clear()
        self._last_probe = float("-inf")
        self._failures = self._distinct = self._unconnected = 0
        self._forget_suspicion()

    def _forget_failures(self) -> None:
        self._failures = self._distinct = self._unconnected = self._refusals = 0
        self._forget_suspicion()

    def _forget_suspicion(self) -> None:
        self.suspected = False
        self._suspected_refusal = None
