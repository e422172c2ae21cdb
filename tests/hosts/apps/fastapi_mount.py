"""FastAPI with the gateway mounted, without a lifespan."""

from fastapi import FastAPI

from embedroute import embeddings_app
from tests.hosts.gateways import make

app = FastAPI()
app.mount("/ai", embeddings_app(make()))


@app.get("/hello")
async def hello() -> str:
    return "hello"
