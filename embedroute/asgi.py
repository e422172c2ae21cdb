"""The ASGI doors: a mountable application and a middleware, both over one pure-ASGI core.

Invariant: the core never raises. Every failure, 404 and 500 under the mount included, is the dialect's error JSON.
No server cancels a request whose client left, so a watcher awaits ``receive()`` beside the work.
"""

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedroute import listing, tasks
from embedroute.access import ANYONE, Caller
from embedroute.config import DialectName
from embedroute.errors import EmbedrouteError, InternalError, MethodNotAllowed, NotFound, Unauthorized, echo
from embedroute.explain import explain
from embedroute.gateway import Gateway
from embedroute.inbound import Inbound, facts_of, hints_of
from embedroute.tasks import ClientGone
from embedroute.wire.decode import Job, decode_request
from embedroute.wire.dialects import DIALECTS
from embedroute.wire.responses import ENCODER
from embedroute.wire.schema import openapi

log = logging.getLogger("embedroute.access")

FindCaller = Callable[[Scope], Awaitable[Caller | None]]
"""With ``auth = "host"``: tells who sends a request, or None to refuse it."""

EMBEDDINGS: Final = frozenset({"/embeddings", "/v1/embeddings"})
OPENROUTER_MODELS: Final = frozenset({"/embeddings/models", "/v1/embeddings/models"})
OPENAPI: Final = frozenset({"/openapi.json", "/v1/openapi.json"})
_MODELS: Final = re.compile(r"(?:/v1)?/models(?:/(?P<id>.+))?")
_ENCODED: Final = re.compile(rb"[^?]*%(?:2f|00)", re.IGNORECASE)


class Door:
    """A gateway behind paths: what the application and the middleware share."""

    def __init__(self, gateway: Gateway, dialect: DialectName | None, caller: FindCaller | None) -> None:
        """Speak ``dialect``, or the config's; ``caller`` tells who calls where the host decides that."""
        self.gateway = gateway
        self.dialect = DIALECTS[dialect or gateway.settings.dialect]
        self._caller = caller

    async def serve(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for ``path``, which is relative to the mount; never raise."""
        inbound = Inbound(scope, receive, send)
        try:
            await self._serve(path, inbound)
        except ClientGone:
            log.info("gone", extra={"request_id": inbound.journal.request_id, "status": 499})
        except EmbedrouteError as error:
            await self._refuse(inbound, error)
        except Exception:
            request_id = inbound.journal.request_id
            log.exception("bug", extra={"request_id": request_id})
            await self._refuse(
                inbound, InternalError(f"The gateway failed; its log holds the reason under request id {request_id}.")
            )

    async def _serve(self, path: str, inbound: Inbound) -> None:
        method: str = inbound.scope["method"]
        if path in EMBEDDINGS and not _ENCODED.match(inbound.scope.get("raw_path") or b""):
            _allow(method, "POST")
            await self._embed(inbound, await self._authorise(inbound))
        elif path in OPENAPI:
            _allow(method, "GET", "HEAD")
            await inbound.answer(200, openapi(".." if path.startswith("/v1/") else "."))
        elif path in OPENROUTER_MODELS or _MODELS.fullmatch(path):
            _allow(method, "GET", "HEAD")
            await self._list(path, inbound, await self._authorise(inbound))
        else:
            raise NotFound(f"There is nothing at {echo(path)}; use POST …/v1/embeddings or GET …/v1/models.")

    async def _authorise(self, inbound: Inbound) -> Caller:
        auth = self.gateway.settings.auth
        if auth == "open":
            return ANYONE
        if auth == "keys":
            return self.gateway.keys.identify(inbound.headers)
        found = await self._caller(inbound.scope) if self._caller else user_of(inbound.scope)
        if found is None:
            raise Unauthorized("The host application does not know who is calling; sign in there first.")
        return found

    async def _embed(self, inbound: Inbound, caller: Caller) -> None:
        settings, journal = self.gateway.settings, inbound.journal
        inbound.refuse_other_types()
        body = await inbound.body(settings.max_body_bytes, settings.body_timeout)
        job = decode_request(body, self.gateway.limits)
        _open_journal(inbound, job)
        if b"explain=1" in inbound.scope.get("query_string", b"").split(b"&"):
            await inbound.answer(200, ENCODER.encode(explain(self.gateway, job, caller)))
            return
        work = self.gateway.embed(job, caller=caller, journal=journal, cached=inbound.cache_use())
        answer = await tasks.unless(inbound.gone, work)
        await inbound.answer(200, self.dialect.success(answer, job), facts_of(journal))
        log.info(
            "served", extra={"request_id": journal.request_id, "status": 200, "model": answer.model, "caller": caller.name}
        )

    async def _list(self, path: str, inbound: Inbound, caller: Caller) -> None:
        routes = [
            route for route in self.gateway.directory.routes.values() if caller.models is None or route.name in caller.models
        ]
        asked = _MODELS.fullmatch(path)
        if asked is None:
            body = listing.openrouter_list(routes)
        else:
            body = listing.model_card(routes, asked["id"]) if asked["id"] else listing.model_list(routes)
        await inbound.answer(200, ENCODER.encode(body))

    async def _refuse(self, inbound: Inbound, error: EmbedrouteError) -> None:
        if inbound.begun:
            return
        status, body = error.status, self.dialect.error(error, inbound.journal)
        log.info("refused", extra={"request_id": inbound.journal.request_id, "status": status, "code": error.code})
        try:
            await inbound.answer(status, body, [*facts_of(inbound.journal), *hints_of(error, status)])
        except Exception:  # noqa: BLE001 - servers raise what they like when the client is gone
            log.info("gone", extra={"request_id": inbound.journal.request_id, "status": 499})


def _open_journal(inbound: Inbound, job: Job) -> None:
    debug = job.debug
    if debug.wanted():
        inbound.journal.open(
            trace=bool(debug.trace),
            sent=bool(debug.return_upstream_request),
            got=bool(debug.return_upstream_response),
            full=debug.trace_level != "summary",
        )


def _allow(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise MethodNotAllowed(method, ", ".join(allowed))


def user_of(scope: Scope) -> Caller | None:
    """Trust Starlette's ``scope["user"]``, as its AuthenticationMiddleware leaves it."""
    user = scope.get("user")
    if user is None or not user.is_authenticated:
        return None
    return Caller(name=str(user.display_name))


def path_in_mount(scope: Scope) -> str:
    """The path below the mount, without a trailing slash.

    Servers and hosts differ in whether ``path`` holds ``root_path``: it is taken off only where it stands, whole.
    Where they leave it out, a Starlette mount still adds itself to it, and only that part is in ``path``.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    mount = root.removeprefix(scope.get("app_root_path", "").rstrip("/"))
    for prefix in (root, mount):
        if prefix and f"{path}/".startswith(f"{prefix}/"):
            return path[len(prefix) :].rstrip("/")
    return path.rstrip("/")


class EmbeddingsApp:
    """The mountable application; as an application of its own it runs the gateway's lifespan too."""

    def __init__(self, gateway: Gateway, *, dialect: DialectName | None = None, caller: FindCaller | None = None) -> None:
        """Serve ``gateway``; see ``embeddings_app``."""
        self.door = Door(gateway, dialect, caller)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            await self.door.serve(path_in_mount(scope), scope, receive, send)
        elif scope["type"] == "lifespan":
            await _live(self.door.gateway, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})


