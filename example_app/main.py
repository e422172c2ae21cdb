"""A small service that searches notes by meaning, with a page for it.

It uses one gateway in two ways: it includes the gateway's router, so that clients can call
``/ai/v1/embeddings``, and it calls ``gateway.embed`` itself. Run it with ``scripts/serve``, and
open http://127.0.0.1:8000 and http://127.0.0.1:8000/docs.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from heapq import nlargest
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from embedroute import EmbedrouteError, Gateway
from embedroute.fastapi import embeddings_router

MODEL = "wordllama"


class NewNote(BaseModel):
    """The body of ``POST /notes``."""

    text: Annotated[str, Field(min_length=1, max_length=8192)]


class Note(BaseModel):
    """A stored note."""

    id: int
    text: str


class Hit(BaseModel):
    """A search result; ``score`` is the cosine similarity of the note and the query."""

    note: Note
    score: float


class Notebook:
    """Notes in memory; the vector at an index belongs to the note at that index."""

    def __init__(self, gateway: Gateway) -> None:
        """Start without notes."""
        self._gateway = gateway
        self._notes: list[Note] = []
        self._vectors: list[NDArray[np.float32]] = []

    async def add(self, text: str) -> Note:
        """Store a note."""
        vector = await self._embed(text)
        # No await below: concurrent requests must not separate a note from its vector.
        note = Note(id=len(self._notes), text=text)
        self._notes.append(note)
        self._vectors.append(vector)
        return note

    async def search(self, query: str, limit: int) -> list[Hit]:
        """Return the notes that are most similar to ``query``, most similar first."""
        query_vector = await self._embed(query)
        if not self._notes:
            return []
        # The vectors have norm 1, so their dot product is the cosine.
        scores: list[float] = (np.stack(self._vectors) @ query_vector).tolist()
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
    """Load the model at startup, and close the gateway at shutdown."""
    async with gateway.lifespan(app):
        await gateway.embed("ready", model=MODEL)
        yield


app = FastAPI(title="Notes", lifespan=lifespan)
app.include_router(embeddings_router(gateway), prefix="/ai")


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Serve the page."""
    return FileResponse(Path(__file__).with_name("index.html"))


@app.post("/notes", status_code=201)
async def add_note(note: NewNote) -> Note:
    """Store a note."""
    return await notebook.add(note.text)


@app.get("/search")
async def search(
    q: Annotated[str, Query(min_length=1, max_length=8192)],
    limit: Annotated[int, Query(ge=1, le=100)] = 5,
) -> list[Hit]:
    """Search the notes by meaning."""
    return await notebook.search(q, limit)


@app.exception_handler(EmbedrouteError)
async def handle_error(request: Request, error: EmbedrouteError) -> JSONResponse:
    """Return the message and the status of an error of the gateway."""
    del request
    return JSONResponse({"detail": error.message}, status_code=error.status)
