"""The FastAPI door: a router with lifespan, OpenAPI docs and dependencies, and an untouched body."""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.types import Message, Receive, Scope, Send

from embedroute.config import DialectName
from embedroute.errors import MissingExtra
from embedroute.gateway import Gateway
from embedroute.server import Authenticator, EmbeddingsApp, inlined, models_operation, operation

try:
    from fastapi import APIRouter, Request, Response
    from fastapi.routing import APIRoute
except ImportError:
    raise MissingExtra("fastapi", "fastapi") from None


_DOCUMENTED: Final = {
    "/v1/embeddings": ("POST", operation),
    "/v1/models": ("GET", models_operation),
}
_OTHERS: Final = (
    "/embeddings",
    "/v1/embeddings/models",
    "/embeddings/models",
    "/models",
    "/v1/models/{id:path}",
    "/models/{id:path}",
)


_KEPT: Final = "embedroute.kept"
"""Where a request's scope holds what was read of its body before the gateway's turn."""


class _Kept:
    """A ``receive`` that keeps what the host's dependencies read of a body, which comes but once."""

    __slots__ = ("_over", "_read", "_receive")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read: deque[Message] = deque()
        self._over = False

    async def __call__(self) -> Message:
        message = await self._receive()
        if not self._over:
            self._read.append(message)
        return message

    def again(self, receive: Receive) -> Receive:
        """Give what was read once more, then go on with ``receive``: this one, or what FastAPI has put around it."""
        self._over = True

        async def go_on() -> Message:
            return self._read.popleft() if self._read else await receive()

        return go_on


def _keeping(given: type[APIRoute]) -> type[APIRoute]:
    """Make a kind of route that lets dependencies read the body and the gateway read it after them."""

    class Route(given):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            scope[_KEPT] = kept = _Kept(receive)
            await super().handle(scope, kept, send)

    return Route


class _Handed(Response):
    """A response that lets the application answer, below the router's own path."""

    def __init__(self, app: EmbeddingsApp, path: str) -> None:
        super().__init__()
        self._app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept: _Kept = scope[_KEPT]
        await self._app.handler.serve(self._path, scope, kept.again(receive), send)


def embeddings_router(
    gateway: Gateway,
    *,
    dialect: DialectName | None = None,
    authenticate: Authenticator | None = None,
    **options: Any,
) -> APIRouter:
    """Make a router for ``app.include_router(embeddings_router(gateway), prefix="/ai", dependencies=[…])``.

    ``options`` are ``APIRouter``'s own. The host's OpenAPI document describes ``POST …/v1/embeddings``, the
    gateway closes with the host, and every refusal that comes from here is the dialect's JSON. Dependencies may read
    the body.
    """
    app = EmbeddingsApp(gateway, dialect=dialect, authenticate=authenticate)
    options["route_class"] = _keeping(options.get("route_class", APIRoute))
    router = APIRouter(lifespan=gateway.lifespan, **options)
    spoken = app.handler.dialect_name
    for path, (method, describe) in _DOCUMENTED.items():
        # FastAPI names operations by their paths: a host may hold two of these routers, and names must not repeat.
        described = {
            name: value
            for name, value in inlined(describe(spoken), spoken).items()
            if name != "operationId"
        }
        router.add_api_route(
            path,
            _endpoint(app, path),
            methods=[method],
            response_model=None,
            openapi_extra=described,
        )
    for path in (*_DOCUMENTED, *_OTHERS):
        # Both forms: FastAPI would redirect the other one, and a redirect re-sends body and key.
        for form in (path, f"{path}/"):
            # No method stands for all of them: whichever the gateway does not take, it refuses in its own words.
            router.add_api_route(
                form,
                _endpoint(app, path),
                methods=[],
                include_in_schema=False,
                generate_unique_id_function=_make_id,
            )
    return router


def _make_id(route: APIRoute) -> str:
    return route.path_format


def _endpoint(app: EmbeddingsApp, template: str) -> Callable[[Request], Awaitable[Response]]:
    async def embeddings(request: Request) -> Response:
        return _Handed(
            app, template.replace("{id:path}", str(request.path_params.get("id", ""))).rstrip("/")
        )

    return embeddings
