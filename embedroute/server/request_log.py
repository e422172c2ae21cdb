"""Writes the log records of requests that were rejected, that failed, or whose client was lost.

``embedroute.log_records`` defines the records. The handler itself writes that of a served request.
"""

from logging import INFO

from embedroute.errors import EmbedrouteError, ModelNotFound, NotCached
from embedroute.gateway import Gateway
from embedroute.log_records import (
    ACCESS,
    CallerUnknown,
    DisconnectLogged,
    ModelNotConfigured,
    RequestFailed,
    RequestRejected,
    SlowClientLogged,
    without_numbers,
    write,
)
from embedroute.reasons import describe
from embedroute.runtime import ClientDisconnected, ClientTooSlow
from embedroute.server.authentication import ADVICE
from embedroute.server.exchange import HTTPExchange


class RequestLog:
    """Writes the log records of the requests to one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        """Use the clock of ``gateway``, and its limit on equal records."""
        self._gateway = gateway

    def _write_missing_provider(self, model: str) -> None:
        """Tell the operator, once a minute, how to serve a model of the catalogue."""
        tables = self._gateway.models.missing_tables(model)
        if tables and self._gateway.log_limit.due(
            self._gateway.clock(), ModelNotConfigured.event, model
        ):
            write(ModelNotConfigured(model=model, advice=f"add {tables}"))

    def write_error(self, exchange: HTTPExchange, error: EmbedrouteError) -> None:
        """Log an error response: a 5xx as a warning, unless an equal one was in the last minute."""
        if isinstance(error, ModelNotFound):
            self._write_missing_provider(error.requested)
        is_refusal = error.status < 500 or isinstance(error, NotCached)
        kind = RequestRejected if is_refusal else RequestFailed
        if not ACCESS.isEnabledFor(kind.level):
            return
        facts = exchange.facts(error.status, self._gateway.clock())
        if is_refusal:
            write(RequestRejected(**facts))
            return
        reason = describe(error)
        providers = ",".join(facts["providers"])
        key = (str(error.status), exchange.trace.model, providers, without_numbers(reason))
        count = self._gateway.log_limit.due(self._gateway.clock(), *key)
        write(
            RequestFailed(error=reason, count=count if count > 1 else None, **facts),
            level=None if count else INFO,
        )

    def write_lost_client(
        self, exchange: HTTPExchange, error: ClientDisconnected | ClientTooSlow
    ) -> None:
        """Log a request whose client disconnected, or read nothing for too long."""
        kind = DisconnectLogged if isinstance(error, ClientDisconnected) else SlowClientLogged
        if ACCESS.isEnabledFor(kind.level):
            write(kind(**exchange.facts(499, self._gateway.clock())))

    def write_missing_user(self) -> None:
        """Tell the operator, once a minute, that no middleware authenticates users."""
        if self._gateway.log_limit.due(self._gateway.clock(), CallerUnknown.event):
            write(CallerUnknown(advice=ADVICE))
