"""Quart with the gateway as a middleware, and a route that embeds in process.

Serve it with ``hypercorn examples.quart_app:app`` or ``uvicorn examples.quart_app:app``.
"""

from quart import Quart, jsonify, request
from quart.wrappers import Response

from embedroute import Config, EmbeddingsMiddleware, Gateway, Provider, Settings

gateway = Gateway(Config(gateway=Settings(auth="open"), providers={"wordllama": Provider()}))

app = Quart(__name__)
app.asgi_app = EmbeddingsMiddleware(app.asgi_app, gateway, prefix="/ai/v1")


@app.get("/compare")
async def compare() -> Response:
    """Return the cosine similarity of the texts ``a`` and ``b``."""
    texts = [request.args["a"], request.args["b"]]
    first, second = (await gateway.embed(texts, model="wordllama")).vectors
    return jsonify(similarity=float(first @ second))
