"""What these tables share: upstreams that tell what a row says, a gateway over them made for that row, and its door.

A row is named after the issue in which users of another gateway, server or client met the pain.
"""

import base64
import json
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pytest

from embedroute import Config, Gateway, Provider, embeddings_app
from embedroute.backend import BackendBase
from embedroute.routing import RetryPolicy
from embedroute.testing import ScriptedBackend, expected_vector
from tests.fault_upstream import Ask, Upstream, vectors_of
from tests.support.asgi_client import Answer, call

WIDTH = 8
TEXTS = ["one", "zwei", "три"]
JSON = ("content-type", "application/json")
QUICK = RetryPolicy(first_wait=0.001, longest_wait=0.002)
ONCE = RetryPolicy(attempts=1)
LOOPS = {"asyncio": 1, "trio": 12}
"""Event loop → of how many rows one runs on it: each row has a gateway of its own, which costs a TLS context on trio."""


def table(names: str, rows: Mapping[str, tuple]):
    """Parametrise by a table, issue → the values of ``names``: all rows run on asyncio, and some of them on trio too."""
    runs = [
        (f"{issue}-{loop}", (loop, *row))
        for loop, step in LOOPS.items()
        for issue, row in list(rows.items())[::step]
    ]
    return pytest.mark.parametrize(
        ("anyio_backend", *names.split()), [run for _, run in runs], ids=[name for name, _ in runs]
    )


class Teller(Upstream):
    """An upstream that can also be told a function of the request, for answers of other shapes than OpenAI's."""

    tale: Callable[[Ask], Iterable] | None = None

    def tell(self, told):
        """Take up a mode, several in turn, or a function of the request that gives what to send."""
        self.tale = told if callable(told) else None
        self.mode = "honest" if callable(told) else told

    def steps_for(self, ask):
        """Remember a request and choose what to answer."""
        if self.tale is None:
            return super().steps_for(ask)
        self.requests.append(ask)
        return iter(self.tale(ask))

    @property
    def sizes(self) -> list[int]:
        """How many inputs each request held, the largest first."""
        return sorted((len(ask.inputs) for ask in self.requests), reverse=True)


def at(upstream: Upstream, **options) -> dict[str, object]:
    """The table of a provider at ``upstream``; its slug says which shipped facts hold for it."""
    return {"base_url": upstream.url, "api_key": "sk-up", **options}


def gateway_of(
    providers, *, endpoints=None, models=None, cache=1 << 20, retries=QUICK, **settings
) -> Gateway:
    """Serve the model "m" at all of ``providers``, slug → backend or table, unless ``models`` says otherwise.

    ``endpoints`` adds to the endpoints of "m", by slug. A value of ``models`` stands over what "m" is by itself.
    """
    listed = [{"provider": slug, **(endpoints or {}).get(slug, {})} for slug in providers]
    plain = {"dimensions": WIDTH, "matryoshka": True, "endpoints": listed}
    config = Config(
        gateway={"auth": "open", "deadline": 20.0, **settings},
        cache=cache if isinstance(cache, dict) else {"bytes": cache},
        providers={slug: _provider(slug, it) for slug, it in providers.items()},
        models={name: {**plain, **facts} for name, facts in (models or {"m": {}}).items()},
    )
    return Gateway(config, retries=retries, environ={})


def _provider(
    slug: str, given: BackendBase | Mapping[str, object]
) -> Provider | Mapping[str, object]:
    if isinstance(given, BackendBase):
        return Provider(backend=given)
    # A slug of one letter is nobody's: what it speaks is not in the shipped table.
    return {"backend": "openai", **given} if len(slug) == 1 else given


async def ask(gateway: Gateway, *headers, path="/v1/embeddings", dialect=None, **fields) -> Answer:
    """Ask for ``TEXTS`` of the model "m", unless ``fields`` say otherwise."""
    body = json.dumps({"model": "m", "input": TEXTS, **fields}).encode()
    return await call(
        embeddings_app(gateway, dialect=dialect), "POST", path, [JSON, *headers], [body]
    )


def numbers_in(answer: Answer) -> list[list[float]]:
    """The vectors of an answer, each at the index of its input, whether they are told as numbers or as base64."""
    rows = answer.json["data"]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    told = [row["embedding"] for row in rows]
    return [
        (
            np.frombuffer(base64.b64decode(it), "<f4") if isinstance(it, str) else np.float32(it)
        ).tolist()
        for it in told
    ]


def right(items, width=WIDTH) -> list[list[float]]:
    """What a loopback upstream has for ``items``, and a gateway over it must answer."""
    return vectors_of(items, width).tolist()


def scripted(items, width=WIDTH) -> list[list[float]]:
    """What a ``ScriptedBackend`` has for ``items``, and a gateway over it must answer."""
    return [expected_vector(item, width).tolist() for item in items]


def inputs_of(backend: ScriptedBackend) -> list[list]:
    """The inputs of each call."""
    return [list(batch.inputs) for batch in backend.batches]


def facts_of(error: Mapping[str, object]) -> tuple[object, object]:
    """Which field is at fault, and the code for what is wrong with it, of an error in the usual envelope."""
    assert {"message", "type", "param", "code"} == error.keys()
    return error["param"], error["code"]
