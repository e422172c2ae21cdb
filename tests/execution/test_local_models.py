"""Local models: how they are loaded, and how their work is cut, queued, cancelled and joined."""

import gc
import sys
import threading
import time
from contextvars import ContextVar
from functools import partial
from itertools import accumulate
from typing import ClassVar
from weakref import ref

import anyio
import anyio.lowlevel
import msgspec
import numpy as np
import pytest

from embedroute import CacheSettings, Config, Endpoint, Gateway, Model, Provider, Settings
from embedroute.backend import Accepts, Batch, LocalBackend, Vectors
from embedroute.errors import EmbedrouteError, InvalidUpstreamResponse, UpstreamRejectedInput
from embedroute.execution import LocalModels, Pace, cut_part, joined, slice_stop, validate_vectors
from embedroute.inputs import ImagePart, ImageURL, TextPart
from embedroute.routing import BreakerPolicy, RetryPolicy
from tests.support.wait import until, until_on_loop

CHECK = partial(validate_vectors, width=None)

TENANT = ContextVar("TENANT", default="absent")

asynchronous = pytest.mark.anyio


class ModelRecord(msgspec.Struct):
    """A record of a model's slices and loads, and the gates that block it."""

    begun: list[tuple[str, ...]] = []
    finished: list[tuple[str, ...]] = []
    loads: int = 0
    threads: set[threading.Thread] = set()
    may_run: threading.Event = msgspec.field(default_factory=threading.Event)
    may_load: threading.Event = msgspec.field(default_factory=threading.Event)


class ScriptedModel(LocalBackend, frozen=True, kw_only=True):
    """Returns the vector (n, 1) for a text of n characters, and takes ``seconds`` per input."""

    accepts: ClassVar[Accepts] = Accepts(dimensions=True)
    record: ModelRecord = msgspec.field(default_factory=ModelRecord)
    seconds: float = 0.0
    waits_on: tuple[str, ...] = ()
    fails_to_load: int = 0
    loads_slowly: bool = False

    def load(self):
        self.record.loads += 1
        self.record.threads.add(threading.current_thread())
        if self.loads_slowly:
            assert self.record.may_load.wait(30)
        if self.record.loads <= self.fails_to_load:
            raise OSError("no weights yet")

    def run(self, model, batch):
        assert model is None
        self.record.threads.add(threading.current_thread())
        self.record.begun.append(tuple(batch.texts))
        if set(self.waits_on) & set(batch.texts):
            assert self.record.may_run.wait(30)
        time.sleep(self.seconds * len(batch))
        self.record.finished.append(tuple(batch.texts))
        rows = [[len(text), 1.0] for text in batch.texts]
        return Vectors.from_lists(rows, prompt_tokens=sum(map(len, batch.texts)))


class MinimumSliceModel(ScriptedModel, frozen=True, kw_only=True):
    """A model with a minimum slice of 50 inputs."""

    min_slice: ClassVar[int] = 50


def texts(name, count):
    return tuple(f"{name}{at}" for at in range(count))


async def embed(local, backend, *inputs):
    return await local.run(backend, Batch(model="m", texts=inputs, width=2), CHECK)


def threads_of(backend):
    return [item for item in backend.record.threads if item.is_alive()]


class OneAtATime(LocalBackend, frozen=True, kw_only=True):
    """Records how many calls run at once, and refuses an empty text."""

    max_threads: ClassVar[int | None] = 1
    running: list[int] = msgspec.field(default_factory=list)
    most: list[int] = msgspec.field(default_factory=list)

    def load(self):
        return self.running

    def run(self, model, batch):
        model.append(1)
        self.most.append(len(model))
        time.sleep(0.01)
        model.pop()
        if "" in batch.texts:
            error = UpstreamRejectedInput("The text is empty.")
            error.input_index = list(batch.texts).index("")
            raise error
        return Vectors.from_lists([[1.0]] * len(batch))


@asynchronous
async def test_an_error_names_the_input_in_the_batch_and_not_in_its_slice():
    batch = Batch(model="m", texts=("a",) * 30 + ("", "b"))

    with pytest.raises(UpstreamRejectedInput) as caught:
        await LocalModels().run(OneAtATime(), batch, CHECK)

    assert caught.value.input_index == 30