def embeddings_app(gateway: Gateway, *, dialect: DialectName | None = None, caller: FindCaller | None = None) -> EmbeddingsApp:
    """Make an application to mount; below ``app.mount("/ai", …)`` it answers ``/ai/v1/embeddings``.

    ``dialect`` replaces the config's; ``caller`` is awaited with the ASGI scope when ``auth = "host"``.
    """
    return EmbeddingsApp(gateway, dialect=dialect, caller=caller)


class EmbeddingsMiddleware:
    """Pure ASGI middleware: answers ``{prefix}/embeddings`` and ``{prefix}/models…``, and passes all else on."""

    def __init__(
        self,
        app: ASGIApp,
        gateway: Gateway,
        prefix: str = "/v1",
        *,
        dialect: DialectName | None = None,
        caller: FindCaller | None = None,
    ) -> None:
        """Stand in front of ``app``."""
        self.app = app
        self.prefix = prefix.rstrip("/")
        self.door = Door(gateway, dialect, caller)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or hand it on."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] == "http" and (path := self._own(path_in_mount(scope))) is not None:
            await self.door.serve(path, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _own(self, path: str) -> str | None:
        below = path.removeprefix(self.prefix)
        own = path.startswith(f"{self.prefix}/") and (
            below in {"/embeddings", "/embeddings/models", "/models"} or below.startswith("/models/")
        )
        return below if own else None

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        heard = False

        async def hearing() -> Message:
            nonlocal heard
            heard = True
            return await receive()

        try:
            await self.app(scope, hearing, self._closing(send))
        except Exception:
            if heard:
                raise
        if not heard:
            # Django and channels know no lifespan and raise at once; the gateway is closed all the same.
            await _live(self.door.gateway, receive, send)

    def _closing(self, send: Send) -> Send:
        async def closing(message: Message) -> None:
            # uvicorn stops the loop on this message, so close first.
            if message["type"] == "lifespan.shutdown.complete":
                async with self.door.gateway.lifespan():
                    pass
            await send(message)

        return closing


async def _live(gateway: Gateway, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    async with gateway.lifespan():
        pass
    await send({"type": "lifespan.shutdown.complete"})
