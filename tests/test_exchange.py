"""One batch to one backend and back: all three kinds of backend, and whatever a plugin may do wrong."""

# A script plays the same whatever it is asked.
# ruff: noqa: ARG002

import threading
import time
from typing import ClassVar

import anyio
import numpy as np
import pytest

from embedroute.backend import (
    Accepts,
    Backend,
    BackendBase,
    Batch,
    HTTPBackend,
    LocalBackend,
    UpstreamReply,
    UpstreamRequest,
    Vectors,
)
from embedroute.errors import BadAnswer, InputRefused, RateLimited, TimedOut, Unavailable
from embedroute.exchange import LocalModels, Tools, checked, exchange

pytestmark = pytest.mark.anyio

BATCH = Batch(model="m", texts=["a", "b"], width=3)
GOOD = Vectors(np.ones((2, 3), "<f4"))


class Answering:
    """An engine that gives one answer, or raises it."""

    name = "answering"

    def __init__(self, answer):
        self.answer = answer

    async def send(self, request, timeout):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def aclose(self):
        pass


class Plain(HTTPBackend, frozen=True, kw_only=True):
    def build(self, batch):
        return UpstreamRequest.json("http://host", {"texts": batch.texts})

    def parse(self, batch, reply):
        return Vectors.from_lists(reply.json()["rows"])


class Buggy(Plain, frozen=True, kw_only=True):
    def build(self, batch):
        raise KeyError("a bug")


class Judging(Plain, frozen=True, kw_only=True):
    def fault(self, reply):
        raise ZeroDivisionError


class Far(Backend, frozen=True, kw_only=True):
    step: object = None

    async def embed(self, batch):
        if isinstance(self.step, BaseException):
            raise self.step
        await anyio.sleep(self.step or 0)
        return GOOD


LOADED: list[object] = []


class Near(LocalBackend, frozen=True, kw_only=True):
    accepts: ClassVar[Accepts] = Accepts()
    step: object = None

    def load(self):
        time.sleep(0.02)
        LOADED.append(threading.current_thread())
        return "the model"

    def run(self, model, batch):
        assert model == "the model"
        if isinstance(self.step, BaseException):
            raise self.step
        time.sleep(self.step or 0)
        return GOOD


async def run(backend, answer=None, *, timeout=5.0, keep=None, local=None):
    tools = Tools(
        engine=Answering(answer),
        local=local or LocalModels(),
        workers=anyio.CapacityLimiter(4),
        timeout=timeout,
        keep=keep,
    )
    return await exchange(backend, BATCH, tools)


def reply(status, body):
    return UpstreamReply(status, {}, body)


@pytest.mark.parametrize(
    ("backend", "answer", "failure"),
    [
        (Plain(), reply(200, b'{"rows": [[1, 2, 3], [4, 5, 6]]}'), None),
        (Plain(), reply(201, b'{"rows": [[1, 2, 3], [4, 5, 6]]}'), None),
        (Plain(), reply(200, b'{"lines": []}'), BadAnswer),
        (Plain(), reply(200, b"[]"), BadAnswer),
        (Plain(), reply(200, b"7"), BadAnswer),
        (Plain(), reply(200, b"<html>"), BadAnswer),
        (Plain(), reply(307, b""), Unavailable),
        (Plain(), reply(400, b"no"), InputRefused),
        (Plain(), reply(429, b"no"), RateLimited),
        (Plain(), TimedOut("slow"), TimedOut),
        (Plain(), OSError("odd"), Unavailable),
        (Buggy(), reply(200, b""), Unavailable),
        (Judging(), reply(400, b""), Unavailable),
        (Far(), None, None),
        (Far(step=RateLimited("slow")), None, RateLimited),
        (Far(step=ValueError("a bug")), None, Unavailable),
        (Far(step=TimeoutError()), None, TimedOut),
        (Near(), None, None),
        (Near(step=InputRefused("odd")), None, InputRefused),
        (Near(step=MemoryError()), None, Unavailable),
        (Near(step=SystemExit(1)), None, Unavailable),
    ],
)
async def test_whatever_happens_is_vectors_or_an_upstreams_failure(backend, answer, failure):
    if failure is None:
        assert len((await run(backend, answer)).array) == 2
    else:
        with pytest.raises(failure) as caught:
            await run(backend, answer)
        assert caught.type is failure


@pytest.mark.parametrize("backend", [Far(step=9.0), Near(step=0.5)])
async def test_nobody_takes_longer_than_the_time_there_is(backend):
    began = time.monotonic()
    with pytest.raises(TimedOut):
        await run(backend, timeout=0.1)
    assert time.monotonic() - began < 0.45


async def test_a_base_that_is_none_of_the_three_is_a_mistake_of_its_author():
    with pytest.raises(TypeError, match="must subclass HTTPBackend, LocalBackend or Backend"):
        await run(BackendBase())


async def test_a_local_model_is_loaded_once_whoever_comes_first():
    LOADED.clear()
    backend, local = Near(), LocalModels()
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(lambda: run(backend, local=local))

    assert len(LOADED) == 1
    assert LOADED[0] is not threading.main_thread()


@pytest.mark.parametrize(
    ("answer", "kept"), [(reply(200, b'{"rows": [[1],[2]]}'), 200), (reply(500, b""), 500), (TimedOut("t"), None)]
)
async def test_debug_gets_the_exchange_whatever_became_of_it(answer, kept):
    got = []
    try:
        await run(Plain(), answer, keep=lambda request, reply: got.append((request.url, reply and reply.status)))
    except (Unavailable, TimedOut):
        assert kept != 200
    assert got == [("http://host", kept)]


ROWS = np.array([[3.0, 4.0, 12.0], [6.0, 8.0, 0.0]], "<f4")


@pytest.mark.parametrize(
    ("answer", "due", "rows"),
    [
        (Vectors(ROWS), None, ROWS),
        (Vectors(ROWS), 3, ROWS),
        (Vectors(ROWS), 2, [[0.6, 0.8], [0.6, 0.8]]),
        (Vectors(ROWS[:1]), 3, None),
        (Vectors(ROWS[:, :2]), 3, None),
        (Vectors(ROWS.astype("<f8")), 3, None),
        (Vectors(ROWS * np.float32(np.nan)), 3, None),
        (Vectors(ROWS * np.float32(0)), 3, None),
        (Vectors([[1, 2, 3]] * 2), 3, None),
        (Vectors(None), 3, None),
        (None, 3, None),
        ("vectors", 3, None),
    ],
)
def test_an_answer_is_checked_and_cut_before_anybody_sees_it(answer, due, rows):
    if rows is None:
        with pytest.raises(BadAnswer):
            checked(answer, BATCH, due=due)
    else:
        assert np.allclose(checked(answer, BATCH, due=due).array, rows)


def test_a_binary_answer_packs_eight_dimensions_into_a_byte():
    batch = Batch(model="m", texts=["a"], width=20, dtype="binary")

    assert checked(Vectors(np.zeros((1, 3), "i1")), batch, due=20).array.shape == (1, 3)
    with pytest.raises(BadAnswer):
        checked(Vectors(np.zeros((1, 20), "i1")), batch, due=20)
