"""Backends that block the event loop or ignore a cancellation: they are named, and given up."""

# A scripted reply does not depend on the request, and anyio's plugin reads `anyio_backend`.
# ruff: noqa: ARG001, ARG002

import asyncio
import gc
import logging
import time
from typing import ClassVar

import anyio
import anyio.lowlevel
import pytest

from embedroute import Config, Gateway
from embedroute.backend import Backend, UpstreamResponse
from embedroute.errors import (
    EmbedrouteError,
    ResourcesExhausted,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.execution import CallResources, LocalModels, Watchdog, call_backend
from embedroute.transport import ExchangeLimits
from tests.execution.test_backend_call import BATCH, GOOD, FixedTransport, PlainBackend
from tests.support.elapsed import measured
from tests.support.wait import until_on_loop

ON_ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"])
LONG = 1.05
"""Seconds that a step of a backend takes to be reported."""
TIMEOUTS = (UpstreamTimeout, ResourcesExhausted)
"""What a timeout raises: the second if a busy machine made the event loop late."""
ROWS = b'{"rows": [[1, 2, 3], [4, 5, 6]]}'


class Blocking(PlainBackend, frozen=True, kw_only=True):
    method: str
    raises: bool = False

    def build(self, batch):
        self.block("build")
        return super().build(batch)

    def parse(self, batch, reply):
        self.block("parse")
        return super().parse(batch, reply)

    def map_error(self, reply):
        self.block("map_error")
        return super().map_error(reply)

    def block(self, method):
        if method == self.method:
            time.sleep(LONG)
            if self.raises:
                raise OSError(method)


class BlockingEmbed(Backend, frozen=True, kw_only=True):
    async def embed(self, batch):
        await anyio.lowlevel.checkpoint()
        time.sleep(LONG)  # noqa: ASYNC251 - this is the mistake
        return GOOD


class Stubborn(Backend, frozen=True, kw_only=True):
    """Ignores cancellations until ``release`` is set."""

    release: object
    ends: ClassVar[list[str]] = []

    async def embed(self, batch):
        while not self.release.is_set():
            try:
                await self.release.wait()
            except anyio.get_cancelled_exc_class():
                continue
        self.ends.append("ended")
        return GOOD


class Swallowing(Backend, frozen=True, kw_only=True):
    async def embed(self, batch):
        try:
            await anyio.sleep(30)
        except anyio.get_cancelled_exc_class():
            pass
        return GOOD


class Tidy(Backend, frozen=True, kw_only=True):
    """Takes a moment to clean up, as a backend may that closes a connection."""

    ends: ClassVar[list[str]] = []

    async def embed(self, batch):
        try:
            await anyio.sleep(30)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.02)
            self.ends.append("tidy")


class Forgotten(Backend, frozen=True, kw_only=True):
    """Continues with a future that only its own task refers to."""

    async def embed(self, batch):
        try:
            await anyio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.get_running_loop().create_future()
        return GOOD


@pytest.fixture
async def stubborn(anyio_backend):
    Stubborn.ends.clear()
    backend = Stubborn(release=anyio.Event())
    yield backend
    backend.release.set()  # also if the test fails: the end of the loop waits for the task


def resources_with(status=200):
    return CallResources(
        transport=FixedTransport(UpstreamResponse(status, {}, ROWS)), local=LocalModels()
    )


async def call(backend, resources=None, timeout=5.0):
    return await call_backend(
        backend,
        BATCH,
        resources or resources_with(),
        timeout,
        limits=ExchangeLimits(provider="acme"),
    )


def warnings_in(caplog):
    return [
        (record.event, record.provider, record.backend, record.method)
        for record in caplog.records
        if record.name == "embedroute.calls" and record.levelno >= logging.WARNING
    ]


@pytest.mark.anyio
@ON_ASYNCIO
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize(("method", "status"), [("build", 200), ("parse", 200), ("map_error", 500)])
async def test_a_method_that_blocks_the_event_loop_is_named(caplog, method, status, raises):
    backend = Blocking(method=method, raises=raises)
    if raises or status != 200:
        with pytest.raises(UpstreamUnavailable):
            await call(backend, resources_with(status))
    else:
        await call(backend, resources_with(status))

    assert [("backend blocks the event loop", "acme", "Blocking", method)] == warnings_in(caplog)
    assert caplog.records[0].seconds >= 1.0


@pytest.mark.anyio
async def test_a_step_of_embed_that_blocks_the_event_loop_is_named(caplog):
    await call(BlockingEmbed())
    assert [("backend blocks the event loop", "acme", "BlockingEmbed", "embed")] == warnings_in(
        caplog
    )


@pytest.mark.anyio
async def test_a_quick_backend_is_not_named(caplog):
    await call(PlainBackend())
    assert [] == warnings_in(caplog)


