"""A text does not wait for another request's large slow batch.

Equal requests still share one call.
"""

import threading
import time

import anyio
import pytest

from embedroute import Config, Endpoint, Gateway, Model, Provider, Settings
from embedroute.execution import SHORTEST
from embedroute.limits import FIRST_DURATION
from tests.fault_upstream import Upstream, vectors_of
from tests.support.elapsed import measured
from tests.support.wait import until_on_loop

pytestmark = pytest.mark.anyio

BATCH = [f"text {at}" for at in range(2048)]


class SlowUpstream(Upstream):
    """Answers several inputs when its gate opens, or after 60 s; one input after ``single`` s."""

    def __init__(self, single=0.0):
        super().__init__()
        self.single, self.gate = single, threading.Event()

    def steps_for(self, ask):
        steps = super().steps_for(ask)

        def held_back():
            began = time.monotonic()
            if len(ask.inputs) > 1:
                while not self.gate.is_set() and time.monotonic() - began < 60:
                    yield 0.005
            else:
                yield self.single
            yield from steps

        return held_back()

    @property
    def sizes(self):
        return sorted(len(ask.inputs) for ask in self.requests)


def gateway_at(upstream, **endpoint):
    return Gateway(
        Config(
            gateway=Settings(auth="open", deadline=60.0),
            providers={"up": Provider(backend="openai", options={"base_url": upstream.url})},
            models={"m": Model(dimensions=8, endpoints=[Endpoint(provider="up", **endpoint)])},
        ),
        environ={},
    )


@pytest.mark.parametrize(
    ("known", "single", "expected"),
    [
        (0, 0.0, FIRST_DURATION),
        (10, 0.0, SHORTEST),
        pytest.param(1, 1.5, 1.5, marks=pytest.mark.slow),
    ],
    ids=["default", "quick", "slow"],
)
@pytest.mark.parametrize("merges", [None, 1000.0])
async def test_a_text_of_a_large_slow_batch_does_not_wait_for_the_batch(
    known, single, expected, merges
):
    """After the usual latency of one input, by default a second, the waiter makes its own call."""
    with SlowUpstream(single) as upstream:
        gateway = gateway_at(upstream, micro_batch_ms=merges)
        async with gateway.lifespan(), anyio.create_task_group() as group:
            for at in range(known):
                await gateway.embed(f"known {at}", model="m")
            before = len(upstream.requests)
            group.start_soon(lambda: gateway.embed(BATCH, model="m"))
            await until_on_loop(lambda: len(upstream.requests) > before)
            async with measured() as elapsed:
                answer = await gateway.embed(BATCH[1000], model="m")
            assert answer.vectors.tolist() == vectors_of([BATCH[1000]]).tolist()
            assert [1, 2048] == sorted(len(ask.inputs) for ask in upstream.requests[before:])
            upstream.gate.set()
        whole = await gateway.embed(BATCH, model="m")
    assert expected + single <= elapsed.seconds
    assert elapsed.ticks < expected + single + 1  # the batch takes 60
    assert whole.vectors.tolist() == vectors_of(BATCH).tolist()


async def test_a_batch_result_is_used_if_it_arrives_before_the_own_call():
    with SlowUpstream(single=60.0) as upstream:
        gateway = gateway_at(upstream)
        async with gateway.lifespan(), anyio.create_task_group() as group:
            group.start_soon(lambda: gateway.embed(BATCH, model="m"))
            await until_on_loop(lambda: upstream.requests)

            async def let_land():
                await until_on_loop(lambda: len(upstream.requests) > 1)
                upstream.gate.set()

            group.start_soon(let_land)
            async with measured() as elapsed:
                answer = await gateway.embed(BATCH[7], model="m")
            assert elapsed.ticks < FIRST_DURATION + 1  # an own call takes 60
        assert [1, 2048] == upstream.sizes
    assert answer.vectors.tolist() == vectors_of([BATCH[7]]).tolist()


async def test_equal_requests_share_one_call_even_if_it_is_slow():
    """Twice the longest wait for a larger batch."""
    with SlowUpstream(single=2 * FIRST_DURATION) as upstream:
        gateway = gateway_at(upstream)
        answers = []

        async def ask():
            answers.append((await gateway.embed("one text", model="m")).vectors.tolist())

        async with gateway.lifespan(), anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(ask)
        assert [1] == upstream.sizes
    assert [vectors_of(["one text"]).tolist()] * 20 == answers


async def test_many_waiters_for_texts_of_one_batch_make_one_call_per_text():
    with SlowUpstream() as upstream:
        gateway = gateway_at(upstream)
        async with gateway.lifespan(), anyio.create_task_group() as group:
            group.start_soon(lambda: gateway.embed(BATCH, model="m"))
            await until_on_loop(lambda: upstream.requests)
            async with anyio.create_task_group() as asking:
                for at in range(100):
                    asking.start_soon(lambda at=at: gateway.embed(BATCH[at % 5], model="m"))
            upstream.gate.set()
        assert [1] * 5 + [2048] == upstream.sizes
