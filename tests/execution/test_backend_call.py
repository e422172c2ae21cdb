"""Backend calls: all three kinds of backend, and the mistakes that a plugin can make."""

# A scripted reply does not depend on the request.
# ruff: noqa: ARG002

import gc
import threading
import time
import traceback
from typing import ClassVar
from weakref import ref

import anyio
import numpy as np
import pytest
import trio

from embedroute import Config, Gateway
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
    EmbedrouteError,
    InvalidUpstreamResponse,
    RateLimited,
    Rejected,
    UpstreamRejectedInput,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.execution import CallResources, LocalModels, call_backend, validate_vectors
from embedroute.routing import RetryPolicy
from tests.support.elapsed import measured

pytestmark = pytest.mark.anyio

BATCH = Batch(model="m", texts=["a", "b"], width=3)
GOOD = Vectors(np.ones((2, 3), "<f4"))


class FixedTransport:
    """A transport that returns one response, or raises one error."""

    name = "answering"

    def __init__(self, answer):
        self.answer = answer

    async def send(self, request, timeout, limits):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def aclose(self):
        pass


class PlainBackend(HTTPBackend, frozen=True, kw_only=True):
    def build(self, batch):
        return UpstreamRequest.json("http://host", {"texts": batch.texts})

    def parse(self, batch, reply):
        return Vectors.from_lists(reply.json()["rows"])


class BuggyBackend(PlainBackend, frozen=True, kw_only=True):
    def build(self, batch):
        raise KeyError("a bug")


class JudgingBackend(PlainBackend, frozen=True, kw_only=True):
    mistake: type[Exception] = ZeroDivisionError

    def map_error(self, reply):
        raise self.mistake


class SlowToBuild(PlainBackend, frozen=True, kw_only=True):
    def build(self, batch):
        raise TimeoutError


class SlowToParse(PlainBackend, frozen=True, kw_only=True):
    def parse(self, batch, reply):
        raise TimeoutError


class ParsedResult:
    """An object made from a response, which may have megabytes."""


class ParsingBackend(PlainBackend, frozen=True, kw_only=True):
    finds: ClassVar[list[ref]] = []
    mistake: Exception

    def parse(self, batch, reply):
        found = ParsedResult()
        self.finds.append(ref(found))
        raise self.mistake


class RemoteBackend(Backend, frozen=True, kw_only=True):
    step: object = None

    async def embed(self, batch):
        if isinstance(self.step, BaseException):
            raise self.step
        await anyio.sleep(self.step or 0)
        return GOOD


LOADED: list[object] = []


class LocalModelBackend(LocalBackend, frozen=True, kw_only=True):
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
        # On a slow machine, a batch is embedded in slices.
        return GOOD if len(batch) == 2 else Vectors(GOOD.array[: len(batch)])


async def run(backend, answer=None, *, timeout=5.0, keep=None, local=None):
    tools = CallResources(transport=FixedTransport(answer), local=local or LocalModels())
    return await call_backend(backend, BATCH, tools, timeout, keep)


def reply(status, body):
    return UpstreamResponse(status, {}, body)


def gateway_of(backend, transport, repeats=0):
    return Gateway(
        Config(
            gateway={"auth": "open"},
            providers={"up": {"backend": backend}},
            models={"m": {"dimensions": 3, "endpoints": [{"provider": "up"}]}},
        ),
        transport=lambda: transport,
        retries=RetryPolicy(repeats=repeats, attempts=1),
    )


async def failure_of(gateway):
    try:
        await gateway.embed(["a", "b"], model="m")
    except EmbedrouteError as error:
        return error


@pytest.mark.parametrize("size", [100, 2_000_000])
@pytest.mark.parametrize(
    "mistake",
    [KeyError("rows"), InvalidUpstreamResponse("no rows")],
    ids=["as another", "unchanged"],
)
async def test_an_error_does_not_keep_the_response_alive(mistake, size):
    """A host may keep the errors that it gets, for example to report them later."""
    backend = ParsingBackend(mistake=mistake)
    gateway = gateway_of(backend, FixedTransport(reply(200, b"x" * size)))
    gc.disable()
    try:
        failures = [await failure_of(gateway) for _ in range(3)]
        assert [InvalidUpstreamResponse] * 3 == [type(failure) for failure in failures]
        assert [None] * len(backend.finds) == [found() for found in backend.finds]
    finally:
        gc.enable()


