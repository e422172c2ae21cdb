"""FastAPI with the gateway as a middleware."""

from fastapi import FastAPI

from embedroute import EmbeddingsMiddleware
from tests.hosts.gateways import make

app = FastAPI()
app.add_middleware(EmbeddingsMiddleware, gateway=make(), prefix="/ai/v1")


@app.get("/hello")
async def hello() -> str:
    return "hello"
