"""The ASGI doors: a mountable application and a middleware, and how each lives and ends with its host."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedroute.config import DialectName
from embedroute.errors import EmbedrouteError
from embedroute.gateway import Gateway
from embedroute.server.handler import Authenticator, RequestHandler

log = logging.getLogger("embedroute.access")


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

    def __init__(
        self,
        gateway: Gateway,
        *,
        dialect: DialectName | None = None,
        authenticate: Authenticator | None = None,
    ) -> None:
        """Serve ``gateway``; see ``embeddings_app``."""
        self.handler = RequestHandler(gateway, dialect, authenticate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            await self.handler.serve(path_in_mount(scope), scope, receive, send)
        elif scope["type"] == "lifespan":
            await _live(self.handler.gateway, _stand_in, scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})


def embeddings_app(
    gateway: Gateway,
    *,
    dialect: DialectName | None = None,
    authenticate: Authenticator | None = None,
) -> EmbeddingsApp:
    """Make an application to mount; below ``app.mount("/ai", …)`` it answers ``/ai/v1/embeddings``.

    ``dialect`` replaces the config's; ``authenticate`` is awaited with the ASGI scope when ``auth = "host"``.
    """
    return EmbeddingsApp(gateway, dialect=dialect, authenticate=authenticate)


class EmbeddingsMiddleware:
    """Pure ASGI middleware: answers ``{prefix}/embeddings`` and ``{prefix}/models…``, and passes all else on."""

    def __init__(
        self,
        app: ASGIApp,
        gateway: Gateway,
        prefix: str = "/v1",
        *,
        dialect: DialectName | None = None,
        authenticate: Authenticator | None = None,
    ) -> None:
        """Stand in front of ``app``."""
        self.app = app
        self.prefix = prefix.rstrip("/")
        self.handler = RequestHandler(gateway, dialect, authenticate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or hand it on."""
        if scope["type"] == "lifespan":
            await _live(self.handler.gateway, self.app, scope, receive, send)
        elif scope["type"] == "http" and (path := self._own(path_in_mount(scope))) is not None:
            await self.handler.serve(path, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _own(self, path: str) -> str | None:
        below = path.removeprefix(self.prefix)
        own = path.startswith(f"{self.prefix}/") and (
            below in {"/embeddings", "/embeddings/models", "/models"}
            or below.startswith("/models/")
        )
        return below if own else None


async def _stand_in(_scope: Scope, receive: Receive, send: Send) -> None:
    """The host of an application of its own, or in place of one that knows no lifespan."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def _live(
    gateway: Gateway, host: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> None:
    """Open before the host starts, which is not asked to if that fails.

    Of a lifespan that ends without a word, a server takes it that there is none: so it is told of every reason.
    """
    startup = await receive()
    try:
        loop = await gateway.runtime.get()
    except EmbedrouteError as error:
        told = error.message
    except Exception as error:
        log.exception("bug")
        told = f"The gateway cannot open ({type(error).__name__}); its log holds the reason."
    else:
        await _live_with(
            host, partial(gateway.runtime.close, loop), [startup], scope, receive, send
        )
        return
    await send({"type": "lifespan.startup.failed", "message": told})


async def _live_with(
    host: ASGIApp,
    close: Callable[[], Awaitable[None]],
    unheard: list[Message],
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Close before the host's last word; where that is done early it goes on serving, and so does the gateway."""
    serving = False

    async def hearing() -> Message:
        return unheard.pop() if unheard else await receive()

    async def telling(message: Message) -> None:
        nonlocal serving
        serving = message["type"] == "lifespan.startup.complete"
        if not serving:
            await close()  # uvicorn stops the loop on this message, so close first
        await send(message)

    try:
        try:
            await host(scope, hearing, telling)
        except Exception:
            if not unheard:
                raise
        if unheard:  # Django and channels raise at once; the gateway lives and ends all the same
            await _stand_in(scope, hearing, telling)
    except BaseException as error:
        if not serving or not isinstance(error, Exception):
            await close()
        raise
