"""Litestar with the gateway mounted, and a route that embeds in process.

Serve it with ``uvicorn examples.litestar_app:app``.
"""

from litestar import Litestar, Request, asgi, get
from litestar.datastructures import State
from litestar.types import Receive, Scope, Send

from embedroute import Config, Gateway, Provider, Settings, embeddings_app

gateway = Gateway(Config(gateway=Settings(auth="open"), providers={"wordllama": Provider()}))
embeddings = embeddings_app(gateway)


@asgi("/ai", is_mount=True, copy_scope=True)
async def ai(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve ``/ai/v1/embeddings`` and ``/ai/v1/models``."""
    await embeddings(scope, receive, send)


@get("/compare")
async def compare(request: Request[None, None, State]) -> dict[str, float]:
    """Return the cosine similarity of the texts ``a`` and ``b``."""
    texts = [request.query_params["a"], request.query_params["b"]]
    first, second = (await gateway.embed(texts, model="wordllama")).vectors
    return {"similarity": float(first @ second)}


app = Litestar([ai, compare], lifespan=[gateway.lifespan])
