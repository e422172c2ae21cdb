"""How one endpoint is doing: breaker, rest, learned cap and rolling percentiles; the clock is an argument."""

from collections import deque
from copy import copy
from enum import StrEnum
from typing import Final

import msgspec

from embedroute.errors import LONGEST_HINT, EmbedrouteError, NoHealthyEndpoint, RateLimited, UpstreamError
from embedroute.routing.routes import Candidate

SIGNIFICANT: Final = 30.0
"""Seconds for which a significant failure moves an endpoint behind the others (SEMANTICS of OpenRouter's default)."""
LEARNED_FOR: Final = 600.0
"""Seconds for which a learned cap holds."""
SHORTEST_REST: Final = 1.0
"""Seconds that a 429 without a hint rests its endpoint, and the least that a client is told to wait."""
WINDOW: Final = 300.0
"""Seconds over which percentiles are taken."""
SAMPLES: Final = 1024
"""Calls remembered per endpoint, so that memory stays bounded."""


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


class Sample(msgspec.Struct, frozen=True):
    """One answered call: when it ended, how many seconds it took, tokens a second."""

    at: float
    latency: float
    throughput: float


class Health:
    """The state of one endpoint; every method takes ``now`` in seconds of one monotonic clock."""

    def __init__(self, policy: BreakerPolicy) -> None:
        """Begin closed and rested."""
        self.policy = policy
        self.refusal: UpstreamError | None = None
        self._cap: tuple[int, float] | None = None
        self.limited_until = 0.0
        self._open_until = 0.0
        self._rests = 0
        self._failures = 0
        self._probing = False
        self._last_failure = float("-inf")
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)

    def state(self, now: float) -> State:
        """Tell the breaker's state."""
        if self._rests == 0:
            return State.CLOSED
        return State.OPEN if now < self._open_until else State.HALF_OPEN

    def ready_at(self, now: float) -> float:
        """When a call may be made: ``now``, or the end of the rest that a failure or a 429 asked for."""
        return max(now, self._open_until, self.limited_until)

    def failing(self, now: float) -> bool:
        """Whether a significant failure lies less than 30 s back."""
        return now - self._last_failure < SIGNIFICANT

    def admit(self, now: float) -> bool:
        """Ask to make a call; a half-open breaker admits one probe at a time. Follow with one of the others."""
        if self.ready_at(now) > now:
            return False
        if self.state(now) is State.CLOSED:
            return True
        if self._probing:
            return False
        self._probing = True
        return True

    def succeeded(self, now: float, latency: float, tokens: int) -> None:
        """Close the breaker and remember how long the call took."""
        self._failures = self._rests = 0
        self._probing = False
        self.refusal = None
        self._samples.append(Sample(now, latency, tokens / max(latency, 1e-9)))

    def failed(self, now: float) -> None:
        """Count an upstream's own trouble; enough of it in a row, or a failed probe, opens the breaker."""
        self._last_failure = now
        self._failures += 1
        self.refusal = None
        if self.state(now) is State.OPEN:
            return  # begun before the breaker opened: one burst must not be counted as several outages
        if self._probing or self._failures >= self.policy.failures:
            rest = min(self.policy.longest_rest, self.policy.first_rest * 2 ** min(self._rests, _DOUBLINGS))
            self._open(now + rest)

    def cap(self, now: float) -> int | None:
        """The inputs that one call may hold as far as the upstream has let on lately; None while it has not."""
        return self._cap[0] if self._cap is not None and now < self._cap[1] else None

    def overfilled(self, now: float, inputs: int) -> None:
        """A call of so many ``inputs`` was too large: learn half of it, for a while, as tokens may have been why."""
        half = max(1, inputs // 2)
        self._cap = (min(self.cap(now) or half, half), now + LEARNED_FOR)

    def refused(self, now: float, refusal: UpstreamError | None = None) -> None:
        """Our key or the model was refused: asking again soon is no use, and what was said then still holds."""
        self._last_failure = now
        self.refusal = refusal
        self._open(now + self.policy.refused_rest)

    def limited(self, now: float, rest: float) -> None:
        """The upstream asked for ``rest`` seconds without calls; that says nothing of its health."""
        self._probing = False
        self.limited_until = max(self.limited_until, now + min(rest, LONGEST_HINT))

    def released(self) -> None:
        """The call ended without news of the upstream: cancelled, or the input's own fault."""
        self._probing = False

    def resting(self, now: float) -> EmbedrouteError:
        """Tell why no call is made now: a 429, a refusal that still holds, or an open breaker."""
        rest = max(self.ready_at(now) - now, SHORTEST_REST)
        if self.limited_until > now:
            return RateLimited("Every provider of this model asks to wait.", retry_after=rest)
        if self.refusal is not None:
            return copy(self.refusal)
        return NoHealthyEndpoint("No provider of this model is healthy at the moment.", retry_after=rest)

    def _open(self, until: float) -> None:
        self._open_until = until
        self._rests += 1
        self._probing = False

    def latency(self, percentile: int, now: float) -> float | None:
        """Seconds that ``percentile`` % of recent calls stayed within; None without data."""
        return _percentile(sorted(sample.latency for sample in self._recent(now)), percentile)

    def throughput(self, percentile: int, now: float) -> float | None:
        """Tokens a second that ``percentile`` % of recent calls reached; None without data."""
        return _percentile(sorted((sample.throughput for sample in self._recent(now)), reverse=True), percentile)

    def _recent(self, now: float) -> list[Sample]:
        while self._samples and now - self._samples[0].at > WINDOW:
            self._samples.popleft()
        return list(self._samples)


def _percentile(ordered: list[float], percentile: int) -> float | None:
    # Nearest rank: the smallest value that `percentile` % of all do not exceed.
    if not ordered:
        return None
    return ordered[max(0, -(-percentile * len(ordered) // 100) - 1)]


class Healths:
    """The health of every endpoint of a gateway, made as they are met."""

    def __init__(self, policy: BreakerPolicy) -> None:
        """Know none yet."""
        self._policy = policy
        self._healths: dict[str, Health] = {}

    def of(self, candidate: Candidate) -> Health:
        """The health of one endpoint."""
        health = self._healths.get(candidate.name)
        if health is None:
            health = self._healths[candidate.name] = Health(self._policy)
        return health