def test_a_provider_is_named_once_a_minute(caplog):
    now = [0.0]
    watchdog = Watchdog(lambda: now[0])
    for now[0] in (0.0, 30.0, 59.0, 60.0, 61.0):
        for provider in ("acme", "other"):
            watchdog.report_blocking(provider, PlainBackend(), "build", 2.0)
            watchdog.report_ignored(provider, PlainBackend())
    assert 8 == len(warnings_in(caplog))


@pytest.mark.anyio
@ON_ASYNCIO
async def test_a_call_that_ignores_its_cancellation_is_abandoned(caplog, stubborn):
    """The caller gets its timeout, and the task ends by itself later, without a message."""
    async with measured() as elapsed:
        with pytest.raises(TIMEOUTS):
            await call(stubborn, timeout=0.1)

    assert elapsed.ticks < 1.1
    assert [("backend ignored cancellation", "acme", "Stubborn", "embed")] == warnings_in(caplog)
    assert [] == Stubborn.ends
    stubborn.release.set()
    await until_on_loop(lambda: Stubborn.ends == ["ended"])
    assert 1 == len(warnings_in(caplog))


@pytest.mark.anyio
@ON_ASYNCIO
@pytest.mark.parametrize("cancel", ["task", "scope"])
async def test_a_cancelled_caller_does_not_wait_for_a_call_that_goes_on(caplog, stubborn, cancel):
    async with measured() as elapsed:
        if cancel == "task":
            task = asyncio.create_task(call(stubborn))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with anyio.move_on_after(0.05):
                await call(stubborn)

    assert elapsed.ticks < 1.1
    assert [("backend ignored cancellation", "acme", "Stubborn", "embed")] == warnings_in(caplog)


@pytest.mark.anyio
@ON_ASYNCIO
async def test_an_abandoned_call_does_not_hold_the_response_beyond_the_deadline(stubborn):
    gateway = Gateway(
        Config(
            gateway={"auth": "open", "deadline": 0.5},
            providers={"up": {"backend": stubborn}},
            models={"m": {"dimensions": 3, "endpoints": [{"provider": "up"}]}},
        ),
        environ={},
    )
    async with measured() as elapsed:
        with pytest.raises(EmbedrouteError) as caught:
            await gateway.embed(["a", "b"], model="m")

    assert caught.value.status in {504, 503}
    assert elapsed.ticks < 1.5


@pytest.mark.anyio
@ON_ASYNCIO
async def test_an_abandoned_call_is_kept_until_it_ends(caplog):
    """Asyncio logs an error when a task is destroyed before its end."""
    with pytest.raises(TIMEOUTS):
        await call(Forgotten(), timeout=0.05)
    gc.collect()
    assert [("backend ignored cancellation", "acme", "Forgotten", "embed")] == warnings_in(caplog)
    assert [] == [record.message for record in caplog.records if record.name == "asyncio"]


@pytest.mark.anyio
@ON_ASYNCIO
async def test_a_value_that_is_returned_after_the_cancellation_is_a_timeout(caplog):
    with pytest.raises(TIMEOUTS):
        await call(Swallowing(), timeout=0.05)
    assert [("backend ignored cancellation", "acme", "Swallowing", "embed")] == warnings_in(caplog)


@pytest.mark.anyio
@pytest.mark.parametrize("cancel", ["timeout", "scope"])
async def test_a_call_may_clean_up_when_it_is_cancelled(caplog, cancel):
    Tidy.ends.clear()
    if cancel == "timeout":
        with pytest.raises(TIMEOUTS):
            await call(Tidy(), timeout=0.05)
    else:
        with anyio.move_on_after(0.05):
            await call(Tidy())
    assert ["tidy"] == Tidy.ends
    assert [] == warnings_in(caplog)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_on_trio_a_call_that_went_on_is_named_when_it_ends(caplog):
    class Shielded(Backend, frozen=True, kw_only=True):
        async def embed(self, batch):
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.6)
            return GOOD

    await call(Shielded(), timeout=0.05)
    assert [("backend ignored cancellation", "acme", "Shielded", "embed")] == warnings_in(caplog)


@pytest.mark.anyio
@ON_ASYNCIO
async def test_a_call_whose_task_is_cancelled_before_it_begins_is_a_failure():
    """Pytest turns a warning about a coroutine that was never awaited into an error."""
    earlier = asyncio.all_tasks()
    calling = asyncio.create_task(call(Tidy()))
    await asyncio.sleep(0)
    (started,) = asyncio.all_tasks() - earlier - {calling}
    started.cancel()
    with pytest.raises(UpstreamUnavailable, match="The backend raised an exception"):
        await calling
    gc.collect()


def test_the_loop_can_end_while_a_call_goes_on():
    """``asyncio.run`` cancels all tasks once more at its end."""

    class Twice(Backend, frozen=True, kw_only=True):
        async def embed(self, batch):
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                await asyncio.sleep(30)

    async def main():
        with pytest.raises(TIMEOUTS):
            await call(Twice(), timeout=0.05)

    asyncio.run(main())
