"""Reports requests as spans and metrics of OpenTelemetry (extra ``otel``, its API only).

One CLIENT span per request, a child of the host's current span, and a child span per upstream call.
They are made when the request has ended, with the times of its begin and end. Names are those of
the semantic conventions for generative AI (client-embeddings.md, in development, November 2026).
"""

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Final

from embedroute.errors import MissingExtra
from embedroute.telemetry.observer import FinishedCall, FinishedRequest
from embedroute.version import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Span

OPERATION: Final = "embeddings"
OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
ERROR_TYPE: Final = "error.type"
STATUS: Final = "http.response.status_code"
DURATION: Final = "gen_ai.client.embeddings.duration"
TOKENS: Final = "gen_ai.client.embeddings.operation.input_tokens"
BUCKETS: Final = tuple(0.01 * 2**power for power in range(14))
"""Seconds; the bounds that the conventions recommend."""

PROVIDERS: Final[Mapping[str, str]] = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
}
"""Slug of a provider → its name in the conventions, where they differ."""
MOST_OPEN: Final = 4096
"""Requests whose calls are remembered until the request ends."""

_Ended = tuple[FinishedCall, int]
"""A call, and the time of its end in nanoseconds since 1970."""


class Spans:
    """An observer that makes spans and metrics. Without an SDK in the process they go nowhere."""

    def __init__(self) -> None:
        """Get a tracer and a meter from the global providers, which the host configures.

        Raises:
            MissingExtra: opentelemetry-api is not installed.
        """
        try:
            self._trace = import_module("opentelemetry.trace")
            metrics = import_module("opentelemetry.metrics")
        except ImportError:
            raise MissingExtra("otel", "opentelemetry-api") from None
        self._tracer = self._trace.get_tracer("embedroute", __version__)
        meter = metrics.get_meter("embedroute", __version__)
        self._duration = meter.create_histogram(
            DURATION,
            unit="s",
            description="Duration of requests for embeddings",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._tokens = meter.create_histogram(
            TOKENS, unit="{token}", description="Input tokens of requests for embeddings"
        )
        self._lock = Lock()
        self._calls: OrderedDict[str, list[_Ended]] = OrderedDict()

    def call_finished(self, call: FinishedCall) -> None:
        """Remember a call until its request ends."""
        with self._lock:
            self._calls.setdefault(call.request_id, []).append((call, time.time_ns()))
            if len(self._calls) > MOST_OPEN:
                self._calls.popitem(last=False)

    def request_finished(self, request: FinishedRequest) -> None:
        """Make the spans of a request, and record its metrics."""
        with self._lock:
            calls = self._calls.pop(request.request_id, [])
        attributes = _describe(request)
        self._duration.record(request.seconds, attributes)
        if request.status == 200:
            self._tokens.record(request.served_tokens, attributes)
        self._make_spans(request, calls, attributes)

    def _make_spans(
        self, request: FinishedRequest, calls: Sequence[_Ended], attributes: Mapping[str, str]
    ) -> None:
        start = int(request.started_at * 1e9)
        name = f"{OPERATION} {attributes[REQUEST_MODEL]}"
        kind = self._trace.SpanKind.CLIENT
        span: Span = self._tracer.start_span(
            name, kind=kind, start_time=start, attributes=attributes
        )
        if span.is_recording():
            span.set_attribute(INPUT_TOKENS, request.served_tokens)
            span.set_attribute("embedroute.request_id", request.request_id)
            span.set_attribute("embedroute.cache.hits", request.hits)
            self._set_error(span, attributes.get(ERROR_TYPE))
            context = self._trace.set_span_in_context(span)
            for call, end in calls:
                child = self._tracer.start_span(
                    f"{OPERATION} {call.upstream_model}",
                    context=context,
                    kind=kind,
                    start_time=end - int(call.seconds * 1e9),
                    attributes=_describe_call(call),
                )
                self._set_error(child, None if call.outcome == "answered" else call.outcome)
                child.end(end)
        span.end(start + int(request.seconds * 1e9))

    def _set_error(self, span: "Span", error: str | None) -> None:
        if error is not None:
            span.set_attribute(ERROR_TYPE, error)
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))


def _describe(request: FinishedRequest) -> Mapping[str, str]:
    """Return the attributes of the span and of the metrics; a model is one of the config."""
    provider = request.providers[0] if request.providers else "embedroute"
    attributes = {
        OPERATION_NAME: OPERATION,
        PROVIDER: _name_provider(provider),
        REQUEST_MODEL: request.model or "unknown",
    }
    if request.status >= 400:
        return {**attributes, ERROR_TYPE: request.code or str(request.status)}
    return {**attributes, RESPONSE_MODEL: request.model}


def _describe_call(call: FinishedCall) -> Mapping[str, str | int]:
    attributes: dict[str, str | int] = {
        OPERATION_NAME: OPERATION,
        PROVIDER: _name_provider(call.provider),
        REQUEST_MODEL: call.upstream_model,
        "embedroute.endpoint": call.endpoint,
        "embedroute.inputs": call.inputs,
    }
    if call.status is not None:
        attributes[STATUS] = call.status
    if call.outcome == "answered":
        attributes[INPUT_TOKENS] = call.tokens
    return attributes


def _name_provider(slug: str) -> str:
    base = slug.partition("/")[0]
    return PROVIDERS.get(base, base)
