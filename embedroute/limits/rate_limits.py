"""Limits the requests and tokens per minute, and the concurrent requests, within one process.

The limits of a caller, of a model and of the gateway all apply; a request that one of them refuses
uses up none of the others. They hold for all event loops of one gateway.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from embedroute.config import RateLimits
from embedroute.errors import RateLimitExceeded
from embedroute.limits.rates import (
    Header,
    Rate,
    make_headers,
    refuse_concurrent,
    refuse_request,
    refuse_tokens,
)

MOST_CALLERS: Final = 10_000
"""Callers whose use is remembered; above it, those that have used nothing lately are dropped."""


class Limiter(Protocol):
    """Keeps requests within the limits of their caller, their model and the gateway.

    Callers are identified by name. ``is_used`` is whether requests of callers without limits are
    limited too.
    """

    is_used: bool

    def change(self, gateway: RateLimits | None, models: Mapping[str, RateLimits]) -> None:
        """Apply other limits of the gateway and of models. What was used remains used."""
        ...

    async def admit(
        self, caller: str, limits: RateLimits | None, model: str, tokens: int
    ) -> "Admission":
        """Count a request of about ``tokens`` tokens. Await ``leave`` afterwards.

        Raises:
            RateLimitExceeded: it is over a limit; its ``headers`` describe that limit.
            Overloaded: the limits cannot be checked.
        """
        ...

    async def leave(self, admission: "Admission", tokens: int) -> Sequence[Header]:
        """Count a request as ended that was billed ``tokens``; return the headers of its limits."""
        ...


class Meter:
    """The limits of a caller, of a model or of the gateway, and how much of them is used."""

    __slots__ = ("in_flight", "limits", "requests", "tokens", "whose")

    def __init__(self, whose: str, limits: RateLimits) -> None:
        """Start with nothing used; ``whose`` begins the message of a refusal."""
        self.whose: str = whose
        self.limits: RateLimits = limits
        self.requests: Rate | None = _rate(limits.requests_per_minute)
        self.tokens: Rate | None = _rate(limits.tokens_per_minute)
        self.in_flight: int = 0

    def change(self, limits: RateLimits, now: float) -> None:
        """Apply other limits. What was used remains used."""
        self.limits = limits
        self.requests = _changed(self.requests, limits.requests_per_minute, now)
        self.tokens = _changed(self.tokens, limits.tokens_per_minute, now)

    def is_idle(self, now: float) -> bool:
        """Return whether nothing is in flight and every bucket is full."""
        rates = [rate for rate in (self.requests, self.tokens) if rate]
        return not self.in_flight and not any(rate.reset(now) for rate in rates)

    def refusal(self, now: float, tokens: int) -> RateLimitExceeded | None:
        """Return the error of a request of ``tokens`` tokens; None if it is within the limits."""
        most = self.limits.concurrent_requests
        if most is not None and self.in_flight >= most:
            return refuse_concurrent(self.whose, most)
        if self.requests and (wait := self.requests.wait(now, 1)):
            return refuse_request(self.whose, self.requests.per_minute, wait)
        if self.tokens and (wait := self.tokens.wait(now, tokens)):
            return refuse_tokens(self.whose, self.tokens.per_minute, tokens, wait)
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
    """One request within its limits, until it ends."""

    __slots__ = ("meters", "tokens")

    def __init__(self, meters: list[Meter], tokens: int) -> None:
        """Take the meters that count the request, and the ``tokens`` that it has reserved."""
        self.meters: list[Meter] = meters
        self.tokens: int = tokens


class RateLimiter:
    """The ``Limiter`` of one process.

    ``clock`` returns seconds of a monotonic clock.
    """

    def __init__(
        self,
        gateway: RateLimits | None,
        models: Mapping[str, RateLimits],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the limits of the gateway, if it has any, and those of models by public name."""
        self._gateway: Meter | None = None
        self._models: dict[str, Meter] = {}
        self._callers: dict[str, Meter] = {}
        self._lock = threading.Lock()  # several event loops may share a gateway
        self._clock = clock
        self.change(gateway, models)

    def change(self, gateway: RateLimits | None, models: Mapping[str, RateLimits]) -> None:
        """Apply other limits of the gateway and of models. What was used remains used."""
        with self._lock:
            now = self._clock()
            own = gateway and _change_meter(self._gateway, OF_GATEWAY, gateway, now)
            self._gateway = own
            self._models = {
                name: _change_meter(self._models.get(name), of_model(name), limits, now)
                for name, limits in models.items()
            }
            self.is_used: bool = bool(own or models)

    @property
    def callers(self) -> int:
        """The number of callers whose use is remembered."""
        return len(self._callers)

    async def admit(
        self, caller: str, limits: RateLimits | None, model: str, tokens: int
    ) -> Admission:
        """Count a request. Await ``leave`` afterwards."""
        return self.begin(caller, limits, model, tokens, self._clock())

    async def leave(self, admission: Admission, tokens: int) -> Sequence[Header]:
        """Count a request as ended that was billed ``tokens``; return the headers of its limits."""
        return self.end(admission, tokens, self._clock())

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
                    error.headers = _describe([meter], now)
                    raise error
            for meter in meters:
                meter.begin(now, tokens)
            return Admission(meters, tokens)

    def end(self, admission: Admission, tokens: int, now: float) -> list[Header]:
        """Count a request as ended that was billed ``tokens``; return the headers of its limits."""
        with self._lock:
            for meter in admission.meters:
                meter.end(now, admission.tokens - tokens)
            return _describe(admission.meters, now)

    def _meter_of(self, caller: str, limits: RateLimits, now: float) -> Meter:
        meter = self._callers.get(caller)
        if meter is None:
            if len(self._callers) >= MOST_CALLERS:
                callers = self._callers.items()
                self._callers = {name: each for name, each in callers if not each.is_idle(now)}
            meter = self._callers[caller] = Meter(OF_CALLER, limits)
        elif meter.limits != limits:
            meter.change(limits, now)
        return meter


OF_CALLER: Final = "This caller"
OF_GATEWAY: Final = "All callers together"


def of_model(name: str) -> str:
    """Return how refusals name the callers of a model."""
    return f"All callers of model {name!r} together"


def _change_meter(meter: Meter | None, whose: str, limits: RateLimits, now: float) -> Meter:
    if meter is None:
        return Meter(whose, limits)
    if meter.limits != limits:
        meter.change(limits, now)
    return meter


def _describe(meters: Sequence[Meter], now: float) -> list[Header]:
    requests = [meter.requests for meter in meters if meter.requests]
    tokens = [meter.tokens for meter in meters if meter.tokens]
    return make_headers(requests, tokens, now)


def _changed(rate: Rate | None, per_minute: int | None, now: float) -> Rate | None:
    changed = _rate(per_minute)
    if changed and rate:
        changed.full_at = now + rate.reset(now) * rate.per_minute / changed.per_minute
    return changed


def _rate(per_minute: int | None) -> Rate | None:
    return None if per_minute is None else Rate(per_minute)
