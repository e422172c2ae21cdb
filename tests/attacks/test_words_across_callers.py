"""No caller is shown what an upstream said about another caller's inputs.

The upstream quotes the whole call in every error: its inputs and its ``user``. Each caller's text
and ``user`` hold a canary of its own. Everything that reaches a caller (body, headers, debug, explain,
logs, the exception in process with its chain and the locals of its frames) may hold no canary but
the caller's own.
"""

import json
import logging
import os
import random
import re
import threading
import traceback
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest

from embedroute import Caller, Config, Endpoint, Gateway, Model, Provider, Settings, embeddings_app
from embedroute.config import CacheSettings
from embedroute.errors import EmbedrouteError
from embedroute.routing import BreakerPolicy, RetryPolicy
from embedroute.trace import RequestTrace
from tests.fault_upstream import Upstream
from tests.fault_upstream.refusals import refuse
from tests.support.asgi_client import call
from tests.support.wait import until_on_loop

pytestmark = pytest.mark.anyio

SCALE = int(os.environ.get("EMBEDROUTE_ATTACK_SCALE", "1"))
SHARED = "a text that everybody sends"
CALLERS = {
    "A": Caller(name="A", namespace="first", debug=True),
    "B": Caller(name="B", namespace="first", debug=True),
    "C": Caller(name="C", namespace="second", debug=True),
}
DIALECTS = ("openai", "openrouter", "gomodel", "phaseo", "spice")
DEBUG = {"trace": True, "return_upstream_request": True, "return_upstream_response": True}
REFUSALS = [400, 401, 402, 403, 404, 422, 429, 500, 503]
NOTHING = b"not json"
"""A response with status 200 and an invalid body."""


def canary(name) -> str:
    return f"CANARY-{name}-owned"


def quoted_in(*received) -> set[str]:
    """Return the callers whose canaries are in ``told``."""
    return set(re.findall(r"CANARY-(\w+)-owned", "\n".join(map(str, received))))


class QuotingUpstream(Upstream):
    """Rejects every call with ``status`` and quotes its inputs, once ``gate`` is open."""

    def __init__(self, status=400, **headers):
        super().__init__()
        self.status, self.headers = status, headers
        self.gate = threading.Event()
        self.gate.set()

    def steps_for(self, ask):
        self.requests.append(ask)
        assert self.gate.wait(60)
        status = self.status(ask) if callable(self.status) else self.status
        said = f"Cannot embed {' '.join(sorted(ask.inputs))} for {ask.json.get('user')}"
        return iter(refuse(status, said, **self.headers) if status != 200 else self.honest(ask))

    def honest(self, ask):
        self.requests.pop()
        return super().steps_for(ask)


async def caller_of(scope):
    return CALLERS.get(dict(scope["headers"]).get(b"x-caller", b"").decode())


def gateway_at(upstream, *, merges=False, deadline=20.0, breaker=None):
    config = Config(
        gateway=Settings(auth="host", deadline=deadline),
        cache=CacheSettings(bytes=0),
        providers={"up": Provider(backend="openai", options={"base_url": upstream.url})},
        models={
            "m": Model(
                dimensions=8,
                endpoints=[Endpoint(provider="up", micro_batch_ms=1000.0 if merges else None)],
            )
        },
    )
    return Gateway(config, retries=RetryPolicy(repeats=0, attempts=1), breaker=breaker, environ={})


class ReceivedMessages:
    """All messages that each caller received."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.all: dict[str, list[object]] = {name: [] for name in CALLERS}
        self.statuses: dict[str, list[int]] = {name: [] for name in CALLERS}

    async def post(self, name, texts, *, dialect="openai", path="/v1/embeddings", **fields):
        headers = {
            "content-type": "application/json",
            "x-caller": name,
            "x-request-id": f"of-{name}",
        }
        body = json.dumps({"model": "m", "input": texts, **fields}).encode()
        app = embeddings_app(self.gateway, dialect=dialect, authenticate=caller_of)
        answer = await call(app, "POST", path, headers.items(), [body])
        self.all[name] += [answer.body.decode(), answer.headers]
        self.statuses[name].append(answer.status)
        return answer

    async def embed(self, name, texts, **fields):
        trace = RequestTrace(f"of-{name}")
        try:
            await self.gateway.embed(texts, model="m", caller=CALLERS[name], trace=trace, **fields)
        except EmbedrouteError as error:
            self.all[name] += [*everything_of(error), *map(str, (trace.failures, trace.events))]
            self.statuses[name].append(error.status)
            return error

    def others_in(self, name):
        """Return the canaries of others that a caller received."""
        return quoted_in(*self.all[name]) - {name}


def everything_of(error):
    """Everything that an error tracker could print: chain, attributes, frames and locals."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    chained = [error, error.__cause__, error.__context__]
    return [
        *shown.format(chain=True),
        *(repr((item, vars(item))) for item in chained if item is not None),
    ]


