"""One batch to one backend and back: all three kinds of backend, and whatever a plugin may do wrong."""

# A script plays the same whatever it is asked.
# ruff: noqa: ARG002

import gc
import threading
import time
from typing import ClassVar
from weakref import ref

import anyio
import numpy as np
import pytest
import trio

from embedroute.backend import (
    Accepts,
    Backend,
    BackendBase,
    Batch,
    HTTPBackend,
    LocalBackend,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
)
from embedroute.errors import (
    InvalidUpstreamResponse,
    RateLimited,
    UpstreamRejectedInput,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.execution import CallResources, LocalModels, call_backend, validate_vectors

pytestmark = pytest.mark.anyio

BATCH = Batch(model="m", texts=["a", "b"], width=3)
GOOD = Vectors(np.ones((2, 3), "<f4"))


class Answering:
    """An engine that gives one answer, or raises it."""

    name = "answering"

    def __init__(self, answer):
        self.answer = answer

    async def send(self, request, timeout, limits):
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
    def map_error(self, reply):
        raise ZeroDivisionError


class SlowToBuild(Plain, frozen=True, kw_only=True):
    def build(self, batch):
        raise TimeoutError


class SlowToParse(Plain, frozen=True, kw_only=True):
    def parse(self, batch, reply):
        raise TimeoutError


class Found:
    """What is made of an answer, which may be megabytes."""


class Finding(Plain, frozen=True, kw_only=True):
    finds: ClassVar[list[ref]] = []
    mistake: Exception

    def parse(self, batch, reply):
        found = Found()
        self.finds.append(ref(found))
        raise self.mistake


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
    tools = CallResources(transport=Answering(answer), local=local or LocalModels())
    return await call_backend(backend, BATCH, tools, timeout, keep)


def reply(status, body):
    return UpstreamResponse(status, {}, body)


@pytest.mark.parametrize("size", [100, 2_000_000])
@pytest.mark.parametrize(
    "mistake",
    [KeyError("rows"), InvalidUpstreamResponse("no rows")],
    ids=["as another", "as it is"],
)
async def test_a_failure_keeps_nothing_of_the_answer_that_it_comes_from(mistake, size):
    """Whoever keeps it, and the collector comes late, keeps the frames that it came through, but not what they held."""
    backend, answer = Finding(mistake=mistake), reply(200, b"x" * size)
    gc.disable()
    try:
        with pytest.raises(InvalidUpstreamResponse):
            await run(backend, answer)
        assert None is backend.finds[-1]()
        assert b"" == answer.content
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("backend", "answer", "failure"),
    [
        (Plain(), reply(200, b'{"rows": [[1, 2, 3], [4, 5, 6]]}'), None),
        (Plain(), reply(201, b'{"rows": [[1, 2, 3], [4, 5, 6]]}'), None),
        (Plain(), reply(200, b'{"lines": []}'), InvalidUpstreamResponse),
        (Plain(), reply(200, b"[]"), InvalidUpstreamResponse),
        (Plain(), reply(200, b"7"), InvalidUpstreamResponse),
        (Plain(), reply(200, b"<html>"), InvalidUpstreamResponse),
        (Plain(), reply(307, b""), UpstreamUnavailable),
        (Plain(), reply(400, b"no"), UpstreamRejectedInput),
        (Plain(), reply(429, b"no"), RateLimited),
        (Plain(), UpstreamTimeout("slow"), UpstreamTimeout),
        (Plain(), OSError("odd"), UpstreamUnavailable),
        (Buggy(), reply(200, b""), UpstreamUnavailable),
        (Judging(), reply(400, b""), UpstreamUnavailable),
        (Far(), None, None),
        (Far(step=RateLimited("slow")), None, RateLimited),
        (Far(step=ValueError("a bug")), None, UpstreamUnavailable),
        (Far(step=TimeoutError()), None, UpstreamTimeout),
        (Near(), None, None),
        (Near(step=UpstreamRejectedInput("odd")), None, UpstreamRejectedInput),
        (Near(step=MemoryError()), None, UpstreamUnavailable),
        (Near(step=SystemExit(1)), None, UpstreamUnavailable),
    ],
)
async def test_whatever_happens_is_vectors_or_an_upstreams_failure(backend, answer, failure):
    if failure is None:
        assert len((await run(backend, answer)).array) == 2
    else:
        with pytest.raises(failure) as caught:
            await run(backend, answer)
        assert caught.type is failure


