"""Defines what observers get: one struct per finished request and one per upstream call.

Both are built only if a gateway has observers. Neither holds an input, a vector or a secret.
"""

import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Final, Literal, Protocol

import msgspec

from embedroute.errors import (
    BatchTooLarge,
    ConnectError,
    EmbedrouteError,
    InvalidUpstreamResponse,
    RateLimited,
    Rejected,
    UpstreamAuthError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamTimeout,
)
from embedroute.log_records import ObserverFailed, write
from embedroute.trace import Event, RequestTrace

CallOutcome = Literal[
    "answered",
    "rate_limited",
    "timed_out",
    "unreachable",
    "invalid_response",
    "account_refused",
    "model_not_found",
    "rejected",
    "failed",
    "cancelled",
]
"""What a call has brought; ``cancelled`` if another call was answered first or the client left."""

OUTCOMES: Final[Sequence[tuple[type[EmbedrouteError], CallOutcome]]] = (
    (RateLimited, "rate_limited"),
    (UpstreamTimeout, "timed_out"),
    (ConnectError, "unreachable"),
    (InvalidUpstreamResponse, "invalid_response"),
    (UpstreamAuthError, "account_refused"),
    (UpstreamModelNotFound, "model_not_found"),
    (UpstreamRejectedInput, "rejected"),
    (Rejected, "rejected"),
    (BatchTooLarge, "rejected"),
)
"""Error → outcome; the first that matches. Every other error is ``failed``."""


class FinishedRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request for embeddings, after its response was sent or its client has disconnected.

    ``caller`` is the name of the caller, or "" if it is not known. ``model`` is the public name of
    the model, or "" if none was found. ``requested_model`` is what the client has sent, so it may
    be any text. ``dialect`` is "python" for ``Gateway.embed``. ``status`` is the HTTP status, or
    499 if the client has disconnected or the call was cancelled; ``code`` is the code of the error.
    ``providers`` are those of the vectors, or for an error all that were called.

    ``attempts`` counts upstream calls, ``inputs`` the inputs of the request (0 if it could not be
    read), ``hits`` and ``misses`` those that were in the cache and those that were not.
    ``billed_tokens`` are billed by upstreams for this request, and ``served_tokens`` are reported
    to the client. ``cost`` is in USD, or None if a price is unknown.

    ``events`` are those of its trace, without values, if the dashboard or the client requested it.

    ``started_at`` is in seconds since 1970, ``seconds`` is the duration, and ``upstream_seconds``
    that part of it in which the request waited for upstreams: in queues, calls and retries.
    """

    request_id: str
    caller: str
    model: str
    requested_model: str
    dialect: str
    status: int
    code: str | None
    providers: Sequence[str]
    attempts: int
    inputs: int
    billed_tokens: int
    served_tokens: int
    cost: Decimal | None
    hits: int
    misses: int
    events: Sequence[Event]
    started_at: float
    seconds: float
    upstream_seconds: float


class FinishedCall(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One upstream call: an attempt of a request, a merged call, or a check of an endpoint.

    ``model`` is the public name and ``upstream_model`` the provider's own. A merged call has the
    id of the request that made it. ``status`` is the HTTP status of the upstream, or None if there
    was none. ``tokens`` are those that the upstream has reported, or else an estimate; 0 if it has
    not answered. ``began`` and ``seconds`` are in seconds of the gateway's monotonic clock.
    """

    request_id: str
    provider: str
    model: str
    upstream_model: str
    endpoint: str
    outcome: CallOutcome
    status: int | None
    reason: str | None
    inputs: int
    tokens: int
    began: float
    seconds: float


class Observer(Protocol):
    """Receives what has finished, on the event loop or thread where it ran.

    Both methods must return quickly, because the event loop waits for them, and they must be safe
    to call from several threads if the gateway serves several event loops. An exception is logged
    and does not change the response.
    """

    def request_finished(self, request: FinishedRequest) -> None:
        """Record a request."""

    def call_finished(self, call: FinishedCall) -> None:
        """Record an upstream call."""


def classify_outcome(failure: EmbedrouteError) -> CallOutcome:
    """Return the outcome of a call that has failed with ``failure``."""
    for kind, outcome in OUTCOMES:
        if isinstance(failure, kind):
            return outcome
    return "failed"


def report_request(
    observers: Sequence[Observer],
    trace: RequestTrace,
    *,
    dialect: str,
    status: int,
    code: str | None,
    seconds: float,
    now: float,
) -> None:
    """Report a request that ends now, after ``seconds``, to every observer.

    ``now`` is the time of the gateway's clock. If an observer raises, that is logged and the others
    are called.
    """
    request = FinishedRequest(
        request_id=trace.request_id,
        caller=trace.caller or "",
        model=trace.public_model,
        requested_model=trace.model,
        dialect=dialect,
        status=status,
        code=code,
        providers=tuple(trace.providers if status < 400 else trace.providers_for(status)),
        attempts=trace.attempts,
        inputs=trace.inputs,
        billed_tokens=trace.billed_tokens if trace.bills else 0,
        served_tokens=trace.served_tokens,
        cost=trace.cost if trace.bills else Decimal(0),
        hits=trace.hits,
        misses=trace.misses,
        events=() if trace.full or trace.events is None else tuple(trace.events),
        started_at=time.time() - seconds,
        seconds=seconds,
        upstream_seconds=trace.upstream_seconds(now) if trace.misses else 0.0,
    )
    for observer in observers:
        try:
            observer.request_finished(request)
        except Exception as error:  # noqa: BLE001 - a host's observer must not fail a request
            _log_failure(observer, error)


def report_call(observers: Sequence[Observer], call: FinishedCall) -> None:
    """Report an upstream call to every observer; see ``report_request``."""
    for observer in observers:
        try:
            observer.call_finished(call)
        except Exception as error:  # noqa: BLE001 - a host's observer must not fail a request
            _log_failure(observer, error)


def _log_failure(observer: Observer, error: Exception) -> None:
    write(ObserverFailed(observer=type(observer).__qualname__), exception=error)
