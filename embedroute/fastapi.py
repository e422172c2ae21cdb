"""Provides a FastAPI router with the gateway's lifespan, OpenAPI operations and dependencies.

FastAPI does not parse the request body: the gateway reads it from the ASGI messages.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from starlette.types import Message, Receive, Scope, Send

from embedroute.auth import Caller
from embedroute.config import DialectName
from embedroute.errors import ConfigError, EmbedrouteError, InternalError, MissingExtra
from embedroute.gateway import Gateway
from embedroute.server import (
    API,
    EMBED,
    KEY_DESCRIPTION,
    LIST_MODELS,
    Authenticator,
    EmbeddingsApp,
    Operation,
    describe,
    describe_error,
    inlined,
    respond_to_error,
)

try:
    from fastapi import APIRouter, FastAPI, Request, Response, Security, params
    from fastapi.routing import APIRoute
    from fastapi.security import HTTPBearer
except ImportError:
    raise MissingExtra("fastapi", "fastapi") from None


_DOCUMENTED: Final = {"create_embedding": EMBED, "list_models": LIST_MODELS}
"""Route name → operation that the host's OpenAPI document describes."""
_PATHS: Final = [
    f"{prefix}{operation.path}".replace("{id}", "{id:path}")
    for operation in API
    for prefix in ("/v1", "")
]


_RECORDER: Final = "embedroute.recorder"
"""The key of the request's ``_Recorder`` in its scope."""
_CALLER: Final = "embedroute.caller"
"""The key, in the scope, of what the dependency ``caller`` has returned."""


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
    caller: params.Depends | None = None,
    authenticate: Authenticator | None = None,
    **options: Any,
) -> APIRouter:
    """Make a router, for ``app.include_router(embeddings_router(gateway), prefix="/ai")``.

    ``dialect`` overrides the config's. If the config has ``auth = "host"``, the caller is what the
    dependency ``caller=Depends(current_caller)`` returns: an ``embedroute.Caller``, or None to
    reject the request with a 401. The dependency may have dependencies of its own, and its security
    schemes are part of the host's OpenAPI document. Without ``caller``, ``authenticate`` identifies
    the caller as in ``embeddings_app``. ``options`` are passed to ``APIRouter``.

    The host's OpenAPI document describes ``POST …/v1/embeddings`` and ``GET …/v1/models``. The
    gateway is closed with the host. Errors of the gateway are JSON in the dialect's format.
    Dependencies may read the body.

    Raises:
        ConfigError: the dialect is unknown, ``caller`` is not a dependency, or ``caller`` or
            ``authenticate`` would not be used.
    """
    if caller is not None:
        _check_dependency(caller, gateway, authenticate)
        authenticate = _read_caller
    app = EmbeddingsApp(gateway, dialect=dialect, authenticate=authenticate)
    options["route_class"] = _make_recording(options.get("route_class", APIRoute))
    router = APIRouter(lifespan=gateway.lifespan, **options)
    _add_documented_routes(router, app, caller)
    _add_other_routes(router, app, caller)
    return router


def _check_dependency(caller: object, gateway: Gateway, authenticate: Authenticator | None) -> None:
    """Refuse what would not identify the caller.

    Raises:
        ConfigError: says what to write instead.
    """
    mistakes = list[str]()
    if not isinstance(caller, params.Depends):
        name = getattr(caller, "__name__", "current_caller")
        mistakes.append(f"caller= is not a dependency. Write caller=Depends({name}).")
    if authenticate is not None:
        mistakes.append("caller= and authenticate= exclude each other. Leave one of them out.")
    if gateway.settings.auth != "host":
        issue = 'caller= works only with [gateway] auth = "host", and here auth = '
        mistakes.append(f'{issue}"{gateway.settings.auth}". Set that, or leave caller= out.')
    if mistakes:
        raise ConfigError(mistakes)


async def _read_caller(scope: Scope) -> Caller | None:
    """Return what the dependency ``caller`` has returned.

    Raises:
        TypeError: it is neither a caller nor None.
    """
    found = cast("object", scope[_CALLER])
    if found is None or isinstance(found, Caller):
        return found
    raise TypeError(
        "The dependency caller= must return an embedroute.Caller, or None to reject the request, "
        f"not {type(found)}."
    )


