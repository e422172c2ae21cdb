"""Serves the client tests: one key for all models, one for one model, short deadlines."""

import logging
import os

from embedroute import Config, Gateway, embeddings_app
from embedroute.backend import Accepts
from embedroute.routing import RetryPolicy
from embedroute.testing import ScriptedBackend

KEY = "sk-clients"
NARROW_KEY = "sk-narrow"
MODEL = "text-embedding-3-small"
"""The upstream model; ``hash`` is in process, and ``words`` does not accept token ids."""
WIDTH = 8
FAILING = [
    "limited",
    "limited-huge",
    "limited-silent",
    "failing",
    "refused",
    "refused-again",
    "refused-captured",
    "slow",
    "broken",
]
"""Upstream models, one per test that makes it fail: a failed endpoint has a cool-down."""

UPSTREAM = os.environ.get("TEST_UPSTREAM", "http://127.0.0.1:9/v1")


class Words(ScriptedBackend, frozen=True, kw_only=True):
    """A model with its own tokenizer."""

    accepts = Accepts(max_inputs=2048)


def make() -> Gateway:
    """Make the gateway."""
    far = {"dimensions": WIDTH, "matryoshka": True, "input_types": []}
    providers = {
        name: {"backend": "openai", "api_key": "sk-up", "base_url": UPSTREAM}
        for name in ["up", *FAILING]
    }
    failing = {name: {**far, "endpoints": [{"provider": name}]} for name in FAILING}
    return Gateway(
        Config(
            gateway={"auth": "keys", "deadline": 0.8, "max_body_bytes": 1_000_000},
            keys={"all": {"key": KEY}, "narrow": {"key": NARROW_KEY, "models": ["hash"]}},
            providers={"hashed": {}, "local": {"backend": Words(width=WIDTH)}, **providers},
            models={
                "hash": {
                    "dimensions": WIDTH,
                    "matryoshka": True,
                    "endpoints": [{"provider": "hashed"}],
                },
                "words": {"dimensions": WIDTH, "endpoints": [{"provider": "local"}]},
                MODEL: {**far, "endpoints": [{"provider": "up"}]},
                **failing,
            },
        ),
        retries=RetryPolicy(repeats=0, attempts=1),
    )


# The host configures no logging. Without this, Python would print warnings to stderr.
logging.getLogger("embedroute").addHandler(logging.NullHandler())
app = embeddings_app(make())
