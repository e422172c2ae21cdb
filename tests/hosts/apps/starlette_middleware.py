"""Starlette with the gateway as a middleware inside a BaseHTTPMiddleware (child tasks)."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from embedroute import EmbeddingsMiddleware
from tests.hosts.gateways import make


async def mark(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.headers["x-host"] = "was here"
    return response


async def hello(_request: Request) -> JSONResponse:
    return JSONResponse("hello")


app = Starlette(
    routes=[Route("/hello", hello)],
    middleware=[
        Middleware(BaseHTTPMiddleware, dispatch=mark),
        Middleware(EmbeddingsMiddleware, gateway=make(), prefix="/ai/v1"),
    ],
)
