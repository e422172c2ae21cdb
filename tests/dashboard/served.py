"""A gateway with three endpoints of one model, for the browser tests: slow, limited and lying.

Run by uvicorn as a module; mounted at a path of its own.
"""

import random

import anyio
from starlette.applications import Starlette
from starlette.routing import Mount

from embedroute import Config, Gateway, embeddings_app
from embedroute.backend import Vectors
from embedroute.errors import RateLimited
from embedroute.routing import BreakerPolicy
from embedroute.testing import ScriptedBackend, expected_vector
from embedroute.vectors import stack

KEY, PLAIN_KEY = "a-key-of-sixteen-characters", "another-key-of-16-characters"
XSS = "<img src=x onerror=alert(1)>"
WIDTH = 32
randomness = random.Random(7)


async def answer_slowly(batch):
    await anyio.sleep(0.3 + randomness.random() * 0.1)
    return embed(batch)


async def answer_fast(batch):
    await anyio.sleep(0.01 + randomness.random() * 0.01)
    return embed(batch)


def embed(batch):
    """Texts with the same first word are near each other."""
    rows = [
        expected_vector(text.split()[0], WIDTH) + 0.3 * expected_vector(text, WIDTH)
        for text in batch.texts
    ]
    return Vectors(stack([(row / (row @ row) ** 0.5).astype("f4") for row in rows]))


def lie(batch):
    """Return a vector too few."""
    return Vectors(embed(batch).array[:-1])


def limit(_batch):
    raise RateLimited(f"slow down {XSS}", upstream_status=429, retry_after=5.0)


def backend(step):
    return {"backend": ScriptedBackend(width=WIDTH, then=step)}


gateway = Gateway(
    Config(
        gateway={"auth": "keys", "dashboard": "key", "deadline": 5.0},
        keys={
            "operator": {"key": KEY, "debug": True},
            "team <b>": {"key": PLAIN_KEY},
        },
        cache={"bytes": 1 << 20},
        providers={
            "slow": backend(answer_slowly),
            "limited": backend(limit),
            "lying": backend(lie),
            "local": backend(answer_fast),
        },
        models={
            "notes": {
                "dimensions": WIDTH,
                "endpoints": [
                    {"provider": "limited", "price": 0.01},
                    {"provider": "lying", "price": 0.01},
                    {"provider": "slow", "price": 0.02},
                    {"provider": "local", "price": 0.05},
                ],
            },
            XSS: {"dimensions": WIDTH, "endpoints": [{"provider": "local", "model": "small"}]},
        },
    ),
    breaker=BreakerPolicy(failures=1000),
)
app = Starlette(routes=[Mount("/deep/ai", embeddings_app(gateway))])