@pytest.mark.parametrize("backend", [Far(step=9.0), Near(step=3.0)])
async def test_nobody_takes_longer_than_the_time_there_is(backend):
    began = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        await run(backend, timeout=0.1)
    assert time.monotonic() - began < 2.5


class Crowd(Backend, frozen=True):
    """Has tasks of its own, in trio's own words."""

    async def embed(self, batch):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
        return GOOD


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_being_cancelled_is_no_failure_of_a_backend_with_tasks_of_its_own():
    """A group of cancellations comes out under trio then, and out of httpx2 too while it connects."""
    with anyio.move_on_after(0.05) as scope:
        await run(Crowd())

    assert scope.cancelled_caught


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
    ("answer", "kept"),
    [
        (reply(200, b'{"rows": [[1, 2, 3], [4, 5, 6]]}'), [200]),
        (reply(500, b""), [500]),
        (UpstreamTimeout("t"), []),
    ],
)
async def test_debug_gets_the_exchange_whatever_became_of_it(answer, kept):
    got = []
    try:
        await run(
            Plain(),
            answer,
            keep=lambda message: got.append(getattr(message, "url", None) or message.status),
        )
    except (UpstreamUnavailable, UpstreamTimeout):
        assert kept != [200]
    assert got == ["http://host", *kept]


ROWS = np.array([[3.0, 4.0, 12.0], [6.0, 8.0, 0.0]], "<f4")


@pytest.mark.parametrize(
    ("answer", "due", "rows"),
    [
        (Vectors(ROWS), None, ROWS),
        (Vectors(ROWS), 3, ROWS),
        (Vectors(ROWS), 2, [[0.6, 0.8], [0.6, 0.8]]),
        (Vectors(ROWS[:1]), 3, None),
        (Vectors(ROWS[:, :2]), 3, None),
        (Vectors(ROWS.astype("<f8")), 3, ROWS),
        (Vectors(ROWS.astype("<f8")), 2, [[0.6, 0.8], [0.6, 0.8]]),
        (Vectors(ROWS.astype("<f2")), None, ROWS),
        (Vectors(ROWS.astype(">f4")), None, ROWS),
        (Vectors(ROWS.astype("<f8").tolist()), None, ROWS),
        (Vectors(np.ma.masked_array(ROWS, mask=True)), None, None),
        (Vectors(np.ma.masked_array(ROWS)), None, None),
        (Vectors(np.array(ROWS.tolist(), object)), None, None),
        (Vectors(ROWS.astype("i8")), None, None),
        (Vectors(ROWS.astype("i1")), None, None),
        (Vectors(ROWS > 0), None, None),
        (Vectors(ROWS.astype("c8")), None, None),
        (Vectors(ROWS.astype("<f8") * 1e300), None, None),
        (Vectors(ROWS.astype("<f8") * 1e-300), None, None),
        (Vectors(np.float32(1)), None, None),
        (Vectors([[1.0], [1.0, 2.0]]), None, None),
        (Vectors(ROWS * np.float32(np.nan)), 3, None),
        (Vectors(ROWS * np.float32(0)), 3, None),
        (Vectors([[1, 2, 3]] * 2), 3, None),
        (Vectors([["1", "2", "3"]] * 2), 3, None),
        (Vectors(None), 3, None),
        (None, 3, None),
        ("vectors", 3, None),
    ],
)
def test_an_answer_is_checked_and_cut_before_anybody_sees_it(answer, due, rows):
    if rows is None:
        with pytest.raises(InvalidUpstreamResponse):
            validate_vectors(answer, BATCH, due=due)
    else:
        found = validate_vectors(answer, BATCH, due=due).array
        assert (np.ndarray, np.dtype("<f4")) == (type(found), found.dtype)
        assert np.allclose(found, rows)


