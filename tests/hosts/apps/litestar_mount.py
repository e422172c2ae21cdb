"""Litestar with the gateway mounted as an ASGI handler."""

from litestar import Litestar, asgi, get
from litestar.types import Receive, Scope, Send

from embedroute import embeddings_app
from tests.hosts.gateways import make

embeddings = embeddings_app(make())


@asgi("/ai", is_mount=True, copy_scope=True)
async def ai(scope: Scope, receive: Receive, send: Send) -> None:
    await embeddings(scope, receive, send)


@get("/hello")
async def hello() -> str:
    return "hello"


app = Litestar([ai, hello], openapi_config=None, logging_config=None)
