"""When an endpoint is left alone after failures, and whose outcome lets calls through again; the clock is an argument."""

from enum import StrEnum
from typing import Final

import msgspec

from embedroute.errors import UpstreamError
from embedroute.shared_failures import neutral

_DOUBLINGS: Final = 32
"""Doublings of a rest; more would overflow a float in an outage of days."""


class BreakerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When an endpoint is taken out, and for how long (seconds)."""

    failures: int = 5
    first_rest: float = 5.0
    longest_rest: float = 120.0
    refused_rest: float = 30.0


class State(StrEnum):
    """Of a breaker: closed lets all through, open none, half-open one probe at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """The breaker of one endpoint; every method takes ``now`` in seconds of one monotonic clock.

    A call is let in with a ticket and brings it back with its outcome. A new epoch begins whenever the breaker opens,
    lets a probe in, has the probe's place free again, or closes; a ticket is the epoch it was given in. The outcome
    of an earlier epoch is stale and changes nothing: a late success does not close the breaker, a late failure or
    refusal is of an outage that is known already and neither lengthens it nor begins another, and nobody but the
    probe itself frees the probe's place.
    """

    def __init__(self, policy: BreakerPolicy) -> None:
        """Begin closed."""
        self.open_until = 0.0
        self.refusal: UpstreamError | None = None
        self._policy = policy
        self._epoch = 1
        self._probing = False
        self._rests = 0
        self._failures = 0

    def state(self, now: float) -> State:
        """Tell the state."""
        if self._rests == 0:
            return State.CLOSED
        return State.OPEN if now < self.open_until else State.HALF_OPEN

    def admit(self, now: float) -> int:
        """Ask to make a call: its ticket, or 0 if it may not be made. Follow with one of the others."""
        if self._rests:
            if self._probing or now < self.open_until:
                return 0
            self._turn(probing=True)
        return self._epoch

    def succeeded(self, ticket: int) -> None:
        """Begin the count of failures anew; the probe's success closes the breaker."""
        if ticket != self._epoch:
            return
        self._failures = 0
        if self._probing:
            self._rests = 0
            self.refusal = None
            self._turn()

    def failed(self, ticket: int, now: float, *, counts: bool = True) -> None:
        """Count a failure, if it ``counts``; enough in a row, or the probe's, open the breaker."""
        if ticket != self._epoch:
            return
        self._failures += counts
        if self._probing or self._failures >= self._policy.failures:
            rest = self._policy.first_rest * 2 ** min(self._rests, _DOUBLINGS)
            self._open(now + min(self._policy.longest_rest, rest), None)

    def refused(self, ticket: int, now: float, refusal: UpstreamError | None) -> None:
        """Open at once: asking again soon is no use.

        Every caller is told of the refusal until a probe ends it, so a neutral copy is stored.
        """
        if ticket == self._epoch:
            stored = None if refusal is None else neutral(refusal)
            self._open(now + self._policy.refused_rest, stored)

    def released(self, ticket: int) -> None:
        """Free the place of a probe that brought no news."""
        if self._probing and ticket == self._epoch:
            self._turn()

    def _open(self, until: float, refusal: UpstreamError | None) -> None:
        self.open_until = until
        self.refusal = refusal
        self._rests += 1
        self._turn()

    def _turn(self, *, probing: bool = False) -> None:
        self._epoch += 1
        self._probing = probing
