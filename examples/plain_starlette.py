"""Starlette with the gateway mounted, and a route that embeds in process.

Serve it with ``uvicorn examples.plain_starlette:app``.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from embedroute import Config, Gateway, Provider, Settings, embeddings_app

gateway = Gateway(Config(gateway=Settings(auth="open"), providers={"wordllama": Provider()}))


async def compare(request: Request) -> JSONResponse:
    """Return the cosine similarity of the texts ``a`` and ``b``."""
    texts = [request.query_params["a"], request.query_params["b"]]
    first, second = (await gateway.embed(texts, model="wordllama")).vectors
    return JSONResponse({"similarity": float(first @ second)})


app = Starlette(
    routes=[Route("/compare", compare), Mount("/ai", app=embeddings_app(gateway))],
    lifespan=gateway.lifespan,
)
