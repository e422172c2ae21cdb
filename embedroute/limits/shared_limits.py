"""Keeps the limits for all processes of a store.

A process leases units of a limit and uses them without asking, so most requests wait for no store.
Where few units are left, a lease has only what one request needs, so that no process keeps what
another one could use. Leases that are not used are given back within a second.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from typing import Final, TypeVar

from embedroute.config import RateLimits
from embedroute.errors import Overloaded, RateLimitExceeded
from embedroute.limits.leased_units import LEASE, LeasedRate, LeasedUnits
from embedroute.limits.rate_limits import (
    MOST_CALLERS,
    OF_CALLER,
    OF_GATEWAY,
    Admission,
    RateLimiter,
    of_model,
)
from embedroute.limits.rates import (
    Header,
    make_headers,
    refuse_concurrent,
    refuse_request,
    refuse_tokens,
)
from embedroute.stores import Demand, Store, StoreError, StoreWorker

T = TypeVar("T", bound=LeasedUnits)

LONGEST_WAIT: Final = 1.0
"""Seconds that a request waits at most while the store answers others."""
IDLE: Final = 0.4
"""Seconds between two looks at all leases. What was not used in between is given back."""
AT_ONCE: Final = 200
"""Leases that are renewed or given back by one call to the store."""


class SharedMeter:
    """The limits of a caller, of a model or of the gateway, as far as this process holds them."""

    __slots__ = ("_counter", "concurrent", "limits", "requests", "tokens", "whose")

    def __init__(self, whose: str, counter: str, limits: RateLimits) -> None:
        """Hold nothing; ``whose`` begins the message of a refusal."""
        self.whose: str = whose
        self._counter = counter
        self.requests: LeasedRate | None = None
        self.tokens: LeasedRate | None = None
        self.concurrent: LeasedUnits | None = None
        self.change(limits)

    def change(self, limits: RateLimits) -> None:
        """Apply other limits. What was used remains used."""
        self.limits: RateLimits = limits
        make = LeasedRate
        self.requests = self._changed(self.requests, "requests", limits.requests_per_minute, make)
        self.tokens = self._changed(self.tokens, "tokens", limits.tokens_per_minute, make)
        most = limits.concurrent_requests
        self.concurrent = self._changed(self.concurrent, "concurrent", most, LeasedUnits)

    def _changed(
        self, units: T | None, name: str, capacity: int | None, make: Callable[[str, int], T]
    ) -> T | None:
        if capacity is None:
            return None
        if units is None:
            return make(f"{self._counter}:{name}", capacity)
        if units.capacity != capacity:
            units.change(capacity)
        return units

    @property
    def is_idle(self) -> bool:
        """Whether this process holds nothing."""
        return all(each.is_empty for each, _ in self.needs(0))

    def needs(self, tokens: int) -> Iterator[tuple[LeasedUnits, int]]:
        """Yield each limit and the units that a request of ``tokens`` tokens needs of it."""
        if self.concurrent:
            yield self.concurrent, 1
        if self.requests:
            yield self.requests, 1
        if self.tokens:
            yield self.tokens, tokens

    def refuse(self, units: LeasedUnits, now: float, tokens: int) -> RateLimitExceeded:
        """Return the error of a request for which ``units`` do not suffice."""
        if units is self.requests:
            error = refuse_request(self.whose, units.capacity, units.wait(now, 1))
        elif units is self.tokens:
            wait = units.wait(now, tokens)
            error = refuse_tokens(self.whose, units.capacity, tokens, wait)
        else:
            error = refuse_concurrent(self.whose, units.capacity)
        error.headers = _describe([self], now)
        return error


class SharedAdmission(Admission):
    """One request, until it ends: undecided, then admitted or refused, or given up by its task."""

    __slots__ = ("billed", "error", "is_admitted", "is_given_up", "places", "shared")

    def __init__(self, shared: Sequence[SharedMeter], tokens: int) -> None:
        """Take the meters that count the request; nothing is decided yet."""
        super().__init__([], tokens)
        self.shared: Sequence[SharedMeter] = shared
        self.places: Sequence[LeasedUnits] = ()
        self.billed: Sequence[LeasedRate] = ()
        self.error: RateLimitExceeded | None = None
        self.is_admitted: bool = False
        self.is_given_up: bool = False

    def needs(self) -> Iterator[tuple[SharedMeter, LeasedUnits, int]]:
        """Yield each limit with its meter and the units that the request needs of it."""
        for meter in self.shared:
            for units, number in meter.needs(self.tokens):
                yield meter, units, number

    def decide(self, now: float) -> Sequence[tuple[LeasedUnits, int]]:
        """Admit the request if the leases have what it needs; return what is missing.

        ``error`` is set if that cannot be had.
        """
        missing: list[tuple[LeasedUnits, int]] = []
        for meter, units, number in self.needs():
            if units.can_take(now, number):
                continue
            if number > units.capacity or units.is_refused(now, number):
                self.error = meter.refuse(units, now, self.tokens)
                return ()
            missing.append((units, number))
        if not missing:
            for _, units, number in self.needs():
                units.take(number)
            # The limits of a meter may have changed when the request ends.
            self.places = [meter.concurrent for meter in self.shared if meter.concurrent]
            self.billed = [meter.tokens for meter in self.shared if meter.tokens]
            self.is_admitted = True
        return missing


class SharedRateLimiter:
    """The ``Limiter`` of all processes of a store.

    If the store fails, requests are refused, or admitted within the limits of this process if
    ``fail_open``. ``clock`` returns seconds of a monotonic clock.
    """

    def __init__(
        self,
        gateway: RateLimits | None,
        models: Mapping[str, RateLimits],
        worker: StoreWorker,
        *,
        fail_open: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the limits of the gateway, if it has any, and those of models by public name."""
        self.is_used: bool = gateway is not None or bool(models)
        self._limits: tuple[RateLimits | None, Mapping[str, RateLimits]] = gateway, models
        self._worker = worker
        self._without_store = RateLimiter(gateway, models, clock) if fail_open else None
        self._clock = clock
        self._lock = threading.Lock()  # several event loops and the thread of the store
        self._process = 0

    def change(self, gateway: RateLimits | None, models: Mapping[str, RateLimits]) -> None:
        """Apply other limits of the gateway and of models. What was used remains used."""
        if self._without_store is not None:
            self._without_store.change(gateway, models)
        with self._lock:
            self._limits = gateway, models
            self.is_used = gateway is not None or bool(models)
            if self._process == os.getpid():
                self._make_meters(self._gateway, self._models)

    async def admit(
        self, caller: str, limits: RateLimits | None, model: str, tokens: int
    ) -> Admission:
        """Count a request of about ``tokens`` tokens. Await ``leave`` afterwards.

        Raises:
            RateLimitExceeded: it is over a limit; its ``headers`` describe that limit.
            Overloaded: the store fails.
        """
        with self._lock:
            admission = SharedAdmission(self._find_meters(caller, limits, model), tokens)
            missing = admission.decide(self._clock())
        if missing and not await self._decide_by_store(admission):
            if self._without_store is None:
                raise Overloaded(
                    "The rate limits cannot be checked at the moment. Try again.", retry_after=1.0
                )
            return await self._without_store.admit(caller, limits, model, tokens)
        if admission.error is not None:
            raise admission.error
        return admission

    async def leave(self, admission: Admission, tokens: int) -> Sequence[Header]:
        """Count a request as ended that was billed ``tokens``; return the headers of its limits."""
        if not isinstance(admission, SharedAdmission):
            return await self._without_store.leave(admission, tokens) if self._without_store else ()
        with self._lock:
            self._end(admission, tokens)
            excess = [units for units in admission.places if units.has_excess]
            headers = _describe(admission.shared, self._clock())
        if excess and self._worker.is_available:
            # The caller may send its next request to another process.
            with suppress(StoreError):
                give_back = partial(self._give_excess_back, excess)
                await self._worker.call(give_back, self._worker.timeout)
        return headers

    def _end(self, admission: SharedAdmission, tokens: int) -> None:
        for units in admission.places:
            units.take(-1)
        for units in admission.billed:
            units.take(tokens - admission.tokens)
            self._held[units.counter] = units
        self._look_later()

    async def _decide_by_store(self, admission: SharedAdmission) -> bool:
        """Decide a request with new leases; return False if the store fails."""
        try:
            await self._worker.call_while_available(partial(self._lease, admission), LONGEST_WAIT)
        except StoreError:
            with self._lock:
                admission.is_given_up = True
                return admission.is_admitted or admission.error is not None
        except BaseException:
            with self._lock:
                admission.is_given_up = True
                if admission.is_admitted:
                    self._end(admission, 0)
            raise
        return True

    # In the thread of the store.

    def _lease(self, admission: SharedAdmission, store: Store) -> None:
        """Decide a request, with new leases if those of the requests before it do not suffice."""
        with self._lock:
            now = self._clock()
            missing = () if admission.is_given_up else admission.decide(now)
            if not missing:
                return
            demands = [units.ask_for(number) for units, number in missing]
        grants = store.lease(self._holder, demands, LEASE)
        with self._lock:
            for (units, number), grant in zip(missing, grants, strict=True):
                units.record(grant, now)
                self._held[units.counter] = units
                if not units.can_take(now, number):
                    units.refuse(now, number)
            if not admission.is_given_up:
                admission.decide(now)
            self._look_later()

    def _give_excess_back(self, excess: Sequence[LeasedUnits], store: Store) -> None:
        with self._lock:
            now = self._clock()
            demands = [(units, units.give_excess_back()) for units in excess if units.has_excess]
        self._exchange(demands, now, store)

    def run(self, store: Store) -> None:
        """Give back what was not used, and renew what expires soon."""
        with self._lock:
            now = self._clock()
            demands: list[tuple[LeasedUnits, Demand]] = []
            for units in self._held.values():
                if units.must_report and (self._worker.is_closing or not units.is_used):
                    demands.append((units, units.give_back()))
                elif units.must_renew(now):
                    demands.append((units, units.renew()))
                units.is_used = False
        for start in range(0, len(demands), AT_ONCE):
            self._exchange(demands[start : start + AT_ONCE], now, store)
        with self._lock:
            self._is_looking = False
            self._held = {name: each for name, each in self._held.items() if not each.is_empty}
            self._look_later()

    def fail(self, error: BaseException) -> None:
        """Look again later: the store has failed."""
        del error
        with self._lock:
            self._is_looking = False
            self._look_later()

    def _exchange(
        self, demands: Sequence[tuple[LeasedUnits, Demand]], now: float, store: Store
    ) -> None:
        if demands:
            grants = store.lease(self._holder, [demand for _, demand in demands], LEASE)
            with self._lock:
                for (units, _), grant in zip(demands, grants, strict=True):
                    units.record(grant, now)

    def _look_later(self) -> None:
        """Look at the leases after a while, as long as there are any; the caller has the lock."""
        if self._held and not self._is_looking and not self._worker.is_closing:
            self._is_looking = True
            self._worker.submit_later(self, IDLE)

    # What this process holds; the caller has the lock.

    def _find_meters(
        self, caller: str, limits: RateLimits | None, model: str
    ) -> Sequence[SharedMeter]:
        if self._process != os.getpid():
            self._start()
        own = None if limits is None else self._meter_of(caller, limits)
        meters = (own, self._models.get(model), self._gateway)
        return [meter for meter in meters if meter is not None]

    def _start(self) -> None:
        """Hold nothing. A fork of a process has its own leases."""
        self._process = os.getpid()
        self._holder = secrets.token_hex(8)
        self._held: dict[str, LeasedUnits] = {}
        self._is_looking = False
        self._make_meters(None, {})
        self._callers: dict[str, SharedMeter] = {}

    def _make_meters(
        self, old_gateway: SharedMeter | None, old_models: Mapping[str, SharedMeter]
    ) -> None:
        """Make the meters of the gateway and of models from the present limits, and old meters."""
        gateway, models = self._limits
        self._gateway: SharedMeter | None = gateway and _change_meter(
            old_gateway, OF_GATEWAY, "gateway", gateway
        )
        self._models: dict[str, SharedMeter] = {
            name: _change_meter(
                old_models.get(name), of_model(name), _counter("model", name), limits
            )
            for name, limits in models.items()
        }

    def _meter_of(self, caller: str, limits: RateLimits) -> SharedMeter:
        meter = self._callers.get(caller)
        if meter is None:
            if len(self._callers) >= MOST_CALLERS:
                callers = self._callers.items()
                self._callers = {name: each for name, each in callers if not each.is_idle}
            meter = SharedMeter(OF_CALLER, _counter("key", caller), limits)
            self._callers[caller] = meter
        elif meter.limits != limits:
            meter.change(limits)
        return meter


def _change_meter(
    meter: SharedMeter | None, whose: str, counter: str, limits: RateLimits
) -> SharedMeter:
    if meter is None:
        return SharedMeter(whose, counter, limits)
    if meter.limits != limits:
        meter.change(limits)
    return meter


def _counter(kind: str, name: str) -> str:
    digest = blake2b(name.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return f"{kind}:{digest}"


def _describe(meters: Sequence[SharedMeter], now: float) -> list[Header]:
    requests = [meter.requests for meter in meters if meter.requests]
    tokens = [meter.tokens for meter in meters if meter.tokens]
    return make_headers(requests, tokens, now)
