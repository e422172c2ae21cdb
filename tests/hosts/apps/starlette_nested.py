"""Starlette with the gateway in a nested mount."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from embedroute import embeddings_app
from tests.hosts.gateways import make


async def hello(_request: Request) -> JSONResponse:
    return JSONResponse("hello")


inner = Starlette(routes=[Mount("/ai", app=embeddings_app(make()))])
app = Starlette(routes=[Route("/hello", hello), Mount("/deep", app=inner)])
