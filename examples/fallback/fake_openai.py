"""A fake of OpenAI's embeddings API, with a second base URL at which every call fails.

Serve it with ``.venv/bin/uvicorn examples.fallback.fake_openai:app --port 9001``.
"""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

LETTERS = "aeinorst"


async def embed(request: Request) -> JSONResponse:
    """Return the letter counts of each text as its vector."""
    body = await request.json()
    texts: Sequence[str] = [body["input"]] if isinstance(body["input"], str) else body["input"]
    rows = [
        {
            "object": "embedding",
            "index": index,
            "embedding": [text.count(letter) + 1.0 for letter in LETTERS],
        }
        for index, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return JSONResponse({"object": "list", "data": rows, "model": body["model"], "usage": usage})


async def fail(_request: Request) -> JSONResponse:
    """Fail as an API does that is overloaded."""
    error = {"message": "The engine is overloaded.", "type": "server_error", "code": None}
    return JSONResponse({"error": error}, status_code=503)


app = Starlette(
    routes=[
        Route("/v1/embeddings", embed, methods=["POST"]),
        Route("/broken/v1/embeddings", fail, methods=["POST"]),
    ]
)