def logged(caplog, name):
    records = [
        record for record in caplog.records if getattr(record, "request_id", None) == f"of-{name}"
    ]
    return [f"{record.getMessage()} {vars(record)} {record.exc_text}" for record in records]


@asynccontextmanager
async def crowd():
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            yield group


async def begun(group, upstream, work):
    """Start ``work`` and wait until the upstream has its call."""
    before = len(upstream.requests)
    group.start_soon(work)
    await until_on_loop(lambda: len(upstream.requests) > before)


async def waits(group, work):
    """Start ``work`` and run it until it waits."""
    group.start_soon(work)
    for _ in range(50):
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("status", REFUSALS)
async def test_a_waiter_does_not_see_the_message_of_its_leaders_error(status, dialect, caplog):
    """B sends what A sends, or a part of it; A's other inputs and its ``user`` are A's own."""
    caplog.set_level(logging.DEBUG)
    with QuotingUpstream(status, retry_after="0") as upstream:
        gateway = gateway_at(upstream)
        received = ReceivedMessages(gateway)
        async with gateway.lifespan(), crowd() as group:
            upstream.gate.clear()
            own = [SHARED, canary("A")]
            await begun(
                group, upstream, partial(received.post, "A", own, user=canary("A"), dialect=dialect)
            )
            await waits(
                group,
                partial(
                    received.post, "B", [SHARED], user=canary("B"), dialect=dialect, debug=DEBUG
                ),
            )
            upstream.gate.set()
        assert {"A"} == quoted_in(*received.all["A"]) or status in {401, 402}
        assert set() == received.others_in("B")
        assert set() == quoted_in(*logged(caplog, "B"))
        if status in {401, 402, 404, 500, 503}:
            # After a 500, A's call is bisected, and a harmless text sent with and without `user`.
            # B's own text may not be at fault, so B asks itself, but the breaker is open.
            assert len(upstream.requests) == (5 if status == 500 else 1)
            assert received.statuses["B"] == ([503] if status == 500 else received.statuses["A"])


@pytest.mark.parametrize("status", REFUSALS)
async def test_an_identical_request_gets_the_same_status_with_a_neutral_message(status):
    with QuotingUpstream(status, retry_after="0") as upstream:
        gateway = gateway_at(upstream)
        received, errors = ReceivedMessages(gateway), {}

        async def embed(name):
            errors[name] = await received.embed(name, [SHARED], user=canary(name))

        async with gateway.lifespan(), crowd() as group:
            upstream.gate.clear()
            await begun(group, upstream, partial(embed, "A"))
            await waits(group, partial(embed, "B"))
            upstream.gate.set()

    def kept(error):
        return (
            type(error),
            error.status,
            error.type,
            error.code,
            error.retryable,
            error.upstream_status,
            error.provider,
        )

    assert set() == received.others_in("B")
    assert kept(errors["A"]) == kept(errors["B"])
    if status != 429:  # the rest may fit into the waiter's deadline, so it tries itself
        assert "The provider up" in errors["B"].message
        assert (None, None) == (errors["B"].__cause__, errors["B"].__context__)


@pytest.mark.parametrize("status", REFUSALS)
async def test_merged_requests_do_not_see_each_others_inputs(status, caplog):
    """Nor does the request that makes the call, because the upstream quotes all inputs."""
    caplog.set_level(logging.DEBUG)
    seen = []
    with QuotingUpstream(
        lambda ask: status if "busy" not in ask.inputs else 200, retry_after="0"
    ) as upstream:
        gateway = gateway_at(upstream, merges=True, deadline=2.0)
        received = ReceivedMessages(gateway)
        async with gateway.lifespan(), crowd() as group:
            upstream.gate.clear()
            await begun(
                group, upstream, partial(gateway.embed, ["busy"], model="m", caller=CALLERS["A"])
            )
            for name in ("A", "B"):
                await waits(group, partial(received.embed, name, [canary(name)]))
            upstream.gate.set()
        seen += [sorted(ask.inputs) for ask in upstream.requests]
    assert [canary("A"), canary("B")] in seen
    for name in ("A", "B"):
        assert received.statuses[name]
        assert set() == received.others_in(name)
        assert set() == quoted_in(*logged(caplog, name))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("status", [401, 402, 403, 404, 429, 503])