async def test_an_error_says_where_a_backend_failed():
    """In place of a traceback, whose frames would hold the response and the backend's variables."""
    failure = await failure_of(
        gateway_of(PlainBackend(), FixedTransport(reply(200, b'{"lines": []}')))
    )

    assert isinstance(failure.__cause__, KeyError)
    shown = "".join(traceback.format_exception(failure))
    assert "KeyError was raised in:" in shown
    assert f'{__file__}", line {PlainBackend.parse.__code__.co_firstlineno + 1}' in shown
    assert "in PlainBackend.parse" in shown


@pytest.mark.parametrize("repeats", [0, 1])
async def test_the_exception_that_a_host_is_handling_keeps_its_traceback(repeats):
    """An exception of a backend has it as its context, also in a check after all repeats."""
    gateway = gateway_of(BuggyBackend(), FixedTransport(None), repeats)
    try:
        {}["of the host"]
    except KeyError as error:
        failure = await failure_of(gateway)
        traceback_of_host = error.__traceback__

    assert isinstance(failure, UpstreamUnavailable)
    assert traceback_of_host is not None


@pytest.mark.parametrize(
    ("backend", "answer", "failure"),
    [
        (PlainBackend(), reply(200, b'{"rows": [[1, 2, 3], [4, 5, 6]]}'), None),
        (PlainBackend(), reply(201, b'{"rows": [[1, 2, 3], [4, 5, 6]]}'), None),
        (PlainBackend(), reply(200, b'{"lines": []}'), InvalidUpstreamResponse),
        (PlainBackend(), reply(200, b"[]"), InvalidUpstreamResponse),
        (PlainBackend(), reply(200, b"7"), InvalidUpstreamResponse),
        (PlainBackend(), reply(200, b"<html>"), InvalidUpstreamResponse),
        (PlainBackend(), reply(307, b""), UpstreamUnavailable),
        (PlainBackend(), reply(400, b"no"), Rejected),
        (PlainBackend(), reply(429, b"no"), RateLimited),
        (PlainBackend(), UpstreamTimeout("slow"), UpstreamTimeout),
        (PlainBackend(), OSError("odd"), UpstreamUnavailable),
        (BuggyBackend(), reply(200, b""), UpstreamUnavailable),
        (JudgingBackend(), reply(400, b""), UpstreamUnavailable),
        (JudgingBackend(mistake=KeyError), reply(400, b""), UpstreamUnavailable),
        (RemoteBackend(), None, None),
        (RemoteBackend(step=RateLimited("slow")), None, RateLimited),
        (RemoteBackend(step=ValueError("a bug")), None, UpstreamUnavailable),
        (RemoteBackend(step=TimeoutError()), None, UpstreamTimeout),
        (RemoteBackend(step=SystemExit(1)), None, UpstreamUnavailable),
        (LocalModelBackend(), None, None),
        (LocalModelBackend(step=UpstreamRejectedInput("odd")), None, UpstreamRejectedInput),
        (LocalModelBackend(step=MemoryError()), None, UpstreamUnavailable),
        (LocalModelBackend(step=SystemExit(1)), None, UpstreamUnavailable),
    ],
)
async def test_a_call_returns_vectors_or_raises_an_upstream_error(backend, answer, failure):
    if failure is None:
        assert len((await run(backend, answer)).array) == 2
    else:
        with pytest.raises(failure) as caught:
            await run(backend, answer)
        assert caught.type is failure


@pytest.mark.parametrize("backend", [RemoteBackend(step=9.0), LocalModelBackend(step=3.0)])
async def test_no_backend_exceeds_its_timeout(backend):
    async with measured() as elapsed:
        with pytest.raises(UpstreamTimeout):
            await run(backend, timeout=0.1)

    assert 0.1 <= elapsed.seconds
    assert elapsed.ticks < 1


class BackendWithTasks(Backend, frozen=True):
    """A backend that starts its own tasks with trio's API."""

    async def embed(self, batch):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
        return GOOD


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_cancellation_of_a_backend_with_its_own_tasks_is_not_a_failure():
    """On trio this raises a group of cancellations; httpx2 does so too while it connects."""
    with anyio.move_on_after(0.05) as scope:
        await run(BackendWithTasks())

    assert scope.cancelled_caught


