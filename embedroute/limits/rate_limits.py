"""Limits the requests and tokens per minute, and the concurrent requests, of callers and models.

A rate is a bucket of one minute's units that is full at first and refills evenly. It is kept as the
time at which it is full again (GCRA, the generic cell rate algorithm of ITU-T I.371), so it needs
no timer. The limits of a caller, of a model and of the gateway all apply; a request that one of
them refuses uses up none of the others.

The limits hold for all event loops of one gateway. Time is an argument: every method takes ``now``
in seconds of one monotonic clock.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Final, Self

from embedroute.config import Config, RateLimits
from embedroute.errors import RateLimitExceeded, TooManyTokens

MINUTE: Final = 60.0
ROUNDING: Final = 1e-6
"""Seconds. A shorter wait comes from adding and subtracting numbers of seconds."""
MOST_CALLERS: Final = 10_000
"""Callers whose use is remembered; above it, those that have used nothing lately are dropped."""
SHORTEST_RETRY: Final = 1.0
"""Seconds after which a caller with too many concurrent requests may try again."""

Header = tuple[bytes, bytes]


class Rate:
    """A bucket of ``per_minute`` units. It is full again at the time ``full_at``."""

    __slots__ = ("full_at", "per_minute")

    def __init__(self, per_minute: int) -> None:
        """Start with a full bucket."""
        self.per_minute: int = per_minute
        self.full_at: float = -math.inf

    def wait(self, now: float, units: int) -> float:
        """Return the seconds until ``units`` are available; at most ``per_minute`` ever are."""
        full_at = max(self.full_at, now) + units * MINUTE / self.per_minute
        wait = full_at - now - MINUTE
        return wait if wait > ROUNDING else 0.0

    def take(self, now: float, units: int) -> None:
        """Take units out. A negative number puts units back."""
        self.full_at: float = max(self.full_at, now) + units * MINUTE / self.per_minute

    def reset(self, now: float) -> float:
        """Return the seconds until the bucket is full."""
        return max(self.full_at - now, 0.0)

    def remaining(self, now: float) -> int:
        """Return the units that are available."""
        left = 1.0 - self.reset(now) / MINUTE
        return max(math.floor(left * self.per_minute + ROUNDING), 0)


class Meter:
    """The limits of a caller, of a model or of the gateway, and how much of them is used."""

    __slots__ = ("_most_concurrent", "in_flight", "requests", "tokens", "whose")

    def __init__(self, whose: str, limits: RateLimits) -> None:
        """Start with nothing used; ``whose`` begins the message of a refusal."""
        self.whose: str = whose
        self.requests: Rate | None = _rate(limits.requests_per_minute)
        self.tokens: Rate | None = _rate(limits.tokens_per_minute)
        self._most_concurrent = limits.concurrent_requests
        self.in_flight: int = 0

    def is_idle(self, now: float) -> bool:
        """Return whether nothing is in flight and every bucket is full."""
        rates = [rate for rate in (self.requests, self.tokens) if rate]
        return not self.in_flight and not any(rate.reset(now) for rate in rates)

    def refusal(self, now: float, tokens: int) -> RateLimitExceeded | None:
        """Return the error of a request of ``tokens`` tokens; None if it is within the limits."""
        most = self._most_concurrent
        if most is not None and self.in_flight >= most:
            return RateLimitExceeded(
                f"{self.whose} may have {most} requests in progress at a time. "
                "Wait for a response before you send another one.",
                retry_after=SHORTEST_RETRY,
            )
        if self.requests and (wait := self.requests.wait(now, 1)):
            return RateLimitExceeded(
                f"{self.whose} may make {self.requests.per_minute} requests per minute. "
                f"Try again in {_duration(wait)}.",
                retry_after=wait,
            )
        if not self.tokens:
            return None
        message = (
            f"{self.whose} may use {self.tokens.per_minute} tokens per minute, and this request "
            f"needs about {tokens}. "
        )
        if tokens > self.tokens.per_minute:
            return TooManyTokens(f"{message}Send fewer inputs at a time.")
        if wait := self.tokens.wait(now, tokens):
            return RateLimitExceeded(f"{message}Try again in {_duration(wait)}.", retry_after=wait)
        return None

    def begin(self, now: float, tokens: int) -> None:
        """Count a request that is within the limits."""
        self.in_flight += 1
        if self.requests:
            self.requests.take(now, 1)
        if self.tokens:
            self.tokens.take(now, tokens)

    def end(self, now: float, tokens_left: int) -> None:
        """Count a request as ended, and put tokens back; a negative number takes more out."""
        self.in_flight -= 1
        if self.tokens:
            self.tokens.take(now, -tokens_left)


class Admission:
    """One request within its limits, until ``RateLimiter.end``."""

    __slots__ = ("meters", "tokens")

    def __init__(self, meters: list[Meter], tokens: int) -> None:
        """Take the meters that count the request, and the ``tokens`` that it has reserved."""
        self.meters: list[Meter] = meters
        self.tokens: int = tokens


class RateLimiter:
    """The limits of one gateway, of its models and of its callers.

    Callers are identified by name. ``is_used`` is whether requests of callers without limits are
    limited too.
    """

    def __init__(self, gateway: RateLimits | None, models: Mapping[str, RateLimits]) -> None:
        """Take the limits of the gateway, if it has any, and those of models by public name."""
        self._gateway = None if gateway is None else Meter("All callers together", gateway)
        self._models = {
            name: Meter(f"All callers of model {name!r} together", limits)
            for name, limits in models.items()
        }
        self._callers: dict[str, Meter] = {}
        self._lock = threading.Lock()  # several event loops may share a gateway
        self.is_used: bool = bool(self._gateway or self._models)

    @classmethod
    def for_config(cls, config: Config) -> Self:
        """Make the limiter of a config; the limits of keys come with their callers."""
        limits = {name: model.limits for name, model in config.models.items()}
        models = {name: each for name, each in limits.items() if each is not None}
        return cls(config.gateway.limits, models)

    @property
    def callers(self) -> int:
        """The number of callers whose use is remembered."""
        return len(self._callers)

    def begin(
        self, caller: str, limits: RateLimits | None, model: str, tokens: int, now: float
    ) -> Admission:
        """Count a request of about ``tokens`` tokens. Call ``end`` afterwards.

        Raises:
            RateLimitExceeded: it is over a limit; its ``headers`` describe that limit.
        """
        with self._lock:
            own = None if limits is None else self._meter_of(caller, limits, now)
            all_meters = (own, self._models.get(model), self._gateway)
            meters = [meter for meter in all_meters if meter is not None]
            for meter in meters:
                if error := meter.refusal(now, tokens):
                    error.headers = make_headers([meter], now)
                    raise error
            for meter in meters:
                meter.begin(now, tokens)
            return Admission(meters, tokens)

    def end(self, admission: Admission, tokens: int, now: float) -> list[Header]:
        """Count a request as ended that was billed ``tokens``; return the headers of its limits."""
        with self._lock:
            for meter in admission.meters:
                meter.end(now, admission.tokens - tokens)
            return make_headers(admission.meters, now)

    def _meter_of(self, caller: str, limits: RateLimits, now: float) -> Meter:
        meter = self._callers.get(caller)
        if meter is None:
            if len(self._callers) >= MOST_CALLERS:
                callers = self._callers.items()
                self._callers = {name: each for name, each in callers if not each.is_idle(now)}
            meter = self._callers[caller] = Meter("This caller", limits)
        return meter


def make_headers(meters: Sequence[Meter], now: float) -> list[Header]:
    """Return OpenAI's ``x-ratelimit-*`` headers, for the limits with the fewest units left."""
    requests = [meter.requests for meter in meters if meter.requests]
    tokens = [meter.tokens for meter in meters if meter.tokens]
    headers: list[Header] = []
    for name, rates in ((b"requests", requests), (b"tokens", tokens)):
        if rates:
            rate = min(rates, key=lambda each: each.remaining(now))
            headers += [
                (b"x-ratelimit-limit-" + name, b"%d" % rate.per_minute),
                (b"x-ratelimit-remaining-" + name, b"%d" % rate.remaining(now)),
                (b"x-ratelimit-reset-" + name, _duration(rate.reset(now)).encode()),
            ]
    return headers


def _rate(per_minute: int | None) -> Rate | None:
    return None if per_minute is None else Rate(per_minute)


def _duration(seconds: float) -> str:
    """Write seconds as OpenAI does: ``20ms``, ``7.66s``, ``1m0s``."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds / 1000, 60)
    return f"{minutes:.0f}m{rest:.3g}s" if minutes else f"{rest:.3g}s"
