"""Tasks end with what started them, and a plain exception comes out of every group."""

import asyncio
from contextvars import ContextVar
from functools import partial

import anyio
import pytest

from embedroute.runtime import (
    ConditionMet,
    cancel_when,
    gather,
    innermost,
    is_foreign_cancellation,
    tasks,
)

pytestmark = pytest.mark.anyio

WHO = ContextVar("who", default="absent")


class Recorder:
    """Records how work ended."""

    def __init__(self):
        self.ends = []

    async def work(self, seconds, outcome):
        try:
            await anyio.sleep(seconds)
        except anyio.get_cancelled_exc_class():
            self.ends.append("cancelled")
            raise
        self.ends.append(outcome)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def after(seconds, seen=None):
    async def gone():
        try:
            await anyio.sleep(seconds)
        finally:
            if seen is not None:
                seen.ends.append("watched")

    return gone


async def test_finished_work_ends_the_watch():
    seen = Recorder()

    assert await cancel_when(seen.work(0.1, "done"), after(60, seen)) == "done"
    assert seen.ends == ["done", "watched"]


@pytest.mark.parametrize("seconds", [0, 0.01])
async def test_a_met_condition_cancels_the_work(seconds):
    seen = Recorder()

    with pytest.raises(ConditionMet):
        await cancel_when(seen.work(60, "done"), after(seconds))
    assert seen.ends == ["cancelled"]


@pytest.mark.parametrize("result", [None, False, "", []])
async def test_returns_a_falsy_result(result):
    assert await cancel_when(Recorder().work(0, result), after(60)) is result


FACTORIES = {"none": None, "before_python_3_11": lambda loop, coro: asyncio.Task(coro, loop=loop)}
"""How hosts make their tasks; one written before Python 3.11 has no argument ``context``."""


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_watch_runs_in_the_context_of_its_request(factory):
    """Hosts keep the id of a request in a context variable, for example to log it."""
    seen = {}

    async def request(name):
        WHO.set(name)

        async def gone():
            seen[name] = WHO.get()
            await anyio.sleep(60)

        await cancel_when(anyio.sleep(0.05), gone)

    async def main():
        asyncio.get_running_loop().set_task_factory(FACTORIES[factory])
        await asyncio.gather(*map(request, "abc"))

    asyncio.run(main())

    assert {"a": "a", "b": "b", "c": "c"} == seen


@pytest.mark.parametrize(
    "error", [KeyError("k"), ExceptionGroup("g", [ValueError("v")]), TimeoutError()]
)
async def test_raises_an_error_of_the_work_without_a_group(error):
    plain = innermost(error) if isinstance(error, ExceptionGroup) else error

    with pytest.raises(type(plain)) as raised:
        await cancel_when(Recorder().work(0, error), after(60))
    assert raised.value is plain


async def test_an_error_of_the_watch_cancels_the_work_and_is_raised_without_a_group():
    seen = Recorder()

    async def broken():
        raise LookupError

    with pytest.raises(LookupError):
        await cancel_when(seen.work(60, "done"), broken)
    assert seen.ends == ["cancelled"]


async def test_an_outer_timeout_cancels_work_and_watch():
    seen = Recorder()

    with pytest.raises(TimeoutError), anyio.fail_after(0.1):
        await cancel_when(seen.work(60, "done"), after(60, seen))
    assert sorted(seen.ends) == ["cancelled", "watched"]


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_shielded_work_is_awaited_before_it_is_cancelled():
    """On asyncio the task is cancelled natively, as servers do, which ignores a shield."""
    seen = Recorder()

    async def stubborn():
        with anyio.CancelScope(shield=True):
            await seen.work(0.02, "shielded")
        await seen.work(60, "never")

    with pytest.raises(ConditionMet):
        await cancel_when(stubborn(), after(0))
    assert seen.ends == ["shielded", "cancelled"]


def racing(seen, *work):
    """Race work, given as seconds and outcome; the first is an answer unless it begins with no."""
    first, *others = [partial(seen.work, *each) for each in work]
    rest = iter(others)
    return tasks.race(first, 0.05, lambda: next(rest, None), lambda result: result[:2] != "no")


@pytest.mark.parametrize(
    ("work", "result", "ends"),
    [
        pytest.param([(0, "a"), (0, "b")], "a", ["a"], id="the first at once"),
        pytest.param([(0.1, "a"), (60, "b")], "a", ["a", "cancelled"], id="the first"),
        pytest.param([(60, "a"), (0, "b")], "b", ["b", "cancelled"], id="the second"),
        pytest.param(
            [(60, "a"), (60, "b"), (0, "c")], "c", ["c", "cancelled", "cancelled"], id="the third"
        ),
        pytest.param([(0, "no a"), (0, "b")], "no a", ["no a"], id="the first fails at once"),
        pytest.param([(0.1, "no a"), (0.15, "b")], "b", ["no a", "b"], id="the first fails"),
        pytest.param([(0.15, "a"), (0, "no b")], "a", ["no b", "a"], id="the second fails"),
        pytest.param([(0.2, "no a"), (0, "no b")], "no a", ["no b", "no a"], id="all fail"),
    ],
)
async def test_a_race_returns_the_first_result_that_wins(work, result, ends):
    seen = Recorder()

    assert await racing(seen, *work) == result
    assert seen.ends == ends


