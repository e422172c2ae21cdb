"""When an endpoint is left alone after failures, and whose outcome lets calls through again; the clock is an argument.

How one endpoint is doing: breaker, rest, learned caps and percentiles; the clock is an argument.
"""

from collections import deque
from collections.abc import Collection, Hashable
from enum import StrEnum
from typing import Final

import msgspec

from embedroute.backend import Accepts
from embedroute.errors import (
    LONGEST_RETRY_AFTER,
    EmbedrouteError,
    InvalidUpstreamResponse,
    Measure,
    NoHealthyEndpoint,
    RateLimited,
    Rejected,
    UpstreamAuthError,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamUnavailable,
)
from embedroute.routing.batch_limits import LearnedCap, lowered, narrowed, raised
from embedroute.routing.bounded_map import BoundedMap
from embedroute.routing.registry import ResolvedEndpoint
from embedroute.upstream_errors.neutral import neutral

_DOUBLINGS: Final = 32
"""Doublings of a rest; more would overflow a float in an outage of days."""


class BreakerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When an endpoint is taken out, and for how long (seconds)."""

    failures: int = 5
    initial_cooldown: float = 5.0
    longest_cooldown: float = 120.0
    rejection_cooldown: float = 30.0


class State(StrEnum):
    """Of a breaker: closed lets all through, open none, half-open one probe at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
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
        self._cooldowns = 0
        self._failures = 0

    def state(self, now: float) -> State:
        """Tell the state."""
        if self._cooldowns == 0:
            return State.CLOSED
        return State.OPEN if now < self.open_until else State.HALF_OPEN

    def acquire(self, now: float) -> int:
        """Ask to make a call: its ticket, or 0 if it may not be made. Follow with one of the others."""
        if self._cooldowns:
            if self._probing or now < self.open_until:
                return 0
            self._next_epoch(probing=True)
        return self._epoch

    def record_success(self, permit: int) -> None:
        """Begin the count of failures anew; the probe's success closes the breaker."""
        if permit != self._epoch:
            return
        self._failures = 0
        if self._probing:
            self._cooldowns = 0
            self.refusal = None
            self._next_epoch()

    def record_failure(self, permit: int, now: float, *, counts: bool = True) -> None:
        """Count a failure, if it ``counts``; enough in a row, or the probe's, open the breaker."""
        if permit != self._epoch:
            return
        self._failures += counts
        if self._probing or self._failures >= self._policy.failures:
            rest = self._policy.initial_cooldown * 2 ** min(self._cooldowns, _DOUBLINGS)
            self._open(now + min(self._policy.longest_cooldown, rest), None)

    def record_rejection(self, permit: int, now: float, refusal: UpstreamError | None) -> None:
        """Open at once: asking again soon is no use.

        Every caller is told of the refusal until a probe ends it, so a neutral copy is stored.
        """
        if permit == self._epoch:
            stored = None if refusal is None else neutral(refusal)
            self._open(now + self._policy.rejection_cooldown, stored)

    def release(self, permit: int) -> None:
        """Free the place of a probe that brought no news."""
        if self._probing and permit == self._epoch:
            self._next_epoch()

    def _open(self, until: float, refusal: UpstreamError | None) -> None:
        self.open_until = until
        self.refusal = refusal
        self._cooldowns += 1
        self._next_epoch()

    def _next_epoch(self, *, probing: bool = False) -> None:
        self._epoch += 1
        self._probing = probing


SIGNIFICANT: Final = 30.0
"""Seconds for which a significant failure moves an endpoint behind the others (SEMANTICS of OpenRouter's default)."""
SUSPECTS: Final = 8
"""Failed calls whose inputs are remembered until a call succeeds."""
SHORTEST_COOLDOWN: Final = 1.0
"""Seconds that a 429 without a hint rests its endpoint, and the least that a client is told to wait."""
WINDOW: Final = 300.0
"""Seconds over which percentiles are taken."""
SAMPLES: Final = 1024
"""Calls remembered per endpoint, so that memory stays bounded."""


class Sample(msgspec.Struct, frozen=True):
    """One answered call: when it ended, how many seconds it took, tokens a second."""

    at: float
    latency: float
    throughput: float


