"""FastAPI with the gateway mounted; the host's lifespan closes the gateway."""

from fastapi import FastAPI

from embedroute import embeddings_app
from tests.hosts.gateways import make

gateway = make()
app = FastAPI(lifespan=gateway.lifespan)
app.mount("/ai", embeddings_app(gateway))


@app.get("/hello")
async def hello() -> str:
    return "hello"
