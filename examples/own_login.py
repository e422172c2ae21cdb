"""FastAPI with API keys in a table of its own. Each row says which models its key may use."""

import hashlib
import sqlite3
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from embedroute import Caller, Config, Gateway, Provider, Settings
from embedroute.fastapi import embeddings_router

# Use your own database, and a file. Only digests are stored, so that a copy reveals no key.
database = sqlite3.connect(":memory:", check_same_thread=False)
database.execute("CREATE TABLE api_keys (digest TEXT PRIMARY KEY, team TEXT, models TEXT)")


def add_key(key: str, team: str, models: str) -> None:
    """Store the key of a team; ``models`` are separated by spaces."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    database.execute("INSERT INTO api_keys VALUES (?, ?, ?)", (digest, team, models))


def current_caller(
    sent: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
) -> Caller | None:
    """Return whose key a request has, or None."""
    digest = hashlib.sha256(sent.credentials.encode() if sent else b"").hexdigest()
    query = "SELECT team, models FROM api_keys WHERE digest = ?"
    row = database.execute(query, (digest,)).fetchone()
    if row is None:
        return None
    team, models = row
    return Caller(name=team, models=frozenset(models.split()), namespace=team)


add_key("search-key", team="search", models="wordllama")
add_key("ads-key", team="ads", models="hashed")

# Both models work without an account. Vectors of "hashed" have no meaning.
providers = {"wordllama": Provider(), "hashed": Provider()}
gateway = Gateway(Config(gateway=Settings(auth="host"), providers=providers))

app = FastAPI()
app.include_router(embeddings_router(gateway, caller=Depends(current_caller)), prefix="/ai")