class EndpointHealth:
    """The state of one endpoint; every method takes ``now`` in seconds of one monotonic clock.

    A call that is let in gets a ticket, which it brings back with its outcome, so that a call from before an outage
    cannot pass for the probe that ends it (see ``CircuitBreaker``). What a late call says of the endpoint itself is learned
    all the same: how long it took, that the endpoint failed lately, and how long it asks to be left alone.
    """

    def __init__(self, policy: BreakerPolicy) -> None:
        """Begin closed and rested."""
        self.limited_until = 0.0
        self.learned: dict[Measure, LearnedCap] = {}
        self._breaker = CircuitBreaker(policy)
        self._last_failure = float("-inf")
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._suspects: deque[frozenset[Hashable]] = deque(maxlen=SUSPECTS)
        self._rejected: frozenset[Hashable] | None = None

    def state(self, now: float) -> State:
        """Tell the breaker's state."""
        return self._breaker.state(now)

    def available_at(self, now: float) -> float:
        """When a call may be made: ``now``, or the end of the rest that a failure or a 429 asked for."""
        return max(now, self._breaker.open_until, self.limited_until)

    def failing(self, now: float) -> bool:
        """Whether a significant failure lies less than 30 s back."""
        return now - self._last_failure < SIGNIFICANT

    def acquire(self, now: float) -> int:
        """Ask to make a call: its ticket, or 0 if it may not be made; a half-open breaker admits one probe at a time.

        Bring the ticket back to ``record_success``, ``record_error`` or ``release``.
        """
        return 0 if now < self.limited_until else self._breaker.acquire(now)

    def record_success(self, permit: int, now: float, latency: float, tokens: int) -> None:
        """Remember how long the call took; the probe's success closes the breaker."""
        self._breaker.record_success(permit)
        if self._suspects or self._rejected:
            self._suspects.clear()
            self._rejected = None
        self._samples.append(Sample(now, latency, tokens / max(latency, 1e-9)))

    def record_error(
        self,
        permit: int,
        now: float,
        failure: EmbedrouteError,
        work: Collection[Hashable] = (),
    ) -> None:
        """Take what a failure says of the endpoint; an input's own, or one counted already, says nothing.

        ``work`` holds the keys of the call's inputs. An input can cause an error status or a bad
        answer. Such a failure counts once for each input until a call succeeds, so that one bad
        input does not open the breaker by being sent again.
        """
        if isinstance(failure, UpstreamError) and failure.already_recorded:
            self.release(permit)
        elif isinstance(failure, RateLimited):
            self.record_rate_limit(
                permit,
                now,
                SHORTEST_COOLDOWN if failure.retry_after is None else failure.retry_after,
            )
        elif isinstance(failure, UpstreamAuthError | UpstreamModelNotFound):
            self.record_rejection(permit, now, failure)
        elif isinstance(failure, Rejected):
            self.record_unexplained_rejection(permit, now, work)
        elif isinstance(failure, UpstreamUnavailable):
            by_input = (
                isinstance(failure, InvalidUpstreamResponse) or failure.upstream_status is not None
            )
            self.record_failure(permit, now, counts=not by_input or self._is_new(work))
        else:
            self.release(permit)

    def record_failure(self, permit: int, now: float, *, counts: bool = True) -> None:
        """Count an upstream's own trouble; enough of it in a row, or a failed probe, opens the breaker."""
        if counts:
            self._last_failure = now
        self._breaker.record_failure(permit, now, counts=counts)

    def record_unexplained_rejection(
        self, permit: int, now: float, work: Collection[Hashable]
    ) -> None:
        """Rest if two calls in a row, without a common input, were rejected and none succeeded for 30 s.

        That is how a refused key looks if the upstream does not say so. While calls succeed, the
        inputs are the reason.
        """
        before, self._rejected = self._rejected, frozenset(work)
        served = bool(self._samples) and now - self._samples[-1].at < SIGNIFICANT
        if before and not served and before.isdisjoint(work):
            self.record_rejection(permit, now)
        else:
            self.release(permit)

    def _is_new(self, work: Collection[Hashable]) -> bool:
        """Remember the inputs of ``work``, unless one of them has failed since the last success."""
        if any(not seen.isdisjoint(work) for seen in self._suspects):
            return False
        if work:
            self._suspects.append(frozenset(work))
        return True

    def record_rejection(
        self, permit: int, now: float, refusal: UpstreamError | None = None
    ) -> None:
        """Our key or the model was refused: asking again soon is no use, and what was said then still holds."""
        self._last_failure = now
        self._breaker.record_rejection(permit, now, refusal)

    def record_rate_limit(self, permit: int, now: float, cooldown: float) -> None:
        """The upstream asked for ``cooldown`` seconds without calls; that says nothing of its health."""
        self.limited_until = max(self.limited_until, now + min(cooldown, LONGEST_RETRY_AFTER))
        self._breaker.release(permit)

    def release(self, permit: int) -> None:
        """The call ended without news of the upstream: cancelled, or the input's own fault."""
        self._breaker.release(permit)

    def record_batch_too_large(self, now: float, measure: Measure, held: int) -> None:
        """A call that held so much was too large: learn a smaller cap, for a while."""
        cap = lowered(self.learned.get(measure), measure, held, now)
        if cap is not None:
            self.learned[measure] = cap

    def record_batch_fitted(self, now: float, measure: Measure, held: int) -> None:
        """A call that held so much was answered, so no smaller cap is right."""
        self._raise(now, measure, held)

    def doubt(self, now: float, measure: Measure) -> None:
        """Double a cap, because an input of the call that taught it is refused alone as well."""
        if measure in self.learned:
            self._raise(now, measure, 2 * (self.learned[measure].at(now) or 0))

    def _raise(self, now: float, measure: Measure, most: int) -> None:
        cap = raised(self.learned[measure], most, now) if measure in self.learned else None
        if cap is None:
            self.learned.pop(measure, None)
        else:
            self.learned[measure] = cap

    def caps(self, accepts: Accepts, now: float) -> Accepts:
        """What one call may hold: what the API ``accepts``, lowered to the learned caps."""
        return narrowed(accepts, self.learned, now) if self.learned else accepts

    def unavailable_error(self, now: float) -> EmbedrouteError:
        """Tell why no call is made now: a 429, a refusal that still holds, or an open breaker."""
        rest = max(self.available_at(now) - now, SHORTEST_COOLDOWN)
        if self.limited_until > now:
            told = RateLimited("Every provider of this model asks to wait.", retry_after=rest)
            told.already_recorded = True
            return told
        if self._breaker.refusal is not None:
            return neutral(self._breaker.refusal)  # a copy each: raising an error adds frames to it
        return NoHealthyEndpoint(
            "No provider of this model is healthy at the moment.", retry_after=rest
        )

    def latency(self, percentile: int, now: float) -> float | None:
        """Seconds that ``percentile`` % of recent calls stayed within; None without data."""
        return _percentile(sorted(sample.latency for sample in self._recent(now)), percentile)

    def throughput(self, percentile: int, now: float) -> float | None:
        """Tokens a second that ``percentile`` % of recent calls reached; None without data."""
        return _percentile(
            sorted((sample.throughput for sample in self._recent(now)), reverse=True), percentile
        )

    def _recent(self, now: float) -> list[Sample]:
        while self._samples and now - self._samples[0].at > WINDOW:
            self._samples.popleft()
        return list(self._samples)


def _percentile(ordered: list[float], percentile: int) -> float | None:
    # Nearest rank: the smallest value that `percentile` % of all do not exceed.
    if not ordered:
        return None
    return ordered[max(0, -(-percentile * len(ordered) // 100) - 1)]


class HealthRegistry:
    """The health of every endpoint of a gateway that is in use, made as they are met."""

    def __init__(self, policy: BreakerPolicy) -> None:
        """Know none yet."""
        self._policy = policy
        self._healths: BoundedMap[str, EndpointHealth] = BoundedMap()

    def get(self, candidate: ResolvedEndpoint) -> EndpointHealth:
        """The health of one endpoint."""
        return self._healths.get(candidate.name) or self._healths.get_or_insert(
            candidate.name, EndpointHealth(self._policy)
        )
