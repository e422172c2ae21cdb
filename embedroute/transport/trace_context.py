"""Sends the trace context of the host's current span to upstreams (extra ``otel``)."""

from importlib import import_module

import msgspec

from embedroute.backend import UpstreamRequest, UpstreamResponse
from embedroute.transport.base import DEFAULT_LIMITS, ExchangeLimits, Transport


class TraceContextTransport:
    """A transport that adds ``traceparent`` and ``tracestate`` (W3C Trace Context) to requests.

    It adds nothing without a current span, and never the baggage, which may hold data of users.
    """

    def __init__(self, transport: Transport) -> None:
        """Send requests with ``transport``. The package opentelemetry-api must be installed."""
        self.name: str = transport.name
        self._transport = transport
        module = import_module("opentelemetry.trace.propagation.tracecontext")
        self._inject = module.TraceContextTextMapPropagator().inject

    async def send(
        self, request: UpstreamRequest, timeout: float, limits: ExchangeLimits = DEFAULT_LIMITS
    ) -> UpstreamResponse:
        """Send ``request`` with the trace context; headers of the backend's own are kept."""
        context = dict[str, str]()
        self._inject(context)
        if context:
            request = msgspec.structs.replace(request, headers={**context, **request.headers})
        return await self._transport.send(request, timeout, limits)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()
