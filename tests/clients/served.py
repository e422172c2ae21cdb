"""What the clients talk to: one key for all models, one for a single model; short deadlines, so that failures come soon."""

import logging
import os

from embedroute import Config, Gateway, embeddings_app
from embedroute.backend import Accepts
from embedroute.routing import RetryPolicy
from embedroute.testing import ScriptedBackend

KEY = "sk-clients"
NARROW_KEY = "sk-narrow"
MODEL = "text-embedding-3-small"
"""The model at the upstream; ``hash`` is the one in process, ``words`` one that takes no token ids."""
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
"""Models at the upstream, one for each test that makes it fail: an endpoint that failed rests for a while."""

UPSTREAM = os.environ.get("TEST_UPSTREAM", "http://127.0.0.1:9/v1")


class Words(ScriptedBackend, frozen=True, kw_only=True):
    """A model with a tokenizer of its own."""

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
        retries=RetryPolicy(attempts=1),
    )


# A host that wants no logs: without this Python itself prints warnings that nobody takes.
logging.getLogger("embedroute").addHandler(logging.NullHandler())
app = embeddings_app(make())