async def test_the_stored_error_of_an_endpoint_quotes_no_caller(status, dialect, caplog):
    """A's call opens the breaker or is rate limited; later requests get that error."""
    caplog.set_level(logging.DEBUG)
    with QuotingUpstream(status, retry_after="30") as upstream:
        gateway = gateway_at(
            upstream,
            breaker=BreakerPolicy(
                failures=1,
                minimum_calls=1,
                slow_start=1,
                initial_cooldown=60.0,
            ),
        )
        received = ReceivedMessages(gateway)
        async with gateway.lifespan():
            await received.post("A", [canary("A")], user=canary("A"), dialect=dialect)
            calls = len(upstream.requests)
            for name in ("B", "C"):
                await received.post(name, ["another text"], dialect=dialect, debug=DEBUG)
                await received.post(
                    name, ["another text"], dialect=dialect, path="/v1/embeddings?explain=1"
                )
                await received.embed(name, ["another text"])
        if status != 403:  # it counts for the key only if its words are about keys
            assert calls == len(upstream.requests)
            assert received.statuses["A"][0] in {received.statuses["B"][0], 502}
    for name in ("B", "C"):
        assert set() == received.others_in(name)
        assert set() == quoted_in(*logged(caplog, name))


def test_an_error_stored_on_one_event_loop_quotes_no_caller_on_another():
    """The breakers of a gateway are shared by its event loops, each in a thread of its own."""
    with QuotingUpstream(404) as upstream:
        gateway = gateway_at(upstream)
        received = ReceivedMessages(gateway)
        runs = [
            (received.embed, "A", [canary("A")]),
            (received.embed, "C", ["another text"]),
            (received.post, "B", ["another text"]),
        ]
        for run, backend in zip(runs, ("asyncio", "trio", "asyncio"), strict=True):
            thread = threading.Thread(target=partial(anyio.run, *run, backend=backend))
            thread.start()
            thread.join(60)
        assert len(upstream.requests) == 1
    assert {"A"} == quoted_in(*received.all["A"])
    assert [502] == received.statuses["C"] == received.statuses["B"]
    assert set() == received.others_in("B") | received.others_in("C")


async def test_debug_never_shows_a_call_with_inputs_of_others():
    """A request that asks for upstream bodies makes its call alone."""
    with QuotingUpstream(200) as upstream:
        gateway = gateway_at(upstream, merges=True)
        received = ReceivedMessages(gateway)
        async with gateway.lifespan(), crowd() as group:
            upstream.gate.clear()
            await begun(group, upstream, partial(received.post, "A", ["busy"]))
            await waits(group, partial(received.post, "A", [canary("A"), SHARED]))
            await waits(group, partial(received.post, "B", [canary("B")], debug=DEBUG))
            await waits(group, partial(received.post, "B", [canary("B"), SHARED], debug=DEBUG))
            upstream.gate.set()
        seen = [quoted_in(*ask.inputs) for ask in upstream.requests]
    assert {200} == {status for name in ("A", "B") for status in received.statuses[name]}
    assert "upstream_request" in "".join(map(str, received.all["B"]))
    assert set() == received.others_in("B")
    assert {"A", "B"} not in seen


@pytest.mark.parametrize("seed", range(4 * SCALE))
async def test_no_caller_sees_anothers_text_under_shared_work_and_failures(seed, caplog):
    """Forty requests of three callers: merged, waiting for each other, cancelled, refused."""
    caplog.set_level(logging.DEBUG)
    rng = random.Random(seed)
    statuses = [rng.choice([200, 200, *REFUSALS]) for _ in range(400)]
    with QuotingUpstream(
        lambda _ask: statuses.pop() if statuses else 200, retry_after="0"
    ) as upstream:
        gateway = gateway_at(
            upstream,
            merges=True,
            breaker=BreakerPolicy(initial_cooldown=0.01, rejection_cooldown=0.01),
        )
        received = ReceivedMessages(gateway)

        async def one():
            await anyio.sleep(rng.random() * 0.3)
            name = rng.choice(sorted(CALLERS))
            texts = (
                [SHARED, canary(name)]
                if rng.random() < 0.3
                else rng.choice([[SHARED], [f"{canary(name)} {rng.random()}"]])
            )
            ask = partial(
                rng.choice([received.post, received.embed]),
                name,
                texts,
                user=canary("X") if rng.random() < 0.1 else None,
            )
            with anyio.move_on_after(rng.choice([0.02, 5.0, 5.0])):
                await ask()

        async with gateway.lifespan(), crowd() as group:
            for _ in range(40):
                group.start_soon(one)
    for name in CALLERS:
        assert received.others_in(name) <= {"X"}
        assert quoted_in(*logged(caplog, name)) <= {name}
