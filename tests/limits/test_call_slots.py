"""Waiting for a slot: admission, early refusal, cancellation, and endpoints that stall."""

import asyncio

import pytest

from embedroute.errors import EndpointBusy
from embedroute.limits import FIRST, INTERACTIVE, MOST_WAITING, CallSlots
from tests.support.virtual_time import run_in_virtual_time


def in_virtual_time(test):
    """Run an async test with a virtual clock, which is its argument."""

    def run():
        async def main():
            await test(asyncio.get_running_loop().time)

        run_in_virtual_time(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def full_slots(clock, most=4, seconds=0.1, answered=9):
    """An endpoint with all slots in use, whose calls take ``seconds``."""
    slots = CallSlots(most, clock)
    for _ in range(answered):
        slots.calls.record_answer(clock(), 1, seconds, 4)
    slots.calls.in_flight = slots.calls.limit
    return slots


@in_virtual_time
async def test_a_slot_that_becomes_free_goes_to_the_call_that_waits(clock):
    slots = full_slots(clock)
    waiting = asyncio.ensure_future(slots.wait("caller", 1, clock() + 9))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    slots.leave(0)
    assert await waiting == 0
    assert (slots.waiting, slots.calls.in_flight) == (0, 4)


@in_virtual_time
async def test_a_call_that_cannot_be_answered_in_time_is_refused_at_once(clock):
    slots = full_slots(clock)
    tasks = [asyncio.ensure_future(slots.wait("caller", 1, clock() + 9)) for _ in range(40)]
    await asyncio.sleep(0)
    began = clock()
    # 40 calls of 0.1 s, four at a time, and its own.
    with pytest.raises(EndpointBusy) as caught:
        await slots.wait("caller", 1, clock() + 1.1)
    assert clock() == began
    assert caught.value.retry_after == 2.0
    late = asyncio.ensure_future(slots.wait("caller", 1, clock() + 1.4))
    await asyncio.sleep(0)
    assert not late.done()
    for task in (*tasks, late):
        task.cancel()
    await asyncio.gather(*tasks, late, return_exceptions=True)
    assert (slots.waiting, slots.calls.in_flight) == (0, 4)


@in_virtual_time
async def test_nothing_is_refused_because_nothing_is_known_of_the_endpoint(clock):
    slots = full_slots(clock, answered=0)
    tasks = [asyncio.ensure_future(slots.wait("caller", 2048, clock() + 9)) for _ in range(100)]
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()


@in_virtual_time
async def test_the_queue_is_bounded(clock):
    slots = full_slots(clock, seconds=1e-6)
    tasks = [
        asyncio.ensure_future(slots.wait("caller", 1, clock() + 9)) for _ in range(MOST_WAITING)
    ]
    await asyncio.sleep(0)
    began = clock()
    with pytest.raises(EndpointBusy):
        await slots.wait("caller", 1, clock() + 9)
    assert clock() == began
    for task in tasks:
        task.cancel()


@in_virtual_time
async def test_an_endpoint_is_expected_to_serve_twice_as_many_calls_as_it_has_served(clock):
    slots = CallSlots(None, clock)
    slots.calls.record_answer(clock(), 1, 0.1, 2)
    assert slots.expected_wait(1) == pytest.approx(0.05 / 4)
    slots.calls.record_answer(clock(), 1, 0.1, FIRST)
    assert slots.expected_wait(1) == pytest.approx(0.05 / FIRST)


@in_virtual_time
async def test_a_call_that_waits_is_refused_while_the_client_can_still_be_told(clock):
    slots = full_slots(clock)
    began = clock()
    with pytest.raises(EndpointBusy):
        await slots.wait("caller", 1, clock() + 0.5)
    assert clock() - began == pytest.approx(0.4)
    assert (slots.waiting, slots.calls.in_flight) == (0, 4)


@in_virtual_time
async def test_what_can_no_longer_be_served_is_refused_as_soon_as_that_is_known(clock):
    slots = full_slots(clock)
    tasks = [asyncio.ensure_future(slots.wait("caller", 1, clock() + 2)) for _ in range(40)]
    await asyncio.sleep(0.1)
    for _ in range(9):
        slots.calls.record_answer(clock(), 1, 0.6, 4)
    slots.leave(0)
    await asyncio.sleep(0)
    refused = [task for task in tasks if task.done() and task.exception()]
    # In 1.9 s, four at a time can serve twelve of them, and one was admitted.
    assert len(refused) == 40 - 1 - 9
    assert slots.waiting == 9
    for task in tasks:
        task.cancel()


@in_virtual_time
async def test_a_cancelled_call_leaves_the_queue_or_passes_its_slot_on(clock):
    slots = full_slots(clock)
    first = asyncio.ensure_future(slots.wait("caller", 1, clock() + 8))
    second = asyncio.ensure_future(slots.wait("caller", 1, clock() + 9))
    third = asyncio.ensure_future(slots.wait("caller", 1, clock() + 9.5))
    await asyncio.sleep(0.01)
    second.cancel()
    await asyncio.sleep(0)
    assert slots.waiting == 2
    slots.leave(0)
    first.cancel()  # it was admitted, but has not run since
    assert await third == 0
    assert (slots.waiting, slots.calls.in_flight) == (0, 4)


@in_virtual_time
async def test_calls_that_hang_keep_no_slot_for_ever(clock):
    slots = full_slots(clock, most=None)
    await asyncio.sleep(100)  # nothing was called meanwhile, so nothing has stalled
    began = clock()
    generation = await slots.wait("caller", 1, clock() + 60)
    assert clock() - began == pytest.approx(1.0)
    assert (generation, slots.calls.in_flight) == (1, 1)
    for _ in range(FIRST):
        slots.leave(0)  # the ends of the calls that were given up
    assert slots.calls.in_flight == 1
    slots.leave(generation)
    assert slots.calls.in_flight == 0


@in_virtual_time
async def test_large_calls_are_cut_while_small_ones_come(clock):
    slots = full_slots(clock)
    slots.calls.record_answer(clock(), 2048, 0.8, 1)
    assert slots.most_inputs(2048) == 2048
    with pytest.raises(EndpointBusy):
        await slots.wait("caller", 1, clock() + 0.2)
    assert slots.most_inputs(2048) == 512 + 64
    await asyncio.sleep(INTERACTIVE)
    assert slots.most_inputs(2048) == 2048
