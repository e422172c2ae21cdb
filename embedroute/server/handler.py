"""Handles one HTTP request: authenticate, read, decode, embed, respond.

The application, the middleware and the FastAPI router share this handler. Every failure becomes an
error in the JSON of the dialect, also a 404 or 500 below the mount. Only a cancellation of the task
is raised. ASGI servers do not cancel a request whose client has disconnected, so ``tasks.watch``
does.
"""

import re
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, cast, get_args

import msgspec
from starlette.types import Receive, Scope, Send

from embedroute.auth import (
    ANYONE,
    Caller,
    bearer_token,
    header_token,
    read_upstream_key,
    unknown_key,
)
from embedroute.backend import Secret
from embedroute.config import DialectName, ProtocolName, catalogue
from embedroute.errors import (
    BodyTimeout,
    ConfigError,
    EmbedrouteError,
    InternalError,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    Unauthorized,
)
from embedroute.execution import ActiveConfig, RequestContext, make_deadline_error
from embedroute.exhaustion import late_loop_error
from embedroute.gateway import Gateway
from embedroute.log_records import (
    ACCESS,
    RequestCompleted,
    UnhandledException,
    write,
)
from embedroute.protocol import (
    DIALECTS,
    ENCODER,
    NO_DEBUG,
    SMALL,
    EmbeddingRequest,
    Embeddings,
    LargeBody,
    OpenAIDialect,
    decode_at_once,
    decode_in_steps,
    is_small,
    response_bodies,
)
from embedroute.runtime import (
    ClientDisconnected,
    ClientTooSlow,
    Watch,
    cancellation,
    fairness,
    tasks,
)
from embedroute.server import health, models, routes, usage
from embedroute.server.authentication import (
    Authenticator,
    call_authenticator,
    check_authenticator,
    get_user,
)
from embedroute.server.error_response import error_headers
from embedroute.server.exchange import PIECE, SMALL_RESPONSE, HTTPExchange
from embedroute.server.explain import explain
from embedroute.server.monitoring import Monitoring
from embedroute.server.openapi import openapi
from embedroute.server.protocols import ModelQuestion, Translate, make_translate, renamed, tei
from embedroute.server.request_log import RequestLog
from embedroute.stores import StoredKeys
from embedroute.text import did_you_mean

_ENCODED: Final = re.compile(
    rb"(?:(?!/(?:models|deployments|engines|tei)/)[^?])*%2f|[^?]*%00", re.IGNORECASE
)
"""What no raw path may contain. Only the id of a model may contain an encoded slash."""
ABORT_TIMEOUT: Final = 1.0
"""Seconds in which the response to a cancelled request must be sent."""


