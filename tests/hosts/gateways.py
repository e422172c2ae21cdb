"""The gateway that every host app here mounts: one model hashed in process, one at a loopback upstream, one key."""

import os

from embedroute import Config, Gateway

KEY = "sk-hosts"
WIDTH = 8

# Where nothing is given, the upstream cannot be reached: the hashed model works all the same.
UPSTREAM = os.environ.get("TEST_UPSTREAM", "http://127.0.0.1:9/v1")


def make(upstream: str = UPSTREAM, **settings: object) -> Gateway:
    """Make a gateway with the models ``hash`` and ``far``; ``settings`` are those of ``[gateway]``."""
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
                "far": {"dimensions": WIDTH, "endpoints": [{"provider": "up"}]},
            },
        )
    )
