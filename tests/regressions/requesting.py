"""Shared by the regression tests: scripted upstreams, and a gateway for each case.

A case is named after the issue in which users of another gateway, server or client reported it.
"""

import base64
import json
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pytest

from embedroute import Config, Gateway, Provider, embeddings_app
from embedroute.backend import BackendBase
from embedroute.routing import BreakerPolicy, RetryPolicy
from embedroute.testing import ScriptedBackend, expected_vector
from tests.fault_upstream import Ask, Upstream, vectors_of
from tests.support.asgi_client import Answer, call

WIDTH = 8
TEXTS = ["one", "zwei", "три"]
JSON = ("content-type", "application/json")
QUICK = RetryPolicy(repeats=0, first_wait=0.001, longest_wait=0.002)
SOON = BreakerPolicy(
    failures=5, minimum_calls=5, slow_start=1, initial_cooldown=5.0, longest_cooldown=5.0
)
ONCE = RetryPolicy(repeats=0, attempts=1)
LOOPS = {"asyncio": 1, "trio": 12}
"""Event loop → run every nth case on it. Each case has its own gateway, which is slow on trio."""


def table(names: str, rows: Mapping[str, tuple]):
    """Parametrise by a table (issue → values of ``names``), on asyncio and partly on trio."""
    runs = [
        (f"{issue}-{loop}", (loop, *row))
        for loop, step in LOOPS.items()
        for issue, row in list(rows.items())[::step]
    ]
    return pytest.mark.parametrize(
        ("anyio_backend", *names.split()), [run for _, run in runs], ids=[name for name, _ in runs]
    )


class ScriptedUpstream(Upstream):
    """An upstream whose responses can also be computed by a function of the request."""

    script: Callable[[Ask], Iterable] | None = None

    def tell(self, mode):
        """Set a mode, several modes in turn, or a function from a request to the response."""
        self.script = mode if callable(mode) else None
        self.mode = "honest" if callable(mode) else mode

    def steps_for(self, ask):
        """Record a request and choose the response."""
        if self.script is None:
            return super().steps_for(ask)
        self.requests.append(ask)
        return iter(self.script(ask))

    @property
    def sizes(self) -> list[int]:
        """The number of inputs of each request, the largest first."""
        return sorted((len(ask.inputs) for ask in self.requests), reverse=True)


def at(upstream: Upstream, **options) -> dict[str, object]:
    """Return the config table of a provider at ``upstream``."""
    return {"base_url": upstream.url, "api_key": "sk-up", **options}


def gateway_of(
    providers, *, endpoints=None, models=None, cache=1 << 20, retries=QUICK, **settings
) -> Gateway:
    """Make a gateway with the model "m" at all of ``providers`` (slug → backend or table).

    ``endpoints`` adds keys to the endpoints of "m", by slug. ``models`` overrides the default "m".
    """
    entries = [{"provider": slug, **(endpoints or {}).get(slug, {})} for slug in providers]
    plain = {"dimensions": WIDTH, "matryoshka": True, "endpoints": entries}
    config = Config(
        gateway={"auth": "open", "deadline": 20.0, **settings},
        cache=cache if isinstance(cache, dict) else {"bytes": cache},
        providers={slug: _provider(slug, provider) for slug, provider in providers.items()},
        models={name: {**plain, **facts} for name, facts in (models or {"m": {}}).items()},
    )
    return Gateway(config, retries=retries, breaker=SOON, environ={})


def _provider(
    slug: str, provider: BackendBase | Mapping[str, object]
) -> Provider | Mapping[str, object]:
    if isinstance(provider, BackendBase):
        return Provider(backend=provider)
    # A slug of one letter is not a known provider, so it needs a backend.
    return {"backend": "openai", **provider} if len(slug) == 1 else provider


async def ask(gateway: Gateway, *headers, path="/v1/embeddings", dialect=None, **fields) -> Answer:
    """Send a request for ``TEXTS`` and the model "m"; ``fields`` override them."""
    body = json.dumps({"model": "m", "input": TEXTS, **fields}).encode()
    return await call(
        embeddings_app(gateway, dialect=dialect), "POST", path, [JSON, *headers], [body]
    )


def numbers_in(answer: Answer) -> list[list[float]]:
    """Return the vectors of a response, decoded from numbers or base64."""
    rows = answer.json["data"]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    actual = [row["embedding"] for row in rows]
    return [
        (
            np.frombuffer(base64.b64decode(value), "<f4")
            if isinstance(value, str)
            else np.float32(value)
        ).tolist()
        for value in actual
    ]


def right(items, width=WIDTH) -> list[list[float]]:
    """Return the vectors that a loopback upstream has for ``items``."""
    return vectors_of(items, width).tolist()


def scripted(items, width=WIDTH) -> list[list[float]]:
    """Return the vectors that a ``ScriptedBackend`` has for ``items``."""
    return [expected_vector(item, width).tolist() for item in items]


def inputs_of(backend: ScriptedBackend) -> list[list]:
    """Return the inputs of each call."""
    return [list(batch.inputs) for batch in backend.batches]


def facts_of(error: Mapping[str, object]) -> tuple[object, object]:
    """Return ``param`` and ``code`` of an error in OpenAI's format."""
    assert {"message", "type", "param", "code"} == error.keys()
    return error["param"], error["code"]