class RequestHandler:
    """Serves the paths of one gateway in one dialect.

    ``stopping`` is True once the host has begun to shut down.
    """

    def __init__(
        self,
        gateway: Gateway,
        dialect: DialectName | None,
        authenticate: Authenticator | None,
        protocols: Sequence[ProtocolName] | None = None,
    ) -> None:
        """Use ``dialect`` and ``protocols``, or the config's.

        With auth "host", ``authenticate`` finds the caller.

        Raises:
            ConfigError: the dialect or a protocol is unknown, or ``authenticate`` is not async or
                not used.
        """
        check_authenticator(authenticate, gateway.settings.auth)
        self.gateway = gateway
        self.dialect_name: DialectName = validate_dialect(
            gateway.settings.dialect if dialect is None else dialect
        )
        self.dialect: OpenAIDialect = DIALECTS[self.dialect_name]
        self.protocols: frozenset[ProtocolName] = validate_protocols(
            gateway.settings.protocols if protocols is None else protocols
        )
        self._routes = routes.select_routes(self.protocols)
        self._translate_extensions = make_translate(self.protocols)
        self._authenticate = authenticate
        self.stopping = False
        self._log = RequestLog(gateway)
        self._monitoring = Monitoring(gateway, self._identify)

    async def serve(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request for ``path``, which is relative to the mount."""
        exchange = HTTPExchange(scope, receive, send, self.gateway.active.settings.write_timeout)
        try:
            try:
                await self._dispatch(path, exchange)
            except EmbedrouteError as error:
                await self._reject(exchange, error)
        except (ClientDisconnected, ClientTooSlow) as error:
            exchange.status = 499
            self._log.write_lost_client(exchange, error)
        except BaseException as error:
            if isinstance(error, Exception) or cancellation.is_foreign_cancellation(error):
                await self._handle_unexpected_error(exchange, error)
            elif cancellation.is_cancellation(error):
                await self._abort(exchange)
                cancellation.end_cancelled(error)
            else:
                raise
        finally:
            if exchange.embeds:
                gateway = self.gateway
                gateway.in_flight -= 1
                is_watched = gateway.counts is not None or gateway.active.ledger is not None
                if (is_watched or gateway.observers) and not exchange.explains:
                    self._report(exchange)
            if exchange.body.account is not None:
                self.gateway.bodies.release(exchange.body.account, exchange.body.reserved)

    def _report(self, exchange: HTTPExchange) -> None:
        """Report a finished request to the observers and to the ledger."""
        self.gateway.report(
            exchange.trace,
            dialect=self.dialect_name,
            status=exchange.status,
            code=exchange.code,
            seconds=exchange.elapsed(),
        )

    def _dispatch(self, path: str, exchange: HTTPExchange) -> Awaitable[None]:
        method: str = exchange.scope["method"]
        raw_path: bytes = exchange.scope.get("raw_path") or b""
        if b"%" in raw_path and _ENCODED.match(raw_path):
            raise NotFound(
                "The path contains an encoded slash or NUL. Write '/' without encoding it."
            )
        operation = self._routes.by_path.get(path)
        model = ""
        if operation is None:
            operation, model = self._find_by_template(path, exchange.scope)
        exchange.format = operation.format
        exchange.key_header = operation.key_header
        if method not in operation.methods:
            raise MethodNotAllowed(method, ", ".join(operation.methods))
        if operation is routes.EMBED:
            exchange.embeds = True
            self.gateway.in_flight += 1
            return self._embed(exchange, self._translate_extensions)
        if operation.translate is not None:
            exchange.embeds = True
            self.gateway.in_flight += 1
            return self._embed(exchange, operation.translate, model)
        if operation.body is not None:
            return self._answer_about_models(operation, model, exchange)
        if operation is routes.GET_USAGE:
            return self._answer_usage(exchange)
        return self._answer_about_mount(operation, path, exchange)

    def _find_by_template(self, path: str, scope: Scope) -> tuple[routes.Operation, str]:
        found = self._routes.match(path)
        if found is None:
            raise routes.not_found(path, scope.get("root_path", ""))
        return found

    def _answer_about_mount(
        self, operation: routes.Operation, path: str, exchange: HTTPExchange
    ) -> Awaitable[None]:
        if operation is routes.GET_OPENAPI:
            return exchange.answer(200, self._openapi(".." if path.startswith("/v1/") else "."))
        if operation is routes.GET_LIVE:
            return exchange.answer(200, health.LIVE)
        if operation is routes.GET_DASHBOARD or operation is routes.GET_DASHBOARD_FILE:
            return self._monitoring.answer_dashboard(path, exchange)
        if operation is routes.GET_METRICS:
            metrics = self.gateway.metrics
            if metrics is None or self.gateway.settings.metrics == "off":
                raise routes.not_found(path, exchange.scope.get("root_path", ""))
            return self._monitoring.answer_metrics(exchange, metrics)
        if self.stopping:
            return exchange.answer(503, health.STOPPING)
        return self._monitoring.answer_readiness(exchange)

    async def _embed(
        self, exchange: HTTPExchange, translate: Translate | None = None, model: str = ""
    ) -> None:
        gateway = self.gateway
        active = gateway.active
        settings = active.settings
        found = self._find_caller(exchange, active)
        caller = found if isinstance(found, Caller) else await found
        exchange.require_json()
        if active.caller_key_headers:
            caller = _add_upstream_keys(caller, exchange, active.caller_key_headers)
        forecast = None
        abort = partial(self._abort, exchange)
        async with tasks.watch(
            settings.body_timeout, self._make_body_timeout, on_cancelled=abort
        ) as watch:
            body = await exchange.read_body(settings.max_body_bytes, gateway.bodies, caller.name)
            make_error = partial(make_deadline_error, settings.deadline, exchange.trace)
            watch.restart(settings.deadline, make_error, exchange.wait_for_disconnect)
            deadline = gateway.clock() + settings.deadline
            if translate is None and is_small(body):
                request = decode_at_once(body, active.limits)
            else:
                request = await self._decode(body, exchange, caller, translate, model, active)
            exchange.trace.model = request.model
            if request.debug is not NO_DEBUG or self._monitoring.recorder is not None:
                self._start_debugging(exchange, request)
            context = RequestContext(
                active=active,
                request=request,
                caller=caller,
                trace=exchange.trace,
                cache_policy=exchange.cache_policy(),
                deadline=deadline,
                watch=watch,
            )
            if exchange.asks_to_explain():
                exchange.explains = True
                forecast = await self._explain(context)
            else:
                await self._respond(exchange, await gateway.run(context), context, watch)
        if forecast is not None:
            await exchange.answer(200, ENCODER.encode(forecast))

    async def _decode(
        self,
        body: bytes,
        exchange: HTTPExchange,
        caller: Caller,
        translate: Translate | None,
        model: str,
        active: ActiveConfig,
    ) -> EmbeddingRequest:
        """Decode a large body, or one of another API; ``model`` is the one that the path names."""
        limits = active.limits
        if translate is None:
            return await fairness.step_by_step(decode_in_steps(body, limits))
        if translate is tei.translate and not model:
            model = tei.choose_model(_make_question(active, caller))
        steps = translate(body, model, limits)
        if is_small(body):
            translation = fairness.finished(steps)
        else:
            translation = await fairness.step_by_step(steps)
        exchange.format = translation.format or exchange.format
        exchange.names = translation.names
        if translation.refusal is not None:
            raise translation.refusal
        if is_small(translation.body):
            return decode_at_once(translation.body, limits)
        return await fairness.step_by_step(decode_in_steps(translation.body, limits))

    def _start_debugging(self, exchange: HTTPExchange, request: EmbeddingRequest) -> None:
        """Record what the field ``debug`` enables, and the events that the dashboard shows."""
        debug = request.debug
        trace = exchange.trace
        if debug.is_enabled():
            trace.open(
                trace=bool(debug.trace),
                sent=bool(debug.return_upstream_request),
                received=bool(debug.return_upstream_response),
                full=debug.trace_level != "summary",
            )
        if trace.events is None and self._monitoring.recorder is not None:
            trace.is_internal = True
            trace.full = False
            trace.events = []

    async def _respond(
        self,
        exchange: HTTPExchange,
        embeddings: Embeddings,
        context: RequestContext,
        watch: Watch,
    ) -> None:
        caller = context.caller
        exchange.trace.served_tokens = embeddings.prompt_tokens
        body = (exchange.format or self.dialect).success(embeddings, context.request)
        if isinstance(body, tuple) and len(body[0]) <= SMALL_RESPONSE:
            watch.restart(exchange.write_timeout, ClientTooSlow, None)
            await exchange.send_whole(200, body[0])
        else:
            await self._send_large(exchange, body, caller, watch)
        if ACCESS.isEnabledFor(RequestCompleted.level):
            facts = exchange.facts(200, self.gateway.clock())
            facts["model"] = embeddings.model
            write(RequestCompleted(**facts))

    async def _send_large(
        self, exchange: HTTPExchange, body: tuple[bytes] | LargeBody, caller: Caller, watch: Watch
    ) -> None:
        """Send a response while it is counted in the budget for responses."""
        size_in_memory = body.array_bytes if isinstance(body, LargeBody) else len(body[0])
        account = self.gateway.responses.reserve(caller.name, size_in_memory)
        try:
            if isinstance(body, LargeBody):
                size = None
                if body.size_is_known or exchange.needs_length():
                    size = sum(await fairness.run_cooperatively(body.sizes()))
                await exchange.send_pieces(size, iter(body), watch, in_turn=True)
            else:
                await exchange.send_pieces(size_in_memory, _cut(body[0]), watch, in_turn=False)
        finally:
            self.gateway.responses.release(account, size_in_memory)

    async def _explain(self, context: RequestContext) -> response_bodies.Plan:
        request = context.request
        steps = explain(self.gateway, request, context.caller, context.cache_policy)
        return await fairness.step_by_step(steps) if request.large else fairness.finished(steps)

    def _make_body_timeout(self, lag: float) -> EmbedrouteError:
        if lag:
            return late_loop_error(lag)
        seconds = self.gateway.settings.body_timeout
        return BodyTimeout(f"The request body was not complete within {seconds:g} s.")

    def _find_caller(
        self, exchange: HTTPExchange, active: ActiveConfig
    ) -> Caller | Awaitable[Caller]:
        """Return the caller with a key of the config, or await it from the host or the store."""
        caller = ANYONE
        if active.settings.auth == "host":
            return self._authenticate_by_host(exchange)
        if active.settings.auth == "keys":
            header = ""
            authorization = exchange.values(b"authorization")
            if exchange.key_header and not authorization:
                header = exchange.key_header.decode()
                token = header_token(exchange.values(exchange.key_header), header)
            else:
                token = bearer_token(authorization)
            found = active.keys.find(token)
            if found is None:
                if self.gateway.stored_keys is None:
                    raise unknown_key(header)
                return self._find_stored_key(self.gateway.stored_keys, exchange, token, header)
            caller = found
        exchange.trace.caller = caller.name
        return caller

    async def _find_stored_key(
        self, keys: StoredKeys, exchange: HTTPExchange, token: bytes, header: str
    ) -> Caller:
        caller = await keys.find(token)
        if caller is None:
            raise unknown_key(header)
        exchange.trace.caller = caller.name
        return caller

    async def _authenticate_by_host(self, exchange: HTTPExchange) -> Caller:
        if self._authenticate is None:
            caller = get_user(exchange.scope)
            if exchange.scope.get("user") is None:
                self._log.write_missing_user()
        else:
            caller = await call_authenticator(self._authenticate, exchange.scope)
        if caller is None:
            raise Unauthorized("The request is not authenticated.")
        exchange.trace.caller = caller.name
        return caller

    async def _identify(self, exchange: HTTPExchange) -> Caller:
        found = self._find_caller(exchange, self.gateway.active)
        return found if isinstance(found, Caller) else await found

    def _openapi(self, server: str) -> bytes:
        secured = self.gateway.settings.auth == "keys"
        model = self.example_model()
        return openapi(
            server,
            dialect=self.dialect_name,
            secured=secured,
            model=model,
            protocols=tuple(sorted(self.protocols)),
        )

    def example_model(self) -> str:
        """Return the model that the example of the OpenAPI document names.

        The document needs no key, so it discloses no model that is not in the shipped catalogue.
        """
        shipped = catalogue()
        return next((name for name in self.gateway.models.routes if name in shipped), "MODEL")

    async def _answer_about_models(
        self, operation: routes.Operation, model: str, exchange: HTTPExchange
    ) -> None:
        active = self.gateway.active
        caller = await self._identify(exchange)
        body: msgspec.Struct
        if operation.answer is not None:
            sent = await self._read_small(exchange, caller) if "POST" in operation.methods else b""
            body = operation.answer(_make_question(active, caller, model, sent))
        else:
            allowed = active.selections.list_permitted(caller)
            if operation is routes.GET_MODEL:
                body = models.model_card(allowed, model)
            elif operation is routes.LIST_EMBEDDING_MODELS:
                body = models.openrouter_list(allowed)
            else:
                body = models.model_list(allowed)
        await exchange.answer(200, ENCODER.encode(body))

    async def _answer_usage(self, exchange: HTTPExchange) -> None:
        """Send what the caller has used."""
        caller = await self._identify(exchange)
        report = await usage.report_usage(self.gateway, caller, exchange.scope["query_string"])
        await exchange.answer(200, ENCODER.encode(report))

    async def _read_small(self, exchange: HTTPExchange, caller: Caller) -> bytes:
        exchange.require_json()
        seconds = self.gateway.settings.body_timeout
        async with tasks.watch(seconds, self._make_body_timeout):
            return await exchange.read_body(SMALL, self.gateway.bodies, caller.name)

    async def _reject(self, exchange: HTTPExchange, error: EmbedrouteError) -> None:
        if exchange.response_started:
            return
        if exchange.format is None:
            error = self.dialect.adapt(error)
        exchange.code = error.code
        if exchange.names:
            error = renamed(error, exchange.names)
        body = (exchange.format or self.dialect).error(error, exchange.trace)
        await exchange.answer(error.status, body, error_headers(error, error.status))
        self._log.write_error(exchange, error)

    async def _abort(self, exchange: HTTPExchange) -> None:
        """Respond to a request whose task the server or the host cancels, if that is possible."""
        exchange.body.is_done = True
        message = "The server stopped before it could respond. Send the request again."
        reject = partial(self._reject, exchange, Overloaded(message))
        with suppress(Exception):  # the connection itself may be broken
            await cancellation.run_although_cancelled(reject, ABORT_TIMEOUT)

    async def _handle_unexpected_error(self, exchange: HTTPExchange, error: BaseException) -> None:
        request_id = exchange.trace.request_id
        write(UnhandledException(request_id=request_id), exception=error)
        message = f"Internal error. The gateway's log has the reason under request id {request_id}."
        with suppress(Exception):  # the connection itself may be broken
            await self._reject(exchange, InternalError(message))


def _add_upstream_keys(caller: Caller, exchange: HTTPExchange, headers: Sequence[str]) -> Caller:
    """Return the caller with the keys of providers that the headers of the request hold."""
    keys = dict[str, Secret]()
    for name in headers:
        if values := exchange.values(name.encode()):
            keys[name] = read_upstream_key(name, values)
    if not keys:
        return caller
    return msgspec.structs.replace(caller, upstream_keys={**keys, **caller.upstream_keys})


def _make_question(
    active: ActiveConfig, caller: Caller, model: str = "", body: bytes = b""
) -> ModelQuestion:
    allowed = active.selections.list_permitted(caller)
    described = [models.describe_model(route) for route in allowed]
    return ModelQuestion(models=described, name=model, body=body, limits=active.limits)


def _cut(body: bytes) -> Iterator[bytes]:
    return (body[start : start + PIECE] for start in range(0, len(body), PIECE))


def validate_dialect(name: str) -> DialectName:
    """Return ``name`` if it is the name of a dialect.

    Raises:
        ConfigError: no dialect has this name.
    """
    names = list(DIALECTS)
    text = str(name)
    if text not in names:
        suggestion = did_you_mean(text, names)
        issue = f"dialect={text!r} is not known{suggestion}; use one of {', '.join(names)}"
        raise ConfigError([issue])
    return cast("DialectName", text)


def validate_protocols(names: Sequence[str]) -> frozenset[ProtocolName]:
    """Return the set of ``names`` if each is the name of a protocol.

    Raises:
        ConfigError: there are none, or one is unknown.
    """
    known = get_args(ProtocolName)
    unknown = [name for name in names if name not in known]
    if unknown or not names or isinstance(names, str):
        issue = f"protocols={names!r} must be a list of some of {', '.join(known)}"
        raise ConfigError([issue])
    return frozenset(cast("Sequence[ProtocolName]", names))