@asynchronous
async def test_a_library_that_runs_one_call_at_a_time_gets_one_thread():
    backend = OneAtATime()
    models = LocalModels(threads=4)

    async with anyio.create_task_group() as tasks:
        for text in ("a", "b", "c", "d"):
            tasks.start_soon(models.run, backend, Batch(model="m", texts=(text,)), CHECK)

    assert backend.most == [1, 1, 1, 1]


@asynchronous
async def test_a_cancelled_call_occupies_its_thread_until_the_slice_ends():
    """However many callers are cancelled, never more threads run than there are slots."""
    backend, local = ScriptedModel(waits_on=("hangs",)), LocalModels(threads=2)
    await embed(local, backend, "a")
    for _ in range(10):
        with anyio.move_on_after(0.01):
            await embed(local, backend, "hangs")

    with anyio.move_on_after(0.05) as waited:
        await embed(local, backend, "b")
    assert waited.cancelled_caught
    assert [("a",), ("hangs",), ("hangs",)] == backend.record.begun
    assert len(threads_of(backend)) == 2

    backend.record.may_run.set()
    assert (await embed(local, backend, "b")).array.tolist() == [[1, 1]]


@asynchronous
async def test_queued_work_of_a_cancelled_caller_never_starts():
    backend, local = ScriptedModel(waits_on=("hangs",)), LocalModels(threads=1)
    async with anyio.create_task_group() as group:
        group.start_soon(embed, local, backend, "hangs")
        await until_on_loop(lambda: backend.record.begun)
        with anyio.move_on_after(0.05):
            await embed(local, backend, "left")
        group.start_soon(embed, local, backend, "stays")
        backend.record.may_run.set()

    assert [("hangs",), ("stays",)] == backend.record.finished


@asynchronous
async def test_a_cancelled_batch_stops_after_its_current_slice():
    inputs = texts("t", 100)
    backend, local = ScriptedModel(waits_on=("t8",)), LocalModels(threads=1)
    async with anyio.create_task_group() as group:
        group.start_soon(embed, local, backend, *inputs)
        await until_on_loop(lambda: len(backend.record.begun) == 2)
        group.cancel_scope.cancel()
    backend.record.may_run.set()
    await embed(local, backend, "next")

    *before, last = backend.record.finished
    assert last == ("next",)
    assert len(before) == 2
    assert sum(map(len, before)) < len(inputs)


@asynchronous
async def test_a_short_text_waits_for_slices_and_not_for_whole_batches():
    """Counted in inputs started before it, so that the result does not depend on time."""
    backend, local = ScriptedModel(seconds=0.002), LocalModels(threads=2)
    passed = []
    async with anyio.create_task_group() as group:
        for name in "abcd":
            group.start_soon(embed, local, backend, *texts(name, 200))
        for at in range(10):
            await anyio.sleep(0.02)
            before = len(backend.record.begun)
            await embed(local, backend, f"short{at}")
            own = backend.record.begun.index((f"short{at}",))
            passed.append(sum(map(len, backend.record.begun[before:own])))
        assert sum(map(len, backend.record.finished)) < 800
    assert sum(map(len, backend.record.finished)) == 810
    assert max(passed) < 100


@asynchronous
async def test_many_short_texts_do_not_starve_a_batch():
    backend, local = ScriptedModel(waits_on=("big0",)), LocalModels(threads=1)
    async with anyio.create_task_group() as group:
        group.start_soon(embed, local, backend, *texts("big", 24))
        await until_on_loop(lambda: backend.record.begun)
        for at in range(20):
            group.start_soon(embed, local, backend, f"short{at}")
        await anyio.sleep(0.05)
        backend.record.may_run.set()

    names = ["big" if item[0].startswith("big") else "short" for item in backend.record.begun]
    assert names[:4] == ["big", "short", "big", "short"]


@asynchronous
async def test_batches_take_turns():
    backend, local = ScriptedModel(waits_on=("a0",)), LocalModels(threads=1)
    async with anyio.create_task_group() as group:
        group.start_soon(embed, local, backend, *texts("a", 200))
        await until_on_loop(lambda: backend.record.begun)
        group.start_soon(embed, local, backend, *texts("b", 200))
        await anyio.sleep(0.05)
        backend.record.may_run.set()

    assert ["a", "b"] * 3 == [item[0][0] for item in backend.record.begun][:6]


class Token:
    """A value in the context of a caller."""


