"""Quart with the gateway as a middleware."""

from quart import Quart, jsonify
from quart.wrappers import Response

from embedroute import EmbeddingsMiddleware
from tests.hosts.gateways import make

app = Quart(__name__)
app.asgi_app = EmbeddingsMiddleware(app.asgi_app, make(), prefix="/ai/v1")


@app.get("/hello")
async def hello() -> Response:
    return jsonify("hello")
