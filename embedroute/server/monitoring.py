"""Answers requests for metrics, readiness and the dashboard."""

import time
from collections.abc import Awaitable, Callable
from functools import partial

from embedroute.auth import Caller
from embedroute.errors import NotFound, PermissionDenied, Unauthorized
from embedroute.gateway import Gateway
from embedroute.protocol import ENCODER
from embedroute.runtime import fairness
from embedroute.server import health
from embedroute.server.dashboard import POLICY, Recorder, find_asset
from embedroute.server.exchange import HTTPExchange
from embedroute.telemetry import Metrics

Identify = Callable[[HTTPExchange], Awaitable[Caller]]
"""Returns the caller of a request, or raises ``Unauthorized``."""


class Monitoring:
    """What operators read about one gateway."""

    def __init__(self, gateway: Gateway, identify: Identify) -> None:
        """Find the caller of a request by ``identify``."""
        self._gateway = gateway
        self.recorder: Recorder | None = None
        if gateway.settings.dashboard != "off":
            self.recorder = Recorder(time.time, gateway.clock)
            gateway.observers.append(self.recorder)
        self._identify = identify

    async def answer_metrics(self, exchange: HTTPExchange, metrics: Metrics) -> None:
        """Send the metrics in the format that the client accepts.

        Raises:
            Unauthorized: the caller is not known.
            PermissionDenied: the caller may not debug.
        """
        if self._gateway.settings.metrics == "key":
            await self.identify_operator(exchange, "the metrics")
        accept = b",".join(exchange.values(b"accept")).decode("latin-1")
        body, content_type = await fairness.run_in_worker(partial(metrics.expose, accept))
        await exchange.answer(200, body, content_type=content_type.encode())

    async def answer_dashboard(self, path: str, exchange: HTTPExchange) -> None:
        """Send the page, one of its files, or the numbers that it shows.

        Raises:
            NotFound: the dashboard is off, or has no such file.
            Unauthorized: the caller is not known.
            PermissionDenied: the caller may not debug.
        """
        recorder = self.recorder
        if recorder is None:
            raise NotFound('The dashboard is off. Set dashboard = "key" in [gateway].')
        below = path.removeprefix("/dashboard")
        if below.endswith("/data"):
            await self._answer_numbers(exchange, recorder)
            return
        asset = find_asset(below)
        if asset is None:
            raise NotFound("The dashboard has no such file.")
        if self._gateway.settings.dashboard == "host":
            await self.identify_operator(exchange, "the dashboard")
        await exchange.answer(200, asset.content, POLICY, asset.content_type)

    async def _answer_numbers(self, exchange: HTTPExchange, recorder: Recorder) -> None:
        if self._gateway.settings.dashboard != "open":
            await self.identify_operator(exchange, "the dashboard")
        report = recorder.report(self._gateway.read_state())
        await exchange.answer(200, ENCODER.encode(report), POLICY)

    async def answer_readiness(self, exchange: HTTPExchange) -> None:
        """Send 200 if the gateway can serve requests, or 503; with reasons for operators."""
        gateway = self._gateway
        await gateway.runtime.get()
        readiness = await health.check_readiness(
            gateway.read_state(),
            gateway.store_checks,
            needs_models=gateway.settings.readiness == "models",
        )
        with_reasons = await self._may_see_reasons(exchange)
        await exchange.answer(*readiness.encode(with_reasons=with_reasons))

    async def identify_operator(self, exchange: HTTPExchange, what: str) -> Caller:
        """Return the caller if it may debug; ``what`` names what it wants to see.

        Raises:
            Unauthorized: the caller is not known.
            PermissionDenied: the caller may not debug.
        """
        caller = await self._identify(exchange)
        if not self._gateway.active.may_debug(caller):
            message = f"This caller may not see {what}; set debug = true for its key."
            raise PermissionDenied(message, code="debug_not_allowed")
        return caller

    async def _may_see_reasons(self, exchange: HTTPExchange) -> bool:
        if self._gateway.settings.auth == "keys" and not exchange.values(b"authorization"):
            return False
        try:
            await self.identify_operator(exchange, "reasons")
        except (Unauthorized, PermissionDenied):
            return False
        return True
