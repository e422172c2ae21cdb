"""A small service that searches notes by meaning, and offers its embedding model to others at ``/ai/v1/embeddings``.

``scripts/serve`` runs it; the gateway is used from both sides: mounted for clients, and called in process here.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from heapq import nlargest
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from embedroute import EmbedrouteError, Gateway, embeddings_app

MODEL = "wordllama"


class NewNote(BaseModel):
    """What a client writes."""

    text: Annotated[str, Field(min_length=1, max_length=8192)]


class Note(BaseModel):
    """A note that is kept."""

    id: int
    text: str


class Hit(BaseModel):
    """A note that was found; ``score`` is the cosine between it and the query."""

    note: Note
    score: float


class Notebook:
    """Notes in memory; row i of the vectors belongs to note i."""

    def __init__(self, gateway: Gateway) -> None:
        """Begin empty."""
        self._gateway = gateway
        self._notes: list[Note] = []
        self._rows: list[NDArray[np.float32]] = []

    async def add(self, text: str) -> Note:
        """Keep a note."""
        vector = await self._embed(text)
        # No await from here on, so that a note and its row stay together.
        note = Note(id=len(self._notes), text=text)
        self._notes.append(note)
        self._rows.append(vector)
        return note

    async def search(self, query: str, limit: int) -> list[Hit]:
        """Find the notes nearest to ``query``, nearest first."""
        wanted = await self._embed(query)
        if not self._notes:
            return []
        # Vectors have length 1, so their dot product is the cosine.
        scores: list[float] = (np.stack(self._rows) @ wanted).tolist()
        hits = [
            Hit(note=note, score=score) for note, score in zip(self._notes, scores, strict=True)
        ]
        return nlargest(limit, hits, key=lambda hit: hit.score)

    async def _embed(self, text: str) -> NDArray[np.float32]:
        return (await self._gateway.embed(text, model=MODEL)).vectors[0]


gateway = Gateway.from_file(Path(__file__).with_name("embedroute.toml"))
notebook = Notebook(gateway)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """Load the model before the first request, and close the gateway after the last."""
    async with gateway.lifespan(app):
        await gateway.embed("ready", model=MODEL)
        yield


app = FastAPI(title="Notes", lifespan=lifespan)
app.mount("/ai", embeddings_app(gateway))


@app.post("/notes", status_code=201)
async def add_note(note: NewNote) -> Note:
    """Keep a note."""
    return await notebook.add(note.text)


@app.get("/search")
async def search(
    q: Annotated[str, Query(min_length=1, max_length=8192)],
    limit: Annotated[int, Query(ge=1, le=100)] = 5,
) -> list[Hit]:
    """Find the notes that mean the most similar."""
    return await notebook.search(q, limit)


@app.exception_handler(EmbedrouteError)
async def refuse(request: Request, error: EmbedrouteError) -> JSONResponse:
    """Pass on what the gateway says of a text that it cannot embed."""
    del request
    return JSONResponse({"detail": error.message}, status_code=error.status)
