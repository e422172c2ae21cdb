"""Serves one model of an upstream that limits the rate of calls, with the default settings.

It has no cache: each client sends the same texts.
"""

import os

from embedroute import Config, Gateway, embeddings_app
from tests.clients.served import KEY, MODEL, WIDTH

app = embeddings_app(
    Gateway(
        Config(
            gateway={"auth": "keys"},
            keys={"all": {"key": KEY}},
            cache={"bytes": 0},
            providers={
                "up": {
                    "backend": "openai",
                    "api_key": "sk-up",
                    "base_url": os.environ.get("TEST_UPSTREAM", "http://127.0.0.1:9/v1"),
                }
            },
            models={MODEL: {"dimensions": WIDTH, "endpoints": [{"provider": "up"}]}},
        )
    )
)
