"""Keeps what the dashboard shows: sums of the last minutes, and the last requests.

It is an observer of the gateway. Its memory is bounded by the constants below.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from threading import Lock
from typing import Any, Final

import msgspec

from embedroute.telemetry import EndpointState, FinishedCall, FinishedRequest, GatewayState

STEP: Final = 2.0
"""Seconds of one point of the charts."""
POINTS: Final = 300
"""Points of the charts: ten minutes."""
DURATIONS: Final = 512
"""Durations kept for the percentiles of one point."""
REQUESTS: Final = 100
"""Requests that are shown."""
OPEN: Final = 2048
"""Requests whose calls are remembered until the request ends."""
CALLERS: Final = 64
"""Callers with sums of their own; those of all others are added up."""


class Point(msgspec.Struct, kw_only=True):
    """Sums over ``STEP`` seconds from the time ``at``, in seconds since 1970."""

    at: float
    requests: int = 0
    errors: int = 0
    hits: int = 0
    misses: int = 0
    tokens: int = 0
    cost: float = 0.0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class CallShown(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a shown request; ``began`` is in seconds from the begin of the request."""

    endpoint: str
    outcome: str
    status: int | None
    reason: str | None
    inputs: int
    began: float
    seconds: float


class RequestShown(msgspec.Struct, frozen=True, kw_only=True):
    """A finished request. ``events`` say why its calls went where they went."""

    id: str
    at: float
    caller: str
    model: str
    status: int
    code: str | None
    inputs: int
    hits: int
    tokens: int
    cost: str | None
    seconds: float
    calls: Sequence[CallShown]
    events: Sequence[Mapping[str, Any]]


class CallerShown(msgspec.Struct, kw_only=True):
    """The sums of one caller since the start of the process."""

    name: str
    requests: int = 0
    errors: int = 0
    limited: int = 0
    inputs: int = 0
    tokens: int = 0
    cost: float = 0.0


class EndpointShown(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint, and the outcomes of its calls in the time of the charts."""

    state: EndpointState
    outcomes: Mapping[str, int]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page shows."""

    now: float
    in_flight: int
    points: Sequence[Point]
    endpoints: Sequence[EndpointShown]
    callers: Sequence[CallerShown]
    requests: Sequence[RequestShown]


class _Outcomes(msgspec.Struct):
    """The outcomes of calls to one endpoint in one step."""

    at: float
    counts: dict[str, int]


class Recorder:
    """Records the requests and calls of one gateway."""

    def __init__(self, wall_clock: Callable[[], float], clock: Callable[[], float]) -> None:
        """``wall_clock`` is in seconds since 1970, and ``clock`` is that of the gateway."""
        self._wall_clock = wall_clock
        self._clock = clock
        self._lock = Lock()
        self._points: deque[Point] = deque(maxlen=POINTS)
        self._durations: list[float] = []
        self._outcomes: dict[str, deque[_Outcomes]] = {}
        self._calls: OrderedDict[str, list[FinishedCall]] = OrderedDict()
        self._requests: deque[RequestShown] = deque(maxlen=REQUESTS)
        self._callers: dict[str, CallerShown] = {}

    def request_finished(self, request: FinishedRequest) -> None:
        """Record a request."""
        with self._lock:
            self._count(request)
            self._count_caller(request)
            began = self._clock() - request.seconds
            calls = self._calls.pop(request.request_id, [])
            self._requests.append(_show(request, calls, began))

    def call_finished(self, call: FinishedCall) -> None:
        """Record a call."""
        with self._lock:
            self._calls.setdefault(call.request_id, []).append(call)
            if len(self._calls) > OPEN:
                self._calls.popitem(last=False)
            steps = self._outcomes.setdefault(call.endpoint, deque(maxlen=POINTS))
            at = self._step()
            if not steps or steps[-1].at != at:
                steps.append(_Outcomes(at, {}))
            counts = steps[-1].counts
            counts[call.outcome] = counts.get(call.outcome, 0) + 1

    def report(self, state: GatewayState) -> Report:
        """Return what the page shows now."""
        with self._lock:
            self._current_point()
            oldest = self._step() - STEP * POINTS
            endpoints = [
                EndpointShown(state=endpoint, outcomes=self._sum(endpoint.name, oldest))
                for endpoint in state.endpoints
            ]
            return Report(
                now=self._wall_clock(),
                in_flight=state.in_flight,
                points=[point for point in self._points if point.at > oldest],
                endpoints=endpoints,
                callers=list(self._callers.values()),
                requests=list(reversed(self._requests)),
            )

    def _step(self) -> float:
        return self._wall_clock() // STEP * STEP

    def _current_point(self) -> Point:
        at = self._step()
        if not self._points or self._points[-1].at != at:
            self._points.append(Point(at=at))
            self._durations = []
        return self._points[-1]

    def _count(self, request: FinishedRequest) -> None:
        point = self._current_point()
        point.requests += 1
        point.errors += request.status >= 400
        point.hits += request.hits
        point.misses += request.misses
        point.tokens += request.billed_tokens
        point.cost += float(request.cost or Decimal(0))
        if len(self._durations) < DURATIONS:
            self._durations.append(request.seconds)
            ordered = sorted(self._durations)
            point.p50 = _percentile(ordered, 50)
            point.p95 = _percentile(ordered, 95)
            point.p99 = _percentile(ordered, 99)

    def _count_caller(self, request: FinishedRequest) -> None:
        name = request.caller or "(unknown)"
        if name not in self._callers and len(self._callers) >= CALLERS:
            name = "(others)"
        caller = self._callers.setdefault(name, CallerShown(name=name))
        caller.requests += 1
        caller.errors += request.status >= 400
        caller.limited += request.status == 429
        caller.inputs += request.inputs
        caller.tokens += request.billed_tokens
        caller.cost += float(request.cost or Decimal(0))

    def _sum(self, endpoint: str, oldest: float) -> Mapping[str, int]:
        sums: dict[str, int] = {}
        for step in self._outcomes.get(endpoint, ()):
            if step.at > oldest:
                for outcome, count in step.counts.items():
                    sums[outcome] = sums.get(outcome, 0) + count
        return sums


def _show(request: FinishedRequest, calls: Sequence[FinishedCall], began: float) -> RequestShown:
    return RequestShown(
        id=request.request_id,
        at=request.started_at,
        caller=request.caller,
        model=request.model or request.requested_model[:128],
        status=request.status,
        code=request.code,
        inputs=request.inputs,
        hits=request.hits,
        tokens=request.billed_tokens,
        cost=None if request.cost is None else f"{request.cost:f}",
        seconds=request.seconds,
        calls=[
            CallShown(
                endpoint=call.endpoint,
                outcome=call.outcome,
                status=call.status,
                reason=call.reason,
                inputs=call.inputs,
                began=max(0.0, call.began - began),
                seconds=call.seconds,
            )
            for call in calls
        ],
        events=request.events,
    )


def _percentile(ordered: Sequence[float], percentile: int) -> float:
    return ordered[max(0, -(-percentile * len(ordered) // 100) - 1)]