async def test_a_backend_must_subclass_one_of_the_three_bases():
    with pytest.raises(TypeError, match="must subclass HTTPBackend, LocalBackend or Backend"):
        await run(BackendBase())


async def test_a_local_model_is_loaded_once():
    LOADED.clear()
    backend, local = LocalModelBackend(), LocalModels()
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
async def test_debug_captures_the_exchange_whatever_its_outcome(answer, kept):
    got = []
    try:
        await run(
            PlainBackend(),
            answer,
            keep=lambda message: got.append(getattr(message, "url", None) or message.status),
        )
    except (UpstreamUnavailable, UpstreamTimeout):
        assert kept != [200]
    assert got == ["http://host", *kept]


ROWS = np.array([[3.0, 4.0, 12.0], [6.0, 8.0, 0.0]], "<f4")


@pytest.mark.parametrize(
    ("answer", "width", "rows"),
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
def test_an_answer_is_validated_and_truncated(answer, width, rows):
    if rows is None:
        with pytest.raises(InvalidUpstreamResponse):
            validate_vectors(answer, BATCH, width=width)
    else:
        found = validate_vectors(answer, BATCH, width=width).array
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
def test_an_invalid_token_count_of_a_plugin_is_ignored(said, believed):
    """An invalid count is replaced by an estimate, as if the upstream had not reported one."""
    for width in (None, 2):
        found = validate_vectors(Vectors(ROWS, said), BATCH, width=width).prompt_tokens
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
def test_an_invalid_token_split_of_a_plugin_is_ignored(said, believed):
    assert believed == validate_vectors(Vectors(ROWS, 10, said), BATCH, width=None).modality_tokens


def test_quantised_vectors_need_integers_of_the_right_size():
    batch = Batch(model="m", texts=["a", "b"], width=3, dtype="int8")

    assert validate_vectors(Vectors(ROWS.astype("i1")), batch, width=3).array.dtype == np.int8
    for other in ("<f4", "<f8", "i8", "u1"):
        with pytest.raises(InvalidUpstreamResponse):
            validate_vectors(Vectors(ROWS.astype(other)), batch, width=3)


UNIT = [[0.6, 0.8], [0.8, -0.6]]
NEARLY = [[0.6003, 0.8004], [0.8, -0.6]]
CUT = Batch(model="m", texts=["a", "b"], dimensions=2, width=2)


@pytest.mark.parametrize(
    ("returned", "batch", "matryoshka", "rows"),
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
def test_a_row_truncated_by_the_api_is_scaled_to_length_1(returned, batch, matryoshka, rows):
    """infinity#538.

    An API that only slices would make two vectors of one request, by whether the whole one is
    cached.
    """
    array = np.array(returned, "<f4")

    found = validate_vectors(Vectors(array, 7, {"text": 7}), batch, width=2, matryoshka=matryoshka)

    assert (np.dtype("<f4"), 7, {"text": 7}) == (
        found.array.dtype,
        found.prompt_tokens,
        found.modality_tokens,
    )
    assert np.allclose(returned if rows is None else rows, found.array, rtol=1e-6, atol=0)
    whole = np.linalg.norm(array.astype("f8"), axis=1)
    assert (found.array is array) == (rows is None or bool((abs(whole - 1) < 1e-3).all()))


def test_a_quantised_row_is_not_scaled():
    batch = Batch(model="m", texts=["a"], dimensions=2, width=2, dtype="int8")

    assert [[3, 4]] == validate_vectors(
        Vectors(np.array([[3, 4]], "i1")), batch, width=2, matryoshka=True
    ).array.tolist()


def test_a_binary_answer_packs_eight_dimensions_into_a_byte():
    batch = Batch(model="m", texts=["a"], width=20, dtype="binary")

    assert validate_vectors(Vectors(np.zeros((1, 3), "i1")), batch, width=20).array.shape == (1, 3)
    with pytest.raises(InvalidUpstreamResponse):
        validate_vectors(Vectors(np.zeros((1, 20), "i1")), batch, width=20)
