"""FastAPI with the gateway as a router, with a prefix, a dependency and its own lifespan."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException

from embedroute.fastapi import embeddings_router
from tests.hosts.gateways import make


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    app.state.started = True
    yield


async def known_tenant(x_tenant: Annotated[str, Header()] = "") -> None:
    if x_tenant == "absent":
        raise HTTPException(402, "This tenant has no account.")


app = FastAPI(lifespan=lifespan)
app.include_router(embeddings_router(make()), prefix="/ai", dependencies=[Depends(known_tenant)])


@app.get("/hello")
async def hello() -> str:
    return "hello" if app.state.started else "not started"