@asynchronous
async def test_nothing_of_a_cancelled_caller_is_kept():
    backend, local = ScriptedModel(waits_on=("hangs",)), LocalModels(threads=1)
    kept = []

    async def leave():
        token = Token()
        kept.append(ref(token))
        TENANT.set(token)
        del token
        with anyio.move_on_after(0.05):
            await embed(local, backend, *texts("left", 9))

    async with anyio.create_task_group() as group:
        group.start_soon(embed, local, backend, "hangs")
        await until_on_loop(lambda: backend.record.begun)
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(leave)
        await anyio.lowlevel.checkpoint()
        gc.collect()
        assert kept[0]() is None
        backend.record.may_run.set()


def pace(*, per_input=0.0, per_token=0.0):
    return Pace(per_input=per_input, per_token=per_token, inputs=1)


@pytest.mark.parametrize(
    ("sizes", "start", "longest", "least", "known", "stop"),
    [
        ([1] * 100, 0, 8, 1, None, 8),
        ([1] * 5, 0, 8, 1, None, 5),
        ([1] * 100, 8, 64, 1, pace(per_input=1e-6), 72),
        ([1] * 100, 8, 64, 1, pace(per_input=0.001), 18),
        ([1] * 100, 8, 64, 1, pace(per_input=0.5), 9),
        ([1] * 100, 8, 64, 20, pace(per_input=0.5), 28),
        ([1] * 100, 95, 64, 20, pace(per_input=0.5), 100),
        ([1] * 100, 0, 8, 20, None, 20),
        ([1] * 50 + [1000] * 50, 40, 64, 1, pace(per_token=1e-5), 50),
        ([1] * 50 + [1000] * 50, 50, 64, 1, pace(per_token=1e-5), 51),
        ([1] * 50 + [1000] * 50, 50, 64, 1, pace(per_token=1e-6), 60),
        ([1000] * 50 + [1] * 50, 50, 64, 1, pace(per_input=0.002, per_token=2e-6), 55),
    ],
)
def test_the_last_slice_determines_the_size_of_the_next(sizes, start, longest, least, known, stop):
    assert stop == slice_stop(list(accumulate(sizes)), start, longest, least, known)


@asynchronous
async def test_a_slow_model_gets_short_slices_and_a_fast_one_few_slices():
    slow, quick, whole = (
        ScriptedModel(seconds=0.005),
        ScriptedModel(),
        MinimumSliceModel(seconds=0.001),
    )
    local = LocalModels()
    for backend, count in ((slow, 40), (quick, 200), (whole, 200)):
        await embed(local, backend, *texts("t", count))

    assert [8] == [len(item) for item in slow.record.begun][:1]
    assert {1, 2} >= {len(item) for item in slow.record.begun[1:]}
    assert len(quick.record.begun) <= 6
    assert [50] * 4 == [len(item) for item in whole.record.begun]
    assert await embed(local, slow, *texts("u", 8))
    assert len(slow.record.begun[-1]) <= 2


@asynchronous
async def test_a_batch_of_one_slice_runs_as_a_whole():
    backend, local = ScriptedModel(), LocalModels()
    await embed(local, backend, *texts("t", 8))

    assert [texts("t", 8)] == backend.record.begun


@asynchronous
async def test_slices_are_joined_in_order_and_their_tokens_summed():
    inputs = ["x" * (1 + at % 17) for at in range(300)]
    answer = await embed(LocalModels(), backend := ScriptedModel(), *inputs)

    assert len(backend.record.begun) > 2
    assert [[len(item), 1] for item in inputs] == answer.array.tolist()
    assert sum(map(len, inputs)) == answer.prompt_tokens


PARTS = (
    (TextPart(text="a"),),
    (ImagePart(image_url=ImageURL(url="data:b")),),
    (TextPart(text="c"),),
)


@pytest.mark.parametrize(
    ("batch", "inputs"),
    [
        (Batch(model="m", texts=["a", "b", "c"], dimensions=2, user="u"), ["b", "c"]),
        (Batch(model="m", tokens=[(1,), (2, 3), (4,)], dimensions=2, user="u"), [(2, 3), (4,)]),
        (Batch(model="m", parts=PARTS, dimensions=2, user="u"), PARTS[1:]),
    ],
)
def test_a_slice_differs_from_its_batch_only_in_its_inputs(batch, inputs):
    part = cut_part(batch, 1, 3)

    assert (inputs, batch.kind) == (part.inputs, part.kind)
    assert (2, "u", "m") == (part.dimensions, part.user, part.model)


ROW = np.ones((1, 2), "<f4")


