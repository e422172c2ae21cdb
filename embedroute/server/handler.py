"""What every ASGI door shares: a gateway behind paths, over the events of one request.

Invariant: it never raises. Every failure, 404 and 500 under the mount included, is the dialect's error JSON.
No server cancels a request whose client left, so a watcher awaits ``receive()`` beside the work.
"""

import inspect
import logging
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final, Protocol, cast

from starlette.types import Receive, Scope, Send

from embedroute.auth import ANYONE, Caller
from embedroute.cache import CachePolicy
from embedroute.config import Auth, DialectName
from embedroute.errors import (
    BodyTimeout,
    ConfigError,
    EmbedrouteError,
    InternalError,
    MethodNotAllowed,
    NotFound,
    Unauthorized,
)
from embedroute.execution import RequestContext
from embedroute.gateway import Gateway
from embedroute.protocol import (
    DIALECTS,
    ENCODER,
    NO_DEBUG,
    EmbeddingRequest,
    Embeddings,
    decode_at_once,
    decode_in_steps,
    is_small,
)
from embedroute.runtime import ClientDisconnected, fairness, tasks
from embedroute.server import models
from embedroute.server.explain import explain
from embedroute.server.openapi import openapi
from embedroute.server.request import HTTPExchange
from embedroute.server.response import error_headers
from embedroute.text import did_you_mean, echo, log_fields

log = logging.getLogger("embedroute.access")

Authenticator = Callable[[Scope], Awaitable[Caller | None]]
"""With ``auth = "host"``: tells who sends a request, or None to refuse it."""

EMBEDDINGS: Final = frozenset({"/embeddings", "/v1/embeddings"})
OPENROUTER_MODELS: Final = frozenset({"/embeddings/models", "/v1/embeddings/models"})
OPENAPI: Final = frozenset({"/openapi.json", "/v1/openapi.json"})
_MODELS: Final = re.compile(r"(?:/v1)?/models(?:/(?P<id>.+))?")
_ENCODED: Final = re.compile(rb"(?:(?!/models/)[^?])*%2f|[^?]*%00", re.IGNORECASE)
"""What no path may hold in its raw form; a model's id may hold a slash that a client's library has encoded."""


