"""A gateway that a test of the metrics serves: its calls wait, fail, or come from its stores.

Run by uvicorn as a module. ``EMBEDROUTE_TEST_STORE`` names the file of its store.
"""

import os
from pathlib import Path

from embedroute import Config, Gateway, embeddings_app
from embedroute.errors import RateLimited, UpstreamUnavailable
from embedroute.routing import BreakerPolicy, RetryPolicy
from embedroute.testing import ScriptedBackend
from tests.support.wait import until_on_loop

WIDTH = 8
STORE = Path(os.environ["EMBEDROUTE_TEST_STORE"])
RELEASED = STORE.with_suffix(".released")
"""Calls of the endpoint ``waiting`` wait until this file exists."""


async def wait_for_file(batch):
    await until_on_loop(RELEASED.exists)
    return await ScriptedBackend(width=WIDTH).embed(batch)


def backend(step=None):
    scripted = (
        ScriptedBackend(width=WIDTH) if step is None else ScriptedBackend(width=WIDTH, then=step)
    )
    return {"backend": scripted}


def endpoints(*providers):
    return [{"provider": name, "price": at + 1} for at, name in enumerate(providers)]


app = embeddings_app(
    Gateway(
        Config(
            gateway={"auth": "open", "metrics": "open"},
            store={"url": f"sqlite:///{STORE}"},
            providers={
                "good": backend(),
                "limited": backend(RateLimited("slow down", upstream_status=429)),
                "broken": backend(UpstreamUnavailable("broken", upstream_status=503)),
                "waiting": {**backend(wait_for_file), "max_concurrent": 1},
            },
            models={
                "m": {"dimensions": WIDTH, "endpoints": endpoints("limited", "good")},
                "b": {"dimensions": WIDTH, "endpoints": endpoints("broken")},
                "w": {"dimensions": WIDTH, "endpoints": endpoints("waiting")},
            },
        ),
        breaker=BreakerPolicy(minimum_calls=1, initial_cooldown=60.0, longest_cooldown=60.0),
        retries=RetryPolicy(repeats=0),
    )
)