@pytest.mark.parametrize(
    ("answers", "tokens", "split"),
    [
        ([Vectors(ROW, 2), Vectors(ROW, 3)], 5, {}),
        ([Vectors(ROW, 2), Vectors(ROW)], None, {}),
        (
            [Vectors(ROW, 2, {"text": 2}), Vectors(ROW, 5, {"text": 1, "video": 4})],
            7,
            {"text": 3, "video": 4},
        ),
        ([Vectors(ROW, 2, {"text": 2}), Vectors(ROW, 5)], 7, {}),
    ],
)
def test_tokens_are_summed_only_if_every_slice_reports_them(answers, tokens, split):
    found = joined(answers)

    assert (tokens, split) == (found.prompt_tokens, found.modality_tokens)
    assert found.array.shape == (2, 2)


class WrongRowsModel(ScriptedModel, frozen=True, kw_only=True):
    """Applies ``does`` to the rows of each slice."""

    does: object = None

    def run(self, model, batch):
        answer = super().run(model, batch)
        return Vectors(self.does(answer.array, len(self.record.begun)))


@asynchronous
@pytest.mark.parametrize(
    "does",
    [
        lambda rows, _: rows[:-1],
        lambda rows, at: [*rows, rows[0]] if at == 1 else rows[:-1] if at == 2 else rows,
        lambda rows, at: rows if at == 1 else rows[:, :1],
        lambda rows, at: rows.astype("f8") if at == 1 else rows.astype("i8"),
        lambda rows, at: rows * (at != 2),
        lambda rows, at: rows if at == 1 else None,
    ],
    ids=["a row less", "one more and one less", "another width", "other numbers", "zeros", "none"],
)
async def test_a_slice_with_a_wrong_answer_fails_the_batch(does):
    """Two wrong counts may add up to the right one, and then rows would belong to other inputs."""
    with pytest.raises(InvalidUpstreamResponse):
        await embed(LocalModels(), WrongRowsModel(does=does), *texts("t", 40))


@asynchronous
async def test_one_model_runs_while_another_is_loading():
    slow, loaded, local = ScriptedModel(loads_slowly=True), ScriptedModel(), LocalModels(threads=1)
    async with anyio.create_task_group() as group:
        group.start_soon(embed, local, slow, "a")
        await until_on_loop(lambda: slow.record.loads)
        assert len((await embed(local, loaded, "b")).array) == 1
        assert [] == slow.record.begun
        slow.record.may_load.set()

    assert [("a",)] == slow.record.finished


@asynchronous
async def test_a_failed_load_is_repeated_by_the_next_request():
    backend, local = ScriptedModel(fails_to_load=2), LocalModels()
    for _ in range(2):
        with pytest.raises(OSError, match="no weights yet"):
            await embed(local, backend, "a")
    for _ in range(2):
        await embed(local, backend, "a")

    assert backend.record.loads == 3


@asynchronous
async def test_a_caller_cancelled_during_the_load_gets_no_slice_and_the_model_stays_loaded():
    backend, local = ScriptedModel(loads_slowly=True), LocalModels(threads=1)
    with anyio.move_on_after(0.05):
        await embed(local, backend, "left")
    backend.record.may_load.set()
    await embed(local, backend, "stays")

    assert backend.record.loads == 1
    assert [("stays",)] == backend.record.begun


def test_all_event_loops_share_one_loaded_model_and_its_thread_limit():
    backend, local = ScriptedModel(waits_on=("hangs",), loads_slowly=True), LocalModels(threads=2)
    arguments = (embed, local, backend, "hangs")
    kinds = [{"backend": kind} for kind in ("asyncio", "trio")] * 4
    loops = [threading.Thread(target=anyio.run, args=arguments, kwargs=kind) for kind in kinds]
    for loop in loops:
        loop.start()
    until(lambda: backend.record.loads)
    backend.record.may_load.set()
    until(lambda: len(backend.record.begun) == 2)
    time.sleep(0.05)
    assert len(backend.record.begun) == len(threads_of(backend)) == 2
    backend.record.may_run.set()
    for loop in loops:
        loop.join()

    assert backend.record.loads == 1
    assert [("hangs",)] * 8 == backend.record.finished


