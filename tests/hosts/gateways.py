"""Makes the gateway of all host apps: one in-process model, one upstream model and one API key."""

import os

from embedroute import Config, Gateway

KEY = "sk-hosts"
WIDTH = 8

# The default upstream is unreachable; the hashed model works without it.
UPSTREAM = os.environ.get("TEST_UPSTREAM", "http://127.0.0.1:9/v1")


def make(upstream: str = UPSTREAM, **settings: object) -> Gateway:
    """Make a gateway with the models ``hash``, ``wide`` and ``far``.

    ``settings`` are those of ``[gateway]``.
    """
    return Gateway(
        Config(
            gateway={"auth": "keys", **settings},
            keys={"team": {"key": KEY}},
            providers={
                "hashed": {},
                "up": {"backend": "openai", "api_key": "sk-up", "base_url": upstream},
            },
            models={
                "hash": {
                    "dimensions": WIDTH,
                    "matryoshka": True,
                    "endpoints": [{"provider": "hashed"}],
                },
                "wide": {"dimensions": 1536, "endpoints": [{"provider": "hashed"}]},
                "far": {"dimensions": WIDTH, "endpoints": [{"provider": "up"}]},
            },
        )
    )
