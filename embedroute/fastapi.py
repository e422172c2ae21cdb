"""Provides a FastAPI router with the gateway's lifespan, OpenAPI operations and dependencies.

FastAPI does not parse the request body: the gateway reads it from the ASGI messages.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.types import Message, Receive, Scope, Send

from embedroute.config import DialectName
from embedroute.errors import MissingExtra
from embedroute.gateway import Gateway
from embedroute.server import (
    API,
    EMBED,
    LIST_MODELS,
    Authenticator,
    EmbeddingsApp,
    describe,
    inlined,
)

try:
    from fastapi import APIRouter, Request, Response
    from fastapi.routing import APIRoute
except ImportError:
    raise MissingExtra("fastapi", "fastapi") from None


_DOCUMENTED: Final = (EMBED, LIST_MODELS)
"""The operations that the host's OpenAPI document describes."""
_PATHS: Final = [
    f"{prefix}{operation.path}".replace("{id}", "{id:path}")
    for operation in API
    for prefix in ("/v1", "")
]


_RECORDER: Final = "embedroute.recorder"
"""The key of the request's ``_Recorder`` in its scope."""


class _Recorder:
    """A ``receive`` that records what the host's dependencies read, so that it can be replayed.

    ASGI delivers a body only once.
    """

    __slots__ = ("_receive", "_recorded", "_recording")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._recorded: deque[Message] = deque()
        self._recording = True

    async def __call__(self) -> Message:
        message = await self._receive()
        if self._recording:
            self._recorded.append(message)
        return message

    def replay(self, receive: Receive) -> Receive:
        """Stop recording; return a ``receive`` that replays the messages, then calls ``receive``.

        ``receive`` is this object, or a wrapper that FastAPI has put around it.
        """
        self._recording = False

        async def replayed() -> Message:
            return self._recorded.popleft() if self._recorded else await receive()

        return replayed


def _make_recording(route_class: type[APIRoute]) -> type[APIRoute]:
    """Make a route class that lets both the dependencies and the gateway read the body."""

    class Route(route_class):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            scope[_RECORDER] = recorder = _Recorder(receive)
            await super().handle(scope, recorder, send)

    return Route


class _GatewayResponse(Response):
    """A response that the gateway sends; ``path`` is relative to the router's prefix."""

    def __init__(self, app: EmbeddingsApp, path: str) -> None:
        super().__init__()
        self._app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        recorder: _Recorder = scope[_RECORDER]
        await self._app.handler.serve(self._path, scope, recorder.replay(receive), send)


def embeddings_router(
    gateway: Gateway,
    *,
    dialect: DialectName | None = None,
    authenticate: Authenticator | None = None,
    **options: Any,
) -> APIRouter:
    """Make a router, for ``app.include_router(embeddings_router(gateway), prefix="/ai")``.

    ``dialect`` overrides the config's. ``authenticate`` identifies the caller if the config has
    ``auth = "host"``. ``options`` are passed to ``APIRouter``.

    The host's OpenAPI document describes ``POST …/v1/embeddings`` and ``GET …/v1/models``. The
    gateway is closed with the host. Errors of the gateway are JSON in the dialect's format.
    Dependencies may read the body.
    """
    app = EmbeddingsApp(gateway, dialect=dialect, authenticate=authenticate)
    options["route_class"] = _make_recording(options.get("route_class", APIRoute))
    router = APIRouter(lifespan=gateway.lifespan, **options)
    _add_documented_routes(router, app)
    _add_other_routes(router, app)
    return router


def _add_documented_routes(router: APIRouter, app: EmbeddingsApp) -> None:
    """Add the routes that the host's OpenAPI document describes."""
    dialect_name = app.handler.dialect_name
    for operation in _DOCUMENTED:
        # Let FastAPI make the operationId from the path: a host may include several such routers,
        # and the ids must be unique.
        openapi_extra = {
            name: value
            for name, value in inlined(describe(operation, dialect_name), dialect_name).items()
            if name != "operationId"
        }
        router.add_api_route(
            f"/v1{operation.path}",
            _make_endpoint(app, f"/v1{operation.path}"),
            methods=[operation.methods[0]],
            response_model=None,
            openapi_extra=openapi_extra,
        )


def _add_other_routes(router: APIRouter, app: EmbeddingsApp) -> None:
    """Add every path with and without a slash, for all methods."""
    for path in _PATHS:
        # Add both forms: FastAPI would redirect a path with a trailing slash, and the client would
        # send the body and the API key again.
        for form in (path, f"{path}/"):
            # An empty list means all methods, so that the gateway responds to wrong methods too.
            router.add_api_route(
                form,
                _make_endpoint(app, path),
                methods=[],
                include_in_schema=False,
                generate_unique_id_function=_make_id,
            )


def _make_id(route: APIRoute) -> str:
    return route.path_format


def _make_endpoint(app: EmbeddingsApp, template: str) -> Callable[[Request], Awaitable[Response]]:
    async def embeddings(request: Request) -> Response:
        model_id = str(request.path_params.get("id", ""))
        return _GatewayResponse(app, template.replace("{id:path}", model_id).rstrip("/"))

    return embeddings
