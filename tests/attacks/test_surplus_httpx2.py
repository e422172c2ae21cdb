"""Attack: an upstream sends surplus responses to the httpx2 transport.

HTTP/1.1 answers carry no ids. On a kept connection one surplus answer would be read as the answer to the next request,
and every later answer would be one too old. The surplus answer comes 1 to 200 ms late. EMBEDROUTE_ATTACK_SCALE
multiplies the number of runs, of which there are 24. With ``--junitxml`` and ``-o junit_family=xunit1`` the report holds
the figures of each test.
"""

import os
import random

import anyio
import numpy as np
import pytest

from embedroute.backend import UpstreamRequest
from embedroute.errors import UpstreamError
from embedroute.transport.httpx2 import Httpx2Transport
from tests.fault_upstream import Upstream, vectors_of
from tests.fault_upstream.refusals import refuse
from tests.fault_upstream.truth import say
from tests.support.slow import slow_unless

SCALE = int(os.environ.get("EMBEDROUTE_ATTACK_SCALE", "1"))
LATENCY = 0.02
LATENESS = (0.001, 0.2)
"""Seconds between an answer and the surplus one, at least and at most."""
EXCHANGES = 96


def one_duplicate(ask, count, late):
    """Send the 20th answer twice, and be honest otherwise."""
    return [*say(ask.answer()), *([late, *say(ask.answer())] if count == 20 else [])]


def every_answer_doubled(ask, _count, late):
    return [*say(ask.answer()), late, *say(ask.answer())]


def gateway_timeout_then_the_answer(ask, _count, late):
    """A proxy gives up, and passes on the answer that it no longer waits for."""
    return [*refuse(504, "Timed out"), late, *say(ask.answer())]


class SurplusUpstream(Upstream):
    """Sends ``lie(ask, count, late)``, where ``count`` is the number of the request."""

    def __init__(self, lie, late):
        super().__init__(remember=False, delay=LATENCY)
        self.lie, self.late, self.count = lie, late, 0

    def steps_for(self, ask):
        self.count += 1
        return iter(self.lie(ask, self.count, self.late))


async def wrong_vectors(transport, url, callers):
    """Make EXCHANGES calls with different texts, and count the vectors that belong to another text."""
    texts = iter([f"text {number}" for number in range(EXCHANGES)])
    wrong = []

    async def call():
        for text in texts:
            try:
                request = UpstreamRequest.json(f"{url}/embeddings", {"model": "m", "input": [text]})
                reply = await transport.send(request, 10.0)
            except UpstreamError:
                continue
            if reply.status != 200:
                continue
            vector = np.array(reply.json()["data"][0]["embedding"], "<f4")
            if vector.tolist() != vectors_of([text])[0].tolist():
                wrong.append(text)

    async with anyio.create_task_group() as group:
        for _ in range(callers):
            group.start_soon(call)
    return wrong


@pytest.mark.anyio
@pytest.mark.parametrize("callers", slow_unless((4).__eq__, [1, 4, 16, 64]))
@pytest.mark.parametrize(
    "lie", [one_duplicate, every_answer_doubled, gateway_timeout_then_the_answer]
)
async def test_a_surplus_response_never_answers_another_request(lie, callers, record_property):
    rng = random.Random(f"{lie.__name__} {callers}")
    for _ in range(SCALE):
        with SurplusUpstream(lie, rng.uniform(*LATENESS)) as upstream:
            transport = Httpx2Transport()
            wrong = await wrong_vectors(transport, upstream.url, callers)
            await transport.aclose()

            assert wrong == []
            assert EXCHANGES == upstream.count
    record_property("runs", SCALE)
    record_property("wrong", 0)