def _add_documented_routes(
    router: APIRouter, app: EmbeddingsApp, caller: params.Depends | None
) -> None:
    """Add the routes that the host's OpenAPI document describes."""
    dependencies = list[params.Depends]()
    if app.handler.gateway.settings.auth == "keys":
        # It only documents the key, which the gateway checks.
        scheme = HTTPBearer(
            scheme_name="EmbeddingsKey", description=KEY_DESCRIPTION, auto_error=False
        )
        dependencies.append(Security(scheme))
    for name, operation in _DOCUMENTED.items():
        path = f"/v1{operation.path}"
        router.add_api_route(
            path,
            _make_endpoint(app, path, caller),
            methods=[operation.methods[0]],
            name=name,
            tags=["embeddings"],
            dependencies=dependencies,
            response_model=None,
            # With "4XX", FastAPI does not add a 422 that the gateway never sends.
            responses={"4XX": {"description": "The request is invalid or not allowed"}},
            openapi_extra=_describe_inline(operation, app),
        )


def _describe_inline(operation: Operation, app: EmbeddingsApp) -> dict[str, object]:
    """Return what the host's document has about an operation, besides what FastAPI adds."""
    dialect = app.handler.dialect_name
    described = describe(operation, dialect, app.handler.example_model())
    # FastAPI makes the operationId from the name and the path: a host may include several such
    # routers, and the ids must be unique.
    del described["operationId"], described["tags"]
    responses = cast("dict[str, object]", described["responses"])
    described["responses"] = {**responses, "4XX": describe_error(400, dialect)}
    return cast("dict[str, object]", inlined(described, dialect))


def _add_other_routes(router: APIRouter, app: EmbeddingsApp, caller: params.Depends | None) -> None:
    """Add every path with and without a slash, for all methods."""
    for path in _PATHS:
        # Add both forms: FastAPI would redirect a path with a trailing slash, and the client would
        # send the body and the API key again.
        for form in (path, f"{path}/"):
            # An empty list means all methods, so that the gateway responds to wrong methods too.
            router.add_api_route(
                form,
                _make_endpoint(app, path, caller),
                methods=[],
                include_in_schema=False,
                generate_unique_id_function=_make_id,
            )


def _make_id(route: APIRoute) -> str:
    return route.path_format


def _make_endpoint(
    app: EmbeddingsApp, template: str, caller: params.Depends | None
) -> Callable[..., Awaitable[Response]]:
    """Make the function of a route. FastAPI reads its parameters, and solves ``caller``."""

    async def embeddings(request: Request) -> Response:
        model_id = str(request.path_params.get("id", ""))
        return _GatewayResponse(app, template.replace("{id:path}", model_id).rstrip("/"))

    async def embeddings_for_caller(request: Request, found: object = caller) -> Response:
        request.scope[_CALLER] = found
        return await embeddings(request)

    return embeddings if caller is None else embeddings_for_caller


def add_error_handlers(app: FastAPI, *, dialect: DialectName = "openai") -> None:
    """Answer an error of ``gateway.embed`` in the host's own routes as the API answers it.

    Without it, FastAPI answers every error of ``gateway.embed`` with a 500. With it, a client's
    mistake is the 4xx that it is, and a failure of the upstreams is a 502, 503 or 504, with
    ``retry-after`` where the API sends it. The body has the format of ``dialect``::

        app = FastAPI()
        add_error_handlers(app)

        @app.post("/notes")
        async def add_note(text: str) -> None:
            vectors = (await gateway.embed(text, model="m")).vectors  # a 400 if the text is empty

    A ``ConfigError`` and an ``InternalError`` are mistakes of the host or of the gateway, so they
    stay a 500 of FastAPI, with a traceback in its log. Of the classes in ``docs/errors.md``, those
    for which the app has a handler of its own use that one.
    """

    async def respond(_request: Request, error: Exception) -> Response:
        if not isinstance(error, EmbedrouteError) or isinstance(error, ConfigError | InternalError):
            raise error
        return respond_to_error(error, dialect)

    app.add_exception_handler(EmbedrouteError, respond)
