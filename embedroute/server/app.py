"""Provides the ASGI application and the ASGI middleware, both with the lifespan of the gateway."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedroute.config import DialectName, ProtocolName
from embedroute.errors import EmbedrouteError
from embedroute.gateway import Gateway
from embedroute.log_records import StartFailed, write
from embedroute.reasons import describe
from embedroute.server.authentication import Authenticator
from embedroute.server.handler import RequestHandler
from embedroute.server.routes import is_in_api


def path_in_mount(scope: Scope) -> str:
    """Return the path below the mount, with one slash at its start and none at its end.

    A base URL that ends in a slash makes ``//v1/embeddings``.

    Some servers and hosts include ``root_path`` in ``path`` and others do not, so it is removed
    only if it is there. If the server leaves it out, ``path`` still contains the path of a
    Starlette mount, which Starlette has appended to ``root_path``; then that part is removed.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    mount = root.removeprefix(scope.get("app_root_path", "").rstrip("/"))
    for prefix in (root, mount):
        if prefix and f"{path}/".startswith(f"{prefix}/"):
            path = path[len(prefix) :]
            break
    path = path.rstrip("/")
    return f"/{path.lstrip('/')}" if path.startswith("//") else path


class EmbeddingsApp:
    """An ASGI application to mount in a host or to serve on its own; see ``embeddings_app``."""

    def __init__(
        self,
        gateway: Gateway,
        *,
        dialect: DialectName | None = None,
        authenticate: Authenticator | None = None,
        protocols: Sequence[ProtocolName] | None = None,
    ) -> None:
        """Serve ``gateway``; see ``embeddings_app`` for the arguments."""
        self.handler: RequestHandler = RequestHandler(gateway, dialect, authenticate, protocols)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or run the lifespan; reject WebSocket connections."""
        if scope["type"] == "http":
            await self.handler.serve(path_in_mount(scope), scope, receive, send)
        elif scope["type"] == "lifespan":
            await _run_lifespan(self.handler, _minimal_lifespan, scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})


def embeddings_app(
    gateway: Gateway,
    *,
    dialect: DialectName | None = None,
    authenticate: Authenticator | None = None,
    protocols: Sequence[ProtocolName] | None = None,
) -> EmbeddingsApp:
    """Make an ASGI application; mounted at ``/ai``, it serves ``/ai/v1/embeddings``.

    ``dialect`` and ``protocols`` override the config's. ``authenticate`` identifies the caller if
    the config has ``auth = "host"``; it is awaited with the ASGI scope of each request.
    """
    return EmbeddingsApp(gateway, dialect=dialect, authenticate=authenticate, protocols=protocols)


class EmbeddingsMiddleware:
    """ASGI middleware that serves ``{prefix}/embeddings`` and ``{prefix}/models…``.

    It passes everything else through to the wrapped application.
    """

    def __init__(
        self,
        app: ASGIApp,
        gateway: Gateway,
        prefix: str = "/v1",
        *,
        dialect: DialectName | None = None,
        authenticate: Authenticator | None = None,
    ) -> None:
        """Wrap ``app``; see ``embeddings_app`` for the other arguments."""
        self.app = app
        self.prefix: str = prefix.rstrip("/")
        self.handler: RequestHandler = RequestHandler(gateway, dialect, authenticate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or pass the connection through."""
        if scope["type"] == "lifespan":
            await _run_lifespan(self.handler, self.app, scope, receive, send)
        elif scope["type"] == "http" and (path := self._match(path_in_mount(scope))) is not None:
            await self.handler.serve(path, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _match(self, path: str) -> str | None:
        """Return the path below the prefix, or None if the middleware does not serve it."""
        below = path.removeprefix(self.prefix)
        return below if path.startswith(f"{self.prefix}/") and is_in_api(below) else None


async def _minimal_lifespan(_scope: Scope, receive: Receive, send: Send) -> None:
    """Complete startup and shutdown, for hosts that have no lifespan of their own."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def _run_lifespan(
    handler: RequestHandler, host: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> None:
    """Open the gateway, then run the host's lifespan; if opening fails, the host is not started.

    A failure is always reported with ``startup.failed``, because servers assume that an
    application whose lifespan ends without a message does not support lifespans.
    """
    startup = await receive()
    runtime = handler.gateway.runtime
    handler.stopping = False

    async def receive_event() -> Message:
        event = await receive()
        handler.stopping = event["type"] == "lifespan.shutdown"
        return event

    try:
        loop = await handler.gateway.open()
    except EmbedrouteError as error:
        message = error.message
    except Exception as error:  # noqa: BLE001 - the server gets a message instead
        reason = describe(error) or "unexpected exception"
        write(StartFailed(error=reason), exception=error)
        message = f"The gateway failed to start: {reason}. The log has the traceback."
    else:
        await _run_host_lifespan(
            host, partial(runtime.close, loop), [startup], scope, receive_event, send
        )
        return
    await send({"type": "lifespan.startup.failed", "message": message})


async def _run_host_lifespan(
    host: ASGIApp,
    close: Callable[[], Awaitable[None]],
    pending: list[Message],
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Run the host's lifespan, and close the gateway before the host's final message is sent.

    ``pending`` contains the startup message, which has been received already. If the host's
    lifespan ends early but the server continues to serve, the gateway stays open.
    """
    serving = False

    async def receive_pending() -> Message:
        return pending.pop() if pending else await receive()

    async def close_and_send(message: Message) -> None:
        nonlocal serving
        serving = message["type"] == "lifespan.startup.complete"
        if not serving:
            await close()  # uvicorn stops the event loop on this message, so close first
        await send(message)

    try:
        try:
            await host(scope, receive_pending, close_and_send)
        except Exception:
            if not pending:
                raise
        if pending:  # Django and Channels do not support lifespans: they raise before receiving
            await _minimal_lifespan(scope, receive_pending, close_and_send)
    except BaseException as error:
        if not serving or not isinstance(error, Exception):
            await close()
        raise