async def test_a_race_raises_the_plain_error_of_any_work():
    seen = Recorder()

    with pytest.raises(KeyError, match="b"):
        await racing(seen, (60, "a"), (0, KeyError("b")))
    assert seen.ends[-1] == "cancelled"


async def test_an_outer_timeout_cancels_all_work_of_a_race():
    seen = Recorder()

    with pytest.raises(TimeoutError), anyio.fail_after(0.2):
        await racing(seen, (60, "a"), (60, "b"))
    assert seen.ends == ["cancelled"] * 2


@pytest.mark.parametrize(("count", "at_once", "most"), [(0, 4, 0), (1, 4, 1), (3, 4, 3), (9, 4, 4)])
async def test_gather_limits_concurrency(count, at_once, most):
    running, peaks = [], [0]

    async def item():
        running.append(None)
        peaks.append(len(running))
        await anyio.sleep(0.005)
        running.pop()

    await gather([item] * count, at_once)

    assert max(peaks) == most
    assert len(peaks) == count + 1


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_gather_raises_the_first_error_and_cancels_the_others(count):
    seen = Recorder()

    async def fail():
        await seen.work(0.01, KeyError("first"))

    async def wait():
        await seen.work(60, "never")

    with pytest.raises(KeyError, match="first"):
        await gather([fail, *[wait] * (count - 1)], at_once=8)
    assert sorted(map(str, seen.ends)) == ["'first'", *["cancelled"] * (count - 1)]


async def test_an_outer_timeout_cancels_all_work_of_gather():
    seen = Recorder()

    async def wait():
        await seen.work(60, "never")

    with pytest.raises(TimeoutError), anyio.fail_after(0.1):
        await gather([wait] * 4, at_once=2)
    assert seen.ends == ["cancelled"] * 2


def test_innermost_returns_an_exception_that_is_not_a_group():
    plain = ValueError("v")
    nested = BaseExceptionGroup("a", [ExceptionGroup("b", [plain, KeyError()]), OSError()])

    assert innermost(nested) is plain


@pytest.mark.parametrize(
    ("error", "stray"),
    [
        (asyncio.CancelledError(), True),
        (GeneratorExit(), True),
        (KeyboardInterrupt(), False),
        (SystemExit(), False),
    ],
)
async def test_a_cancellation_raised_by_called_code_is_foreign(error, stray):
    assert stray is is_foreign_cancellation(error)


async def test_a_real_cancellation_is_not_foreign():
    found = []

    async def cancelled(error):
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as sent:
            found.append(is_foreign_cancellation(error or sent))
            raise

    with anyio.move_on_after(0.01):
        await cancelled(None)
    async with anyio.create_task_group() as group:
        group.start_soon(cancelled, None)
        await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    assert found == [False, False]


def test_a_cancelled_future_does_not_cancel_its_waiter():
    async def main():
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await future
        return is_foreign_cancellation(caught.value)

    assert asyncio.run(main())


def test_a_coroutine_can_be_closed_outside_a_loop():
    assert not is_foreign_cancellation(GeneratorExit())


async def bounded(work, seconds, *, grace, disconnected=None):
    async with tasks.watch(seconds, LookupError, grace) as watch:
        if disconnected is not None:
            watch.restart(seconds, LookupError, disconnected)
        await work()


async def test_a_limit_shorter_than_the_grace_period_is_kept():
    with pytest.raises(LookupError):
        await bounded(partial(anyio.sleep, 1), 0.02, grace=60)


async def test_an_error_beside_the_cancellation_ends_every_task_of_the_watch():
    """A child of a task group raises in its cleanup while the watch cancels the group."""
    ended = []

    async def disconnected():
        try:
            await anyio.sleep(60)
        finally:
            ended.append("watcher")

    async def child():
        try:
            await anyio.sleep(60)
        finally:
            raise ValueError

    async def work():
        async with anyio.create_task_group() as group:
            group.start_soon(child)
            group.start_soon(anyio.sleep, 60)

    with pytest.raises(ValueError):  # noqa: PT011 - it has no text
        await bounded(work, 0.05, grace=0, disconnected=disconnected)
    assert ended == ["watcher"]
