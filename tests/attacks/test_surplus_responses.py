"""Attack: an upstream sends surplus responses to our own transport and the cache.

HTTP/1.1 responses carry no ids, so a surplus one that comes while another request is under way passes for its response.
The documented bound (docs/transports.md): a surplus response that comes within the rest of a connection is always seen
before the connection is used again. One that comes later can give one request a wrong vector, if the upstream answers
within the rest; it is seen before the connection is used once more, and what came over reused connections leaves the
cache. EMBEDROUTE_ATTACK_SCALE multiplies the number of runs, of which there are 40. With ``--junitxml`` and
``-o junit_family=xunit1`` the report holds the figures of each test.
"""

import asyncio
import os
import random
import threading
import time
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace

import pytest

from embedroute import Config, Endpoint, Gateway, Model, Provider, Settings
from embedroute.errors import EmbedrouteError
from tests.fault_upstream import vectors_of
from tests.fault_upstream.messages import take, whole
from tests.fault_upstream.server import bound, listening
from tests.fault_upstream.truth import ask_of, say
from tests.support.slow import slow_unless
from tests.support.wait import until_on_loop

SCALE = int(os.environ.get("EMBEDROUTE_ATTACK_SCALE", "1"))
LATENCY = 0.02
CALLERS = (1, 4, 16, 64)
KINDS = ("one", "every", "given_up")
LONGEST_LATENESS = 0.2

pytestmark = pytest.mark.anyio


class SurplusUpstream:
    """An upstream in a thread of its own that sends each response after LATENCY, and some again ``late`` seconds later.

    ``kind`` is which: ``one`` response after the 30th request, ``every`` response, or ``given_up``: the 30th is a 504, and
    the real one follows. ``lateness`` holds how late each surplus response was in truth, ``slowest`` the longest time
    between a request and its response.
    """

    def __init__(self, kind, late):
        self.kind, self.late = kind, late
        self.count, self.slowest, self.lateness = 0, 0.0, []
        self.honest = False

    def __enter__(self):
        self.holder = bound(0)
        self.port = self.holder.getsockname()[1]
        self.listener = listening(self.port)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.holder.close()

    def run(self):
        self.server = self.loop.run_until_complete(
            self.loop.create_server(lambda: UpstreamConnection(self), sock=self.listener)
        )
        self.loop.run_forever()
        self.server.close()
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.close()


class UpstreamConnection(asyncio.Protocol):
    """One connection."""

    def __init__(self, upstream):
        self.upstream, self.buffer = upstream, bytearray()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.buffer += data
        while (message := take(self.buffer)) is not None:
            upstream, now = self.upstream, time.monotonic()
            upstream.count += 1
            ask = ask_of(message, at=now, nth=0, upstream=SimpleNamespace(width=8, space=""))
            chosen = not upstream.honest and (upstream.kind == "every" or upstream.count == 30)
            upstream.loop.call_later(LATENCY, self.respond, ask, chosen)

    def respond(self, ask, chosen):
        now = time.monotonic()
        self.upstream.slowest = max(self.upstream.slowest, now - ask.at)
        given_up = chosen and self.upstream.kind == "given_up"
        self.transport.write(whole(b"{}", 504) if given_up else b"".join(say(ask.answer())))
        if chosen:
            self.upstream.loop.call_later(self.upstream.late, self.repeat, ask, now)

    def repeat(self, ask, since):
        if not self.transport.is_closing():
            self.transport.write(b"".join(say(ask.answer())))
            self.upstream.lateness.append(time.monotonic() - since)


def gateway_to(upstream, rest_ms):
    return Gateway(
        Config(
            gateway=Settings(auth="open", transport="http1"),
            providers={
                "liar": Provider(
                    backend="openai",
                    options={"base_url": f"http://127.0.0.1:{upstream.port}"},
                    connection_rest_ms=rest_ms,
                )
            },
            models={"m": Model(dimensions=8, endpoints=[Endpoint(provider="liar")])},
        ),
        environ={},
    )


async def wrong_ones(gateway, texts, callers):
    """Embed each text once, and count the vectors that belong to another text."""
    wrong, left = [], iter(texts)

    async def call():
        for text in left:
            with suppress(EmbedrouteError):
                answer = await gateway.embed(text, model="m")
                if answer.vectors.tolist() != vectors_of([text]).tolist():
                    wrong.append(text)

    await asyncio.gather(*(call() for _ in range(callers)))
    return len(wrong)


async def attack(kind, late, rest_ms, callers):
    """Run one attack.

    How many vectors were wrong when they came, how many in the cache at the end, and the upstream.
    """
    with SurplusUpstream(kind, late) as upstream:
        gateway = gateway_to(upstream, rest_ms)
        async with gateway.lifespan():
            # Long enough for surplus responses to come while others are under way.
            texts = [f"text {at}" for at in range(max(100, callers * 16))]
            wrong = await wrong_ones(gateway, texts, callers)
            upstream.honest = True
            await asyncio.sleep(max(2 * upstream.slowest, LONGEST_LATENESS))
            return wrong, await wrong_ones(gateway, texts, 16), upstream


both_loops = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": uvloop}) for uvloop in (False, True)]
)


@both_loops
@pytest.mark.parametrize("callers", slow_unless((4).__eq__, CALLERS))
async def test_a_surplus_response_within_the_idle_time_never_answers_another_request(
    callers, record_property
):
    """Up to 45 ms late with the usual rest, and up to 200 ms with one of 250 ms."""
    rng = random.Random(f"within {callers}")
    figures = Counter()
    for run in range(3 * SCALE):
        kind = KINDS[run % 3]
        rest_ms, latest = rng.choice([(50.0, 0.045), (250.0, LONGEST_LATENESS)])
        wrong, kept, upstream = await attack(kind, rng.uniform(0.001, latest), rest_ms, callers)
        beyond = [
            late for late in upstream.lateness if late >= rest_ms / 1000
        ]  # where the machine was busy
        figures += Counter(
            runs=1, surplus=len(upstream.lateness), beyond=len(beyond), wrong=wrong, cached=kept
        )
        assert wrong <= len(beyond)
        assert kept == 0
    for name in ("runs", "surplus", "beyond", "wrong", "cached"):
        record_property(name, figures[name])


@both_loops
@pytest.mark.parametrize("callers", slow_unless((4).__eq__, CALLERS))
async def test_a_late_surplus_response_affects_one_vector_and_is_not_cached(
    callers, record_property
):
    rng = random.Random(f"after {callers}")
    figures = Counter()
    for run in range(2 * SCALE):
        wrong, kept, upstream = await attack(
            KINDS[run % 2], rng.uniform(0.055, LONGEST_LATENESS), 50.0, callers
        )
        figures += Counter(runs=1, surplus=len(upstream.lateness), wrong=wrong, cached=kept)
        assert kept == 0
        if upstream.slowest < 0.05:
            assert wrong <= len(upstream.lateness)
    for name in ("runs", "surplus", "wrong", "cached"):
        record_property(name, figures[name])


async def test_detecting_an_unreliable_upstream_fails_no_request():
    with SurplusUpstream("every", 0.001) as upstream:
        gateway = gateway_to(upstream, 50.0)
        async with gateway.lifespan():
            texts = [f"text {at}" for at in range(200)]
            answers = await asyncio.gather(*(gateway.embed(text, model="m") for text in texts))
            await until_on_loop(lambda: upstream.count >= 200)
    assert [answer.vectors.tolist() for answer in answers] == [
        vectors_of([text]).tolist() for text in texts
    ]


@pytest.fixture
def anyio_backend():
    return "asyncio"
