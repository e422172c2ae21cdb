"""Extends the application of a gateway for ``embedroute serve``: what a host does otherwise."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedroute.errors import EmbedrouteError

EXPOSED: Final = (
    "openai-processing-ms",
    "retry-after",
    "retry-after-ms",
    "server-timing",
    "x-embedroute-attempts",
    "x-embedroute-cache",
    "x-embedroute-model-fallback",
    "x-embedroute-provider",
    "x-embedroute-truncated",
    "x-embedroute-usage",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "x-request-id",
    "x-should-retry",
)
"""Response headers that a script of another origin may read."""


def allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Let scripts of web pages of these origins call ``app``; ``*`` allows every origin."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=EXPOSED,
    )


class RootPathApp:
    """An application behind a proxy, which may remove the path that clients see before it, or not.

    uvicorn's own option expects that the proxy removes the path.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        """Wrap ``app``; ``root_path`` is the path, such as ``/pre``."""
        self._app = app
        self._root_path = f"/{root_path.strip('/')}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name the path in the scope; the application removes it from paths that begin with it."""
        if scope["type"] == "http":
            scope = {**scope, "root_path": self._root_path}
        await self._app(scope, receive, send)


class PreparedApp:
    """An application that starts only after ``prepare`` has ended without an error."""

    def __init__(self, app: ASGIApp, prepare: Callable[[], Awaitable[None]]) -> None:
        """Wrap ``app``; ``prepare`` is awaited once per lifespan, after the gateway has opened."""
        self._app = app
        self._prepare = prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on to the application."""

        async def prepare_and_send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                try:
                    await self._prepare()
                except EmbedrouteError as error:
                    message = {"type": "lifespan.startup.failed", "message": error.message}
            await send(message)

        in_lifespan = scope["type"] == "lifespan"
        await self._app(scope, receive, prepare_and_send if in_lifespan else send)