@pytest.mark.parametrize("kind", ["asyncio", "trio"])
def test_a_slice_may_outlive_its_event_loop_and_idle_threads_end(kind):
    backend, local = ScriptedModel(waits_on=("hangs",)), LocalModels(threads=1)

    async def leave():
        with anyio.move_on_after(0.05):
            await embed(local, backend, "hangs")

    anyio.run(leave, backend=kind)
    backend.record.may_run.set()

    assert until(lambda: not threads_of(backend)) < 20
    assert [("hangs",)] == backend.record.finished
    anyio.run(embed, local, backend, "again", backend=kind)


class CallerNameModel(LocalBackend, frozen=True):
    """Returns the length of the caller's name."""

    def load(self):
        pass

    def run(self, model, batch):
        assert model is None
        return Vectors(np.full((len(batch), 2), len(TENANT.get()), "<f4"))


@asynchronous
async def test_a_model_runs_in_the_context_of_its_caller():
    backend, local = CallerNameModel(), LocalModels(threads=1)
    for name in ("a", "abc"):
        TENANT.set(name)
        answer = await embed(local, backend, *texts("t", 20))
        assert answer.array.tolist() == [[len(name)] * 2] * 20


FORK = """
import os
import time
import anyio
import numpy as np
from embedroute.backend import Batch, LocalBackend, Vectors
from embedroute.execution import LocalModels

class ForkableModel(LocalBackend, frozen=True):
    def load(self):
        return os.getpid()

    def run(self, model, batch):
        return Vectors(np.array([[model, os.getpid()]], "<f4"))

backend, local = ForkableModel(), LocalModels()

async def embed():
    with anyio.fail_after(20):
        answer = await local.run(backend, Batch(model="m", texts=["a"]), None)
    return answer.array.tolist()[0]

assert anyio.run(embed) == [os.getpid(), os.getpid()]
time.sleep(0.1)
child = os.fork()
if not child:
    ok = False
    try:
        ok = anyio.run(embed) == [os.getppid(), os.getpid()]
    finally:
        os._exit(not ok)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@asynchronous
async def test_a_forked_process_keeps_the_model_and_starts_its_own_threads():
    """A server that preloads its application forks while a thread is still idle."""
    done = await anyio.run_process([sys.executable, "-c", FORK])

    assert b"0\n" == done.stdout


@asynchronous
async def test_a_failed_thread_start_fails_only_its_own_call():
    backend, local = ScriptedModel(), LocalModels()
    before = threading.stack_size(2**46)
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await embed(local, backend, "a")
    finally:
        threading.stack_size(before)

    await embed(local, backend, "b")
    assert [("b",)] == backend.record.finished


@asynchronous
async def test_a_model_that_hangs_fails_its_own_requests_and_recovers():
    """It has as many threads as the config says, and another model is served meanwhile."""
    hanging = texts("hangs", 3)
    hangs, works = ScriptedModel(waits_on=hanging), ScriptedModel()
    gateway = Gateway(
        Config(
            gateway=Settings(auth="open", local_threads=3, deadline=1.0),
            cache=CacheSettings(bytes=0),
            providers={"hangs": Provider(backend=hangs), "works": Provider(backend=works)},
            models={
                "hangs": Model(dimensions=2, endpoints=[Endpoint(provider="hangs")]),
                "works": Model(dimensions=2, endpoints=[Endpoint(provider="works")]),
            },
        ),
        breaker=BreakerPolicy(initial_cooldown=0.2),
        retries=RetryPolicy(repeats=0),
        environ={},
    )
    statuses = []

    async def ask(text):
        try:
            await gateway.embed(text, model="hangs")
            statuses.append(200)
        except EmbedrouteError as error:
            statuses.append(error.status)

    await gateway.embed("it usually answers at once", model="hangs")
    async with anyio.create_task_group() as group:
        for text in hanging:
            group.start_soon(ask, text)
        await until_on_loop(lambda: len(hangs.record.begun) == 4)
        for text in texts("t", 20):
            group.start_soon(ask, text)
        assert len((await gateway.embed("a", model="works")).rows) == 1
    for at in range(2):
        await ask(f"u{at}")

    assert {503, 504} == set(statuses)
    assert set(hanging) == {item for (item,) in hangs.record.begun[1:]}
    assert 1 == len(hangs.record.finished)
    hangs.record.may_run.set()
    await until_on_loop(lambda: len(hangs.record.finished) == 4)
    statuses.clear()
    while 200 not in statuses:
        assert len(statuses) < 1000
        await ask(f"v{len(statuses)}")
        await anyio.sleep(0.02)