class RequestHandler:
    """A gateway behind paths: what the application and the middleware share."""

    def __init__(
        self, gateway: Gateway, dialect: DialectName | None, authenticate: Authenticator | None
    ) -> None:
        """Speak ``dialect``, or the config's; with auth "host", ``authenticate`` tells who calls.

        Raises:
            ConfigError: there is no such dialect, or ``authenticate`` would not be asked or is not async.
        """
        _refuse_unusable(authenticate, gateway.settings.auth)
        self.gateway = gateway
        self.dialect_name: DialectName = validate_dialect(
            gateway.settings.dialect if dialect is None else dialect
        )
        self.dialect = DIALECTS[self.dialect_name]
        self._authenticate = authenticate

    async def serve(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for ``path``, which is relative to the mount; never raise."""
        inbound = HTTPExchange(scope, receive, send)
        try:
            try:
                await self._dispatch(path, inbound)
            except EmbedrouteError as error:
                await self._refuse(inbound, error)
        except ClientDisconnected:
            inbound.record("gone", 499)
        except BaseException as error:
            if not isinstance(error, Exception) and not tasks.is_foreign_cancellation(error):
                raise
            await self._handle_unexpected_error(inbound, error)
        finally:
            if inbound.account is not None:
                self.gateway.bodies.release(inbound.account, inbound.reserved)

    def _dispatch(self, path: str, inbound: HTTPExchange) -> Awaitable[None]:
        method: str = inbound.scope["method"]
        raw: bytes = inbound.scope.get("raw_path") or b""
        if b"%" in raw and _ENCODED.match(raw):
            raise NotFound(
                "There is nothing at a path with an encoded slash or NUL in it; write '/' as it is."
            )
        if path in EMBEDDINGS:
            _allow(method, "POST")
            return self._embed(inbound)
        if path in OPENAPI:
            _allow(method, "GET", "HEAD")
            return inbound.answer(200, self._document(".." if path.startswith("/v1/") else "."))
        if path in OPENROUTER_MODELS or _MODELS.fullmatch(path):
            _allow(method, "GET", "HEAD")
            return self._list(path, inbound)
        raise NotFound(
            f"There is nothing at {echo(path or '/')}; use POST …/v1/embeddings or GET …/v1/models."
        )

    async def _authorise(self, inbound: HTTPExchange) -> Caller:
        return (
            await self._host_caller(inbound)
            if self.gateway.settings.auth == "host"
            else self._caller_of(inbound)
        )

    def _caller_of(self, inbound: HTTPExchange) -> Caller:
        return (
            self.gateway.keys.authenticate(inbound.headers)
            if self.gateway.settings.auth == "keys"
            else ANYONE
        )

    async def _host_caller(self, inbound: HTTPExchange) -> Caller:
        found = (
            await _call_authenticator(self._authenticate, inbound.scope)
            if self._authenticate
            else get_user(inbound.scope)
        )
        if found is None:
            raise Unauthorized(
                "The host application does not know who is calling; sign in there first."
            )
        return found

    async def _embed(self, inbound: HTTPExchange) -> None:
        gateway, settings, trace = self.gateway, self.gateway.settings, inbound.trace
        caller = (
            await self._host_caller(inbound)
            if settings.auth == "host"
            else self._caller_of(inbound)
        )
        inbound.refuse_other_types()
        answer = forecast = None
        async with tasks.watch() as watch:
            watch.limit(settings.body_timeout, self._body_is_late)
            body = await inbound.body(settings.max_body_bytes, gateway.bodies, caller.name)
            watch.limit(settings.deadline, gateway.late)
            watch.cancel_when(inbound.gone)
            deadline = time.monotonic() + settings.deadline
            request = (
                decode_at_once(body, gateway.limits)
                if is_small(body)
                else await self._decode_large(body)
            )
            if request.debug is not NO_DEBUG:
                _open_journal(inbound, request)
            cached = inbound.cache_policy()
            if inbound.asks_to_explain():
                forecast = await self._explain(request, caller, cached)
            else:
                context = RequestContext(
                    request=request,
                    caller=caller,
                    trace=trace,
                    cache_policy=cached,
                    deadline=deadline,
                    watch=watch,
                )
                answer = await gateway.serve(context)
        if answer is None:
            await inbound.answer(200, ENCODER.encode(forecast))
        else:
            await self._respond(inbound, answer, request, caller)

    async def _respond(
        self, inbound: HTTPExchange, answer: Embeddings, request: EmbeddingRequest, caller: Caller
    ) -> None:
        pieces = self.dialect.success(answer, request)
        pieces = await fairness.run_cooperatively(pieces) if answer.large else list(pieces)
        await inbound.answer_in_pieces(200, pieces)
        inbound.record(
            "served", 200, model=answer.model, caller=caller.name, tokens=answer.prompt_tokens
        )

    async def _explain(
        self, request: EmbeddingRequest, caller: Caller, cached: CachePolicy
    ) -> dict[str, object]:
        steps = explain(self.gateway, request, caller, cached)
        return await fairness.step_by_step(steps) if request.large else fairness.finished(steps)

    async def _decode_large(self, body: bytes) -> EmbeddingRequest:
        return await fairness.step_by_step(decode_in_steps(body, self.gateway.limits))

    def _body_is_late(self) -> BodyTimeout:
        return BodyTimeout(
            f"The body was not whole within {self.gateway.settings.body_timeout:g} s."
        )

    def _document(self, server: str) -> bytes:
        return openapi(
            server, dialect=self.dialect_name, secured=self.gateway.settings.auth == "keys"
        )

    async def _list(self, path: str, inbound: HTTPExchange) -> None:
        caller = await self._authorise(inbound)
        routes = [
            route
            for route in self.gateway.directory.routes.values()
            if caller.models is None or route.name in caller.models
        ]
        context = _MODELS.fullmatch(path)
        if context is None:
            body = models.openrouter_list(routes)
        else:
            body = (
                models.model_card(routes, context["id"])
                if context["id"]
                else models.model_list(routes)
            )
        await inbound.answer(200, ENCODER.encode(body))

    async def _refuse(self, inbound: HTTPExchange, error: EmbedrouteError) -> None:
        if not inbound.begun:
            status = error.status
            await inbound.answer(
                status, self.dialect.error(error, inbound.trace), error_headers(error, status)
            )
            inbound.record("refused", status, code=error.code)

    async def _handle_unexpected_error(self, inbound: HTTPExchange, error: BaseException) -> None:
        request_id = inbound.trace.request_id
        log.error("bug", exc_info=error, extra=log_fields({"request_id": request_id}))
        told = InternalError(
            f"The gateway failed; its log holds the reason under request id {request_id}."
        )
        with suppress(Exception):  # whatever a server raises now, there is nobody left to tell
            await self._refuse(inbound, told)


def _refuse_unusable(authenticate: Authenticator | None, auth: Auth | None) -> None:
    """Refuse a function that would be ignored, so that nobody believes it guards anything.

    Raises:
        ConfigError: the gateway does not ask the host who calls, or the function is not async.
    """
    if authenticate is None:
        return
    if auth != "host":
        mistake = f'authenticate= works only with [gateway] auth = "host", and here auth = "{auth}"'
        raise ConfigError([f"{mistake}. Set that, or leave authenticate= out."])
    if not _is_async(authenticate):
        name = getattr(authenticate, "__qualname__", type(authenticate).__qualname__)
        raise ConfigError(
            [f"authenticate={name} is not an async function; write it with async def."]
        )


def _is_async(function: object) -> bool:
    """Whether it is an async function, a partial of one, or an object whose ``__call__`` is one."""
    while isinstance(function, partial):
        function = cast("partial[object]", function).func
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


def validate_dialect(name: str) -> DialectName:
    """Tell a dialect's name from a mistake of the host's.

    Raises:
        ConfigError: there is no such dialect.
    """
    known, text = list(DIALECTS), str(name)
    if text not in known:
        raise ConfigError(
            [
                f"dialect={text!r} is not known{did_you_mean(text, known)}; use one of {', '.join(known)}"
            ]
        )
    return cast("DialectName", text)


def _open_journal(inbound: HTTPExchange, request: EmbeddingRequest) -> None:
    debug = request.debug
    if debug.is_enabled():
        inbound.trace.open(
            trace=bool(debug.trace),
            sent=bool(debug.return_upstream_request),
            received=bool(debug.return_upstream_response),
            full=debug.trace_level != "summary",
        )


def _allow(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise MethodNotAllowed(method, ", ".join(allowed))


async def _call_authenticator(authenticate: Authenticator, scope: Scope) -> Caller | None:
    found = cast("object", authenticate(scope))
    if isinstance(found, Awaitable):
        found = cast("object", await found)
        if found is None or isinstance(found, Caller):
            return found
    raise TypeError(
        f"authenticate= must be async and return an embedroute.Caller, or None to refuse, not {type(found)}."
    )


class _User(Protocol):
    is_authenticated: object
    display_name: object


def get_user(scope: Scope) -> Caller | None:
    """Trust ``scope["user"]`` as Starlette's AuthenticationMiddleware and Django's leave it, if it says that it is known."""
    user = cast("_User", scope.get("user"))
    try:
        known = user.is_authenticated
    except (AttributeError, NotImplementedError):
        return None
    if (known() if callable(known) else known) is not True:
        return None
    try:
        return Caller(name=str(user.display_name))
    except (
        AttributeError,
        NotImplementedError,
    ):  # Django's users have none, and those of Starlette need not
        return Caller(name=str(user))