@pytest.mark.parametrize(
    ("said", "believed"),
    [
        (7, 7),
        (np.int64(7), 7),
        (2**31 - 1, 2**31 - 1),
        (None, None),
        (0, None),
        (-5, None),
        ("7", None),
        (5.5, None),
        (7.0, None),
        (True, None),
        (10**30, None),
        ([7], None),
        (float("nan"), None),
        (np.ones(2, int), None),
    ],
)
def test_a_plugins_count_is_believed_only_where_it_is_one(said, believed):
    """Where it is none the tokens are estimated, as where the upstream does not say."""
    for due in (None, 2):
        found = validate_vectors(Vectors(ROWS, said), BATCH, due=due).prompt_tokens
        assert (believed, type(believed)) == (found, type(found))


@pytest.mark.parametrize(
    ("said", "believed"),
    [
        ({"text": 4, "image": np.int32(6)}, {"text": 4, "image": 6}),
        ({"text": 4, "image": 0, "audio": -1, "video": "x", "document": 1.5}, {"text": 4}),
        ({7: 7, None: 7, "\ud800": 7, "text tokens": 7, "text": 7}, {"text": 7}),
        ({}, {}),
        (None, {}),
        ("text", {}),
        ([("text", 4)], {}),
        (7, {}),
    ],
)
def test_a_plugins_split_of_tokens_is_believed_only_where_it_is_one(said, believed):
    assert believed == validate_vectors(Vectors(ROWS, 10, said), BATCH, due=None).modality_tokens


def test_plain_integers_make_quantised_vectors_only_of_their_own_size():
    batch = Batch(model="m", texts=["a", "b"], width=3, dtype="int8")

    assert validate_vectors(Vectors(ROWS.astype("i1")), batch, due=3).array.dtype == np.int8
    for other in ("<f4", "<f8", "i8", "u1"):
        with pytest.raises(InvalidUpstreamResponse):
            validate_vectors(Vectors(ROWS.astype(other)), batch, due=3)


UNIT = [[0.6, 0.8], [0.8, -0.6]]
NEARLY = [[0.6003, 0.8004], [0.8, -0.6]]
CUT = Batch(model="m", texts=["a", "b"], dimensions=2, width=2)


@pytest.mark.parametrize(
    ("given", "batch", "matryoshka", "rows"),
    [
        ([[3.0, 4.0], [0.4, -0.3]], CUT, True, UNIT),
        ([[3.0, 4.0], [0.8, -0.6]], CUT, True, UNIT),
        ([[3e38, 3e38], [-1e-38, 0.0]], CUT, True, [[0.5**0.5, 0.5**0.5], [-1.0, 0.0]]),
        (UNIT, CUT, True, UNIT),
        (NEARLY, CUT, True, NEARLY),
        ([[0.603, 0.804], [0.8, -0.6]], CUT, True, UNIT),
        ([[3.0, 4.0], [0.4, -0.3]], CUT, False, None),
        ([[3.0, 4.0], [0.4, -0.3]], Batch(model="m", texts=["a", "b"], width=2), True, None),
    ],
)
def test_a_row_that_an_api_shortened_is_of_length_1_like_one_cut_here(
    given, batch, matryoshka, rows
):
    """infinity#538: an API that only slices would make two vectors of one request, by whether the whole one is cached."""
    array = np.array(given, "<f4")

    found = validate_vectors(Vectors(array, 7, {"text": 7}), batch, due=2, matryoshka=matryoshka)

    assert (np.dtype("<f4"), 7, {"text": 7}) == (
        found.array.dtype,
        found.prompt_tokens,
        found.modality_tokens,
    )
    assert np.allclose(given if rows is None else rows, found.array, rtol=1e-6, atol=0)
    whole = np.linalg.norm(array.astype("f8"), axis=1)
    assert (found.array is array) == (rows is None or bool((abs(whole - 1) < 1e-3).all()))


def test_a_quantised_row_has_no_length():
    batch = Batch(model="m", texts=["a"], dimensions=2, width=2, dtype="int8")

    assert [[3, 4]] == validate_vectors(
        Vectors(np.array([[3, 4]], "i1")), batch, due=2, matryoshka=True
    ).array.tolist()


def test_a_binary_answer_packs_eight_dimensions_into_a_byte():
    batch = Batch(model="m", texts=["a"], width=20, dtype="binary")

    assert validate_vectors(Vectors(np.zeros((1, 3), "i1")), batch, due=20).array.shape == (1, 3)
    with pytest.raises(InvalidUpstreamResponse):
        validate_vectors(Vectors(np.zeros((1, 20), "i1")), batch, due=20)
