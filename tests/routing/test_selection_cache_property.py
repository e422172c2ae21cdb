"""A prepared selection changes nothing but the cost of a request.

Random conversations are held twice: with prepared selections, and with all of them dropped before
each request. Clients, logs, upstreams and health must see the same.
"""

import json
import logging
import random
from contextlib import contextmanager

import anyio
import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from embedroute import ApiKey, Config, Gateway, Model, Provider, embeddings_app
from embedroute.backend import Secret, Vectors
from embedroute.errors import (
    BatchTooLarge,
    Measure,
    RateLimited,
    UpstreamAuthError,
    UpstreamRejectedInput,
    UpstreamUnavailable,
)
from embedroute.routing import RetryPolicy
from embedroute.testing import ScriptedBackend, expected_vector

KEYS = {name: f"key-of-{name}-with-sixteen-characters" for name in ("red", "blue")}
TEXTS = ["a", "b", "c", "d: e"]
VARYING = {b"server-timing", b"openai-processing-ms", b"retry-after-ms", b"x-request-id"}


def fail(error, *arguments, **options):
    def call(_batch):
        raise error(*arguments, **options)

    return call


def answer_with(change):
    def call(batch):
        rows = np.stack([expected_vector(item, batch.width or 8) for item in batch.inputs])
        return Vectors(change(rows), 3 * len(rows))

    return call


CALLS = {
    "answers": answer_with(lambda rows: rows),
    "counts no tokens": lambda batch: Vectors(
        np.stack([expected_vector(item, batch.width or 8) for item in batch.inputs])
    ),
    "500": fail(UpstreamUnavailable, "broken", upstream_status=500),
    "429": fail(RateLimited, "slow down", retry_after=60),
    "401": fail(UpstreamAuthError, "bad key"),
    "400": fail(UpstreamRejectedInput, "bad input"),
    "413": fail(BatchTooLarge, "too many", measure=Measure.INPUTS),
    "a zero row": answer_with(lambda rows: rows * 0),
    "a row is missing": answer_with(lambda rows: rows[1:]),
    "a bug": fail(KeyError, "vectors"),
}

REQUESTS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["one", "pair", "absent"]),
        "texts": st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4),
        "dimensions": st.sampled_from([None, None, 4]),
        "cache": st.sampled_from([None, None, "no-cache", "no-store"]),
        "key": st.sampled_from(sorted(KEYS)),
        "twin": st.booleans(),
        "calls": st.lists(st.sampled_from([*sorted(CALLS), "hangs"]), max_size=3),
    }
)


class Records(logging.Handler):
    """The log records without times."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.seen = []

    def emit(self, record):
        fields = {
            name: value
            for name, value in vars(record).items()
            if name in {"status", "attempts", "hits", "misses", "shared_hits", "providers", "code"}
            or name in {"endpoint", "attempt", "error", "model", "caller", "tokens"}
        }
        self.seen.append((record.name, record.event, str(fields)))


@contextmanager
def recorded():
    records = Records()
    log = logging.getLogger("embedroute")
    level = log.level
    log.addHandler(records)
    log.setLevel(logging.INFO)
    try:
        yield records.seen
    finally:
        log.removeHandler(records)
        log.setLevel(level)


class Upstream:
    """Serves each call by the next step; a call without a step is answered."""

    def __init__(self):
        self.calls = []
        self.backend = ScriptedBackend(then=self.call)
        self.follow([])

    def follow(self, steps):
        self.steps = list(steps)
        self.hangs = anyio.Event()

    def call(self, batch):
        self.calls.append(batch)
        name = self.steps.pop(0) if self.steps else "answers"
        return self.hang() if name == "hangs" else CALLS[name](batch)

    async def hang(self):
        self.hangs.set()
        await anyio.sleep(60)


def make_gateway(upstream):
    providers = {name: Provider(backend=upstream.backend) for name in ("first", "second")}
    endpoints = {"one": ["first"], "pair": ["first", "second"]}
    models = {
        model: Model(
            dimensions=8,
            matryoshka=True,
            endpoints=[{"provider": name, "price": 0.02} for name in names],
        )
        for model, names in endpoints.items()
    }
    keys = {name: ApiKey(key=Secret(key)) for name, key in KEYS.items()}
    config = Config(gateway={"auth": "keys"}, keys=keys, providers=providers, models=models)
    return Gateway(
        config,
        retries=RetryPolicy(repeats=0, first_wait=0.0, longest_wait=0.0),
        environ={},
    )


async def send(app, request, upstream):
    """Send one request. A client whose upstream hangs leaves."""
    body = {"model": request["model"], "input": request["texts"]}
    if request["dimensions"]:
        body["dimensions"] = request["dimensions"]
    headers = [
        (b"content-type", b"application/json"),
        (b"authorization", f"Bearer {KEYS[request['key']]}".encode()),
        (b"x-request-id", b"same"),
    ]
    if request["cache"]:
        headers.append((b"cache-control", request["cache"].encode()))
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/embeddings",
        "headers": headers,
    }
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}]
    sent = []

    async def receive():
        if messages:
            return messages.pop()
        await upstream.hangs.wait()
        return {"type": "http.disconnect"}

    async def record(message):
        kept = [pair for pair in message.get("headers", ()) if pair[0] not in VARYING]
        sent.append({**message, "headers": kept})

    await app(scope, receive, record)
    return sent


async def hold(conversation, *, drop):
    """Return all that clients, logs and upstreams saw, and the health at the end."""
    upstream = Upstream()
    gateway = make_gateway(upstream)
    app = embeddings_app(gateway)
    responses = []
    random.seed(0)
    with recorded() as records:
        for request in conversation:
            if drop:
                gateway.active.selections.clear()
            upstream.follow(request["calls"])
            answers = {}

            async def ask(name, request=request, answers=answers):
                answers[name] = await send(app, request, upstream)

            async with anyio.create_task_group() as group:
                group.start_soon(ask, "one")
                # Which of two clients leaves first depends on the machine.
                if request["twin"] and "hangs" not in request["calls"]:
                    group.start_soon(ask, "other")
            responses.append(sorted(answers.items()))
    now = anyio.current_time()
    healths = [
        (candidate.name, gateway.healths.get(candidate).state(now))
        for route in gateway.models.routes.values()
        for candidate in route.candidates
    ]
    await gateway.runtime.close(await gateway.runtime.get())
    # How long a step took depends on the machine.
    records = [record for record in records if record[1] != "backend blocks the event loop"]
    return responses, records, upstream.calls, healths, len(gateway.cache)


@given(st.lists(REQUESTS, min_size=1, max_size=6))
@settings(max_examples=60, phases=[Phase.generate])
def test_a_prepared_selection_changes_nothing(conversation):
    async def both():
        return [await hold(conversation, drop=drop) for drop in (False, True)]

    prepared, dropped = anyio.run(both)

    for one, other in zip(prepared, dropped, strict=True):
        assert one == other
