"""The ASGI doors: a mountable application and a middleware, and how each lives and ends with its host."""

from contextlib import AsyncExitStack

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedroute.door import Door, FindCaller
from embedroute.errors import EmbedrouteError
from embedroute.gateway import Gateway
from embedroute.settings import DialectName

__all__ = ["EmbeddingsApp", "EmbeddingsMiddleware", "embeddings_app"]


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
        self._lives: set[AsyncExitStack] = set()

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
        """Open before the host starts, which is not asked to if that fails, and close before its last word."""
        startup, life = await receive(), AsyncExitStack()
        try:
            await life.enter_async_context(self.door.gateway.lifespan())
        except EmbedrouteError as error:
            await send({"type": "lifespan.startup.failed", "message": error.message})
            return
        if await self._heard_by_host(life, startup, scope, receive, send):
            return
        # Django and channels know no lifespan and raise at once; the gateway lives and ends all the same.
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._end(life)
        await send({"type": "lifespan.shutdown.complete"})

    async def _heard_by_host(self, life: AsyncExitStack, startup: Message, scope: Scope, receive: Receive, send: Send) -> bool:
        unheard = [startup]

        async def hearing() -> Message:
            return unheard.pop() if unheard else await receive()

        async def closing(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._lives.add(life)  # a host that is done with its lifespan early goes on serving
            else:
                await self._end(life)  # uvicorn stops the loop on this message, so close first
            await send(message)

        try:
            await self.app(scope, hearing, closing)
        except Exception:
            if not unheard:
                raise
        finally:
            if not unheard and life not in self._lives:
                await life.aclose()
        return not unheard

    async def _end(self, life: AsyncExitStack) -> None:
        self._lives.discard(life)
        await life.aclose()


async def _live(gateway: Gateway, receive: Receive, send: Send) -> None:
    await receive()
    try:
        async with gateway.lifespan():
            await send({"type": "lifespan.startup.complete"})
            await receive()
    except EmbedrouteError as error:
        await send({"type": "lifespan.startup.failed", "message": error.message})
        return
    await send({"type": "lifespan.shutdown.complete"})
