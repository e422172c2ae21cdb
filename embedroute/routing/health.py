"""Tracks the health of each endpoint: cool-downs, learned caps, rejected fields, percentiles.

Time is an argument: every method takes ``now`` in seconds of one monotonic clock.
"""

from collections import deque
from collections.abc import Collection, Hashable
from typing import Final

import msgspec

from embedroute.backend import Accepts
from embedroute.errors import (
    LONGEST_RETRY_AFTER,
    ConnectError,
    EmbedrouteError,
    InvalidUpstreamResponse,
    Measure,
    NoHealthyEndpoint,
    PoolTimeout,
    QuotaExhausted,
    RateLimited,
    Rejected,
    UpstreamAuthError,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.reasons import describe
from embedroute.routing.batch_limits import LearnedCap, lowered, narrowed, raised
from embedroute.routing.bounded_map import BoundedMap
from embedroute.routing.breaker import BreakerPolicy, CircuitBreaker, State
from embedroute.routing.registry import ResolvedEndpoint
from embedroute.routing.retry import may_be_caused_by_input
from embedroute.upstream_errors.neutral import neutral

RECENT_ANSWER: Final = 30.0
"""Seconds after an answer in which an unexplained rejection is the fault of its inputs."""
OUTAGE_FAILURES: Final = 2
OUTAGE_SHARE: Final = 0.25
"""Calls, and their share, that must have failed for an outage (as in OpenRouter's default)."""
MOSTLY_FAILING: Final = 0.5
"""Share of failed calls in an outage from which an endpoint cannot replace another."""
MOST_REFUSALS: Final = 6
"""Refusals in a row up to which the own calls of requests whose merged call failed are made.

One may be that of the merged call, so up to five of its inputs may cause the others.
"""
SUSPECTS: Final = 8
"""Failed calls whose inputs are remembered, until a call succeeds."""
JUST_ANSWERED: Final = 2.0
"""Seconds after an answer in which one failed harmless text opens no breaker by itself."""
OMITTED_FOR: Final = 600.0
"""Seconds for which a rejected field is left out."""
NO_FIELDS: Final[frozenset[str]] = frozenset()
ALWAYS_TOO_SLOW: Final = 5.0
"""Seconds after which a call without a response counts against any endpoint."""
SHORTEST_COOLDOWN: Final = 1.0
"""Cool-down in seconds after a 429 without Retry-After; also the least that clients must wait."""
WINDOW: Final = 300.0
"""Seconds over which percentiles are computed."""
SAMPLES: Final = 1024
"""Samples kept per endpoint, so that memory stays bounded."""


class Sample(msgspec.Struct, frozen=True):
    """One answered call: when it ended, its latency in seconds, and its tokens per second."""

    at: float
    latency: float
    throughput: float


class EndpointHealth:
    """The health of one endpoint.

    A call gets a permit and returns it with its outcome, so that a call from before an outage
    cannot be mistaken for the probe that ends the outage (see ``CircuitBreaker``). A late outcome
    still updates the latency, the time of the last failure, and the cool-down of a 429.

    ``last_answer`` is when it last embedded something. ``last_error`` says in a few words why its
    last failed call failed, and ``last_error_at`` is when.
    """

    def __init__(self, policy: BreakerPolicy) -> None:
        """Create the health of an endpoint that was not called yet."""
        self.limited_until: float = 0.0
        self.last_answer: float = float("-inf")
        self.last_error: str = ""
        self.last_error_at: float | None = None
        self.learned: dict[Measure, LearnedCap] = {}
        self._omitted: dict[str, float] = {}
        self._policy = policy
        self._breaker = CircuitBreaker(policy)
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._suspects: deque[frozenset[Hashable]] = deque(maxlen=SUSPECTS)
        self._rejected: frozenset[Hashable] | None = None
        self._refusals = 0
        self._last_failure = ""

    @property
    def suspected(self) -> bool:
        """Whether the endpoint must embed a text of the gateway's own, or its breaker opens."""
        return self._breaker.suspected

    def state(self, now: float) -> State:
        """Return the breaker's state."""
        return self._breaker.state(now)

    def available_at(self, now: float) -> float:
        """Return when a call may be made: ``now``, or the end of the current cool-down."""
        return max(now, self._breaker.open_until, self.limited_until)

    def is_usable(self, now: float) -> bool:
        """Return whether a call would be made now and probably answered."""
        is_closed = now >= self.limited_until and self._breaker.state(now) is State.CLOSED
        return is_closed and self.outage(now) < MOSTLY_FAILING

    def outage(self, now: float) -> float:
        """Return the share of the calls of the last 30 s that failed, or 0 if it is small."""
        calls, failed = self._breaker.history.counts(now)
        is_outage = failed >= OUTAGE_FAILURES and failed >= OUTAGE_SHARE * calls
        return failed / calls if is_outage else 0.0

    def failure_share(self, now: float) -> float:
        """Return the share of the calls of the last 30 s that failed."""
        calls, failed = self._breaker.history.counts(now)
        return failed / max(calls, 1)

    def rank(self, now: float) -> tuple[bool, float]:
        """Return a rank among endpoints that all fail: first those not in a cool-down."""
        return self.state(now) is State.OPEN, self.failure_share(now)

    def retries_help(self, now: float) -> bool:
        """Return whether retries are answered often enough to make another one."""
        return self._breaker.history.retries_help(now)

    def record_retry(self, now: float, *, answered: bool) -> None:
        """Count a retry: a call that is equal to one that has failed."""
        self._breaker.history.record_retry(now, answered=answered)

    def random_share(self, now: float) -> float:
        """Return an upper estimate of the share of calls that fail at random."""
        return self._breaker.history.random_share(now)

    def is_recovering(self, now: float) -> bool:
        """Return whether the endpoint answers again after an outage, but few calls at a time."""
        return now >= self.limited_until and self._breaker.is_recovering(now)

    def reason_to_rest(self, now: float) -> str:
        """Return in a few words why no call is made now."""
        if self.limited_until > now:
            return "rate limited"
        refusal = self._breaker.refusal
        return self.last_error if refusal is None else describe(refusal)

    def acquire(self, now: float) -> int:
        """Return a permit for a call, or 0 if the call may not be made.

        A half-open breaker admits a few probes at a time. Pass the permit to ``record_success``,
        ``record_error`` or ``release``.
        """
        return 0 if now < self.limited_until else self._breaker.acquire(now)

    def acquire_last_resort(self, now: float) -> int:
        """Return a permit for a call although the breaker is open, or 0 if it would be useless."""
        return 0 if now < self.limited_until else self._breaker.acquire_last_resort()

    def acquire_companion(self, now: float) -> int:
        """Return a permit for the own call of a request whose merged call failed, or 0.

        The own call of another request may have begun a cool-down or opened the breaker since,
        because of its input. After ``MOST_REFUSALS`` in a row, the endpoint is the cause.
        """
        permit = self.acquire(now)
        if permit or self._refusals > MOST_REFUSALS:
            return permit
        return self._breaker.acquire_last_resort(after_refusal=True)

    def record_success(self, permit: int, now: float, latency: float, tokens: int) -> None:
        """Record an answered call; enough answered probes close the breaker."""
        self._breaker.record_success(permit, now)
        self.last_answer: float = now
        self._refusals: int = 0
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
        timeout: float = float("inf"),
    ) -> None:
        """Record the outcome of a failed call.

        Errors that are clearly an input's fault or recorded already do not change the health. Nor
        does what the gateway has caused: a wait for a connection, or too many calls at once. What
        an input may have caused counts once per input until a call succeeds, and opens nothing by
        itself. ``work`` holds the keys of the call's inputs. The call had ``timeout`` seconds: a
        timeout counts only if the endpoint usually answers within them.
        """
        self.last_error = describe(failure)
        self.last_error_at = now
        if isinstance(failure, UpstreamUnavailable):
            name = failure.provider or "of this endpoint"
            self._last_failure = f": the provider {name} failed ({describe(failure)})"
        if says_nothing(failure):
            self.release(permit)
        elif isinstance(failure, RateLimited):
            self._refusals += 1
            self.record_rate_limit(
                permit,
                now,
                SHORTEST_COOLDOWN if failure.retry_after is None else failure.retry_after,
            )
        elif isinstance(failure, UpstreamAuthError | UpstreamModelNotFound):
            self._refusals += 1
            self.record_rejection(permit, now, failure)
        elif isinstance(failure, Rejected):
            self.record_unexplained_rejection(permit, now, work, failure)
        elif isinstance(failure, UpstreamTimeout):
            self.record_timeout(permit, now, timeout)
        elif isinstance(failure, UpstreamUnavailable):
            is_invalid = isinstance(failure, InvalidUpstreamResponse)
            by_input = is_invalid or may_be_caused_by_input(failure)
            self._breaker.record_failure(
                permit,
                now,
                counts=not by_input or self._is_new(work),
                by_input=by_input,
                connecting=isinstance(failure, ConnectError),
            )
        else:
            self.release(permit)

    def record_failure(self, permit: int, now: float) -> None:
        """Record a failure of the upstream; too many or a failed probe open the breaker."""
        self._breaker.record_failure(permit, now)

    def record_timeout(self, permit: int, now: float, seconds: float) -> None:
        """Record that a call had no response after ``seconds``.

        A request with a short deadline says nothing about the endpoint, so the timeout counts only
        from the usual 99th percentile, or from ``ALWAYS_TOO_SLOW`` seconds.
        """
        if self.usually_answers_within(seconds, now):
            self.record_failure(permit, now)
        else:
            self.release(permit)

    def usually_answers_within(self, seconds: float, now: float) -> bool:
        """Return whether a call that had ``seconds`` should have been answered."""
        usual = self.latency(99, now)
        return seconds >= min(ALWAYS_TOO_SLOW, ALWAYS_TOO_SLOW if usual is None else usual)

    def omitted(self, now: float) -> frozenset[str]:
        """Return the fields that the endpoint rejects and that only the gateway sets."""
        if not self._omitted:
            return NO_FIELDS
        self._omitted = {name: end for name, end in self._omitted.items() if end > now}
        return frozenset(self._omitted)

    def learn_omitted(self, fields: Collection[str], now: float) -> None:
        """Record that a call was answered without ``fields`` after one with them was rejected."""
        self._omitted.update(dict.fromkeys(fields, now + OMITTED_FOR))

    def record_unexplained_rejection(
        self, permit: int, now: float, work: Collection[Hashable], refusal: UpstreamError
    ) -> None:
        """Suspect the endpoint after two rejections in a row that have no input in common.

        An invalid API key looks like this if the upstream does not say so. If a call succeeded in
        the last 30 s, the inputs are the cause.
        """
        previous = self._rejected
        self._rejected = frozenset(work)
        succeeded = now - self.last_answer < RECENT_ANSWER
        if previous and not succeeded and previous.isdisjoint(work):
            self._breaker.suspect(permit, refusal)
        else:
            self.release(permit)

    def suspect(self, now: float, refusal: UpstreamError) -> None:
        """Suspect the endpoint: it rejected a call that another endpoint has answered."""
        self._breaker.suspect(self._breaker.acquire(now), refusal)

    def confirm(self, now: float) -> None:
        """Record that the endpoint has failed for the gateway's own text as well.

        One that has just answered another call may fail at random, so its breaker stays closed.
        """
        if self._breaker.is_rejecting or now - self.last_answer > JUST_ANSWERED:
            self._breaker.confirm(now)
        else:
            self._breaker.withdraw()

    def confirm_unchecked(self, now: float) -> None:
        """Open the breaker if enough different inputs failed: no text can be sent to check that."""
        self._breaker.confirm_unchecked(now)

    def clear(self, now: float) -> None:
        """Record that a suspected endpoint has embedded the gateway's own text."""
        self.last_answer = now
        self._suspects.clear()
        self._rejected = None
        self._breaker.clear(now)

    def withdraw(self) -> None:
        """Record that the gateway could not send its own text to a suspected endpoint."""
        self._breaker.withdraw()

    def _is_new(self, work: Collection[Hashable]) -> bool:
        """Return whether none of ``work`` has failed since the last success, and remember it."""
        if any(not failed.isdisjoint(work) for failed in self._suspects):
            return False
        if work:
            self._suspects.append(frozenset(work))
        return True

    def record_rejection(
        self, permit: int, now: float, refusal: UpstreamError | None = None
    ) -> None:
        """Record that the upstream rejects the gateway's key or the model; open the breaker.

        The breaker stays open for longer, and longer each time, if the account is spent.
        """
        policy = self._policy
        cooldown = policy.rejection_cooldown
        if isinstance(refusal, QuotaExhausted):
            cooldown = self._breaker.doubled(policy.quota_cooldown, policy.longest_quota_cooldown)
        self._breaker.record_rejection(permit, now, refusal, cooldown)

    def record_rate_limit(self, permit: int, now: float, cooldown: float) -> None:
        """Record a 429: no calls for ``cooldown`` seconds. The breaker does not change."""
        self.limited_until: float = max(
            self.limited_until, now + min(cooldown, LONGEST_RETRY_AFTER)
        )
        self._breaker.release(permit)

    def release(self, permit: int) -> None:
        """Return the permit of a call that says nothing about the upstream.

        Such a call was cancelled, not made, or failed because of its input.
        """
        self._breaker.release(permit)

    def record_batch_too_large(self, now: float, measure: Measure, size: int) -> None:
        """Record that a call of ``size`` was too large, and learn a smaller cap."""
        cap = lowered(self.learned.get(measure), measure, size, now)
        if cap is not None:
            self.learned[measure] = cap

    def record_batch_fitted(self, now: float, measure: Measure, size: int) -> None:
        """Record that a call of ``size`` was answered, and raise the cap to that size."""
        self._raise(now, measure, size)

    def doubt(self, now: float, measure: Measure) -> None:
        """Double a cap after an input of the rejected call was rejected alone as well.

        The call may then have been rejected because of that input, and not because of its size.
        """
        if measure in self.learned:
            self._raise(now, measure, 2 * (self.learned[measure].at(now) or 0))

    def _raise(self, now: float, measure: Measure, most: int) -> None:
        cap = raised(self.learned[measure], most, now) if measure in self.learned else None
        if cap is None:
            self.learned.pop(measure, None)
        else:
            self.learned[measure] = cap

    def caps(self, accepts: Accepts, now: float) -> Accepts:
        """Return ``accepts`` with its limits lowered to the learned caps."""
        return narrowed(accepts, self.learned, now) if self.learned else accepts

    def unavailable_error(self, now: float) -> EmbedrouteError:
        """Return why no call is made now: a rate limit, a rejection or an open breaker."""
        wait = max(self.available_at(now) - now, SHORTEST_COOLDOWN)
        if self.limited_until > now:
            error = RateLimited("All providers of this model are rate limited.", retry_after=wait)
            error.already_recorded = True
            return error
        if self._breaker.refusal is not None:
            return neutral(self._breaker.refusal)  # a new copy: raising an error adds frames to it
        message = f"No provider of this model is healthy{self._last_failure}."
        return NoHealthyEndpoint(message, retry_after=wait)

    def latency(self, percentile: int, now: float) -> float | None:
        """Return the latency percentile of recent calls in seconds, or None without data."""
        return _percentile(sorted(sample.latency for sample in self._recent(now)), percentile)

    def throughput(self, percentile: int, now: float) -> float | None:
        """Return the tokens per second that ``percentile`` % of recent calls reached, or None."""
        return _percentile(
            sorted((sample.throughput for sample in self._recent(now)), reverse=True), percentile
        )

    def _recent(self, now: float) -> list[Sample]:
        while self._samples and now - self._samples[0].at > WINDOW:
            self._samples.popleft()
        return list(self._samples)


def says_nothing(failure: EmbedrouteError) -> bool:
    """Return whether a failure is recorded already, or has its cause in the gateway's own calls.

    A 429 with Retry-After is to be respected in any case.
    """
    if isinstance(failure, PoolTimeout):
        return True
    if not isinstance(failure, UpstreamError):
        return False
    is_hint = isinstance(failure, RateLimited) and failure.retry_after
    return failure.already_recorded or (failure.at_capacity and not is_hint)


def _percentile(ordered: list[float], percentile: int) -> float | None:
    # Nearest rank: the first value, in this order, that covers `percentile` % of the values.
    if not ordered:
        return None
    return ordered[max(0, -(-percentile * len(ordered) // 100) - 1)]


class HealthRegistry:
    """The health of each endpoint of a gateway, created at its first use."""

    def __init__(self) -> None:
        """Create an empty registry."""
        self._healths: BoundedMap[str, EndpointHealth] = BoundedMap()

    def get(self, candidate: ResolvedEndpoint) -> EndpointHealth:
        """Return the health of one endpoint."""
        return self._healths.get(candidate.key) or self._healths.get_or_insert(
            candidate.key, EndpointHealth(candidate.breaker)
        )
