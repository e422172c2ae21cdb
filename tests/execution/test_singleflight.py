"""Single-flight.

Equal inputs of concurrent requests are computed once, even if requests fail or are cancelled.
"""

# A scripted reply does not depend on the request.
# ruff: noqa: ARG001

import random

import anyio
import pytest

from embedroute.errors import (
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    NoHealthyEndpoint,
    RateLimited,
    UpstreamAuthError,
    UpstreamError,
    UpstreamRejectedInput,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.execution import SingleFlight, never_expected
from embedroute.routing import EmbeddedInput
from embedroute.vectors import from_lists
from tests.support.wait import until_on_loop

pytestmark = pytest.mark.anyio

VECTOR = from_lists([[1.0, 2.0]])[0]
TERMS = ("a:m",)


def work(keys):
    return {key.encode(): key for key in keys}


class Computer:
    """Computes when ``go`` is set; ``computed`` lists its work, in order."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.computed: list[str] = []
        self.go = anyio.Event()

    async def __call__(self, missing, land):
        self.computed.append("".join(missing.values()))
        failure = self.failures.pop(0) if self.failures else None
        await self.go.wait()
        if failure is not None:
            raise failure
        land({key: EmbeddedInput(VECTOR, len(item)) for key, item in missing.items()})


class ConcurrentRequests:
    """Concurrent requests to one ``SingleFlight``."""

    def __init__(self, *failures, expect=never_expected):
        self.flights, self.computer = SingleFlight(expect), Computer(*failures)
        self.got: dict[str, object] = {}

    async def ask(self, name, keys, sharing_key=TERMS, computer=None, **times):
        try:
            found, led = await self.flights.run(
                work(keys), sharing_key, computer or self.computer, (), **times
            )
        except Exception as error:  # noqa: BLE001 - what it got
            self.got[name] = error
        else:
            self.got[name] = (b"".join(sorted(found)).decode(), led)

    async def meet(self, *asks):
        """Start the requests in ``asks`` one after the other, then let them compute."""
        async with anyio.create_task_group() as group:
            for ask in asks:
                group.start_soon(self.ask, *ask)
                await anyio.wait_all_tasks_blocked()
            self.computer.go.set()
        assert len(self.flights) == 0
        return self.got


@pytest.mark.parametrize(
    ("asks", "computed", "got"),
    [
        ([("1", "ab")], ["ab"], {"1": ("ab", 2)}),
        ([("1", "ab"), ("2", "ab")], ["ab"], {"1": ("ab", 2), "2": ("ab", 0)}),
        ([("1", "ab"), ("2", "bc")], ["ab", "c"], {"1": ("ab", 2), "2": ("bc", 1)}),
        (
            [("1", "ab"), ("2", "bc"), ("3", "ca")],
            ["ab", "c"],
            {"1": ("ab", 2), "2": ("bc", 1), "3": ("ac", 0)},
        ),
        ([("1", "a"), ("2", "a", ("b:m",))], ["a"], {"1": ("a", 1), "2": ("a", 0)}),
        ([("1", "a"), ("2", "a", None)], ["a", "a"], {"1": ("a", 1), "2": ("a", 1)}),
    ],
)
async def test_a_key_is_computed_once_for_all_requests(asks, computed, got):
    callers = ConcurrentRequests()

    assert got == await callers.meet(*asks)
    assert computed == callers.computer.computed


REFUSED = UpstreamRejectedInput("poison")
DOWN = UpstreamUnavailable("down")


@pytest.mark.parametrize(
    ("failure", "leader", "waiter", "shared"),
    [
        (DOWN, ("ab", TERMS), ("b", TERMS), True),
        (UpstreamAuthError("no"), ("ab", TERMS), ("bc", TERMS), True),
        (DOWN, ("ab", TERMS), ("b", ("b:m",)), False),
        (UpstreamTimeout("slow"), ("ab", TERMS), ("b", TERMS), False),
        (DeadlineExceeded("late"), ("ab", TERMS), ("b", TERMS), False),
        (RateLimited("wait", retry_after=0.7), ("ab", TERMS), ("b", TERMS), False),
        (RateLimited("wait"), ("ab", TERMS), ("b", TERMS), False),
        # A cool-down of 0 s fits every deadline: the leader's retry budget was exhausted, so is the
        # waiter's.
        (RateLimited("wait", retry_after=0), ("ab", TERMS), ("b", TERMS), True),
        (UpstreamUnavailable("down", retry_after=0.7), ("ab", TERMS), ("b", TERMS), True),
        (REFUSED, ("ab", TERMS), ("ab", TERMS), True),
        (REFUSED, ("b", TERMS), ("bc", TERMS), True),
        (ContextTooLong("long"), ("b", TERMS), ("b", TERMS), True),
        # The gateway raised these without a call, so the waiter runs into them itself.
        (InvalidRequest("what?"), ("b", TERMS), ("b", TERMS), False),
        (NoHealthyEndpoint("resting"), ("b", TERMS), ("b", TERMS), False),
        # "a" may be the bad input, and the waiter did not request it.
        (REFUSED, ("ab", TERMS), ("b", TERMS), False),
        (REFUSED, ("ab", TERMS), ("bc", TERMS), False),
    ],
)
async def test_a_waiter_receives_an_error_only_if_its_own_call_would_fail_too(
    failure, leader, waiter, shared
):
    callers = ConcurrentRequests(failure)

    got = await callers.meet(("leader", *leader), ("waiter", *waiter))

    assert failure is got["leader"]
    if not shared:
        assert waiter[0] == got["waiter"][0]
        return
    error = got["waiter"]
    assert type(failure) is type(error)
    assert (failure.status, failure.code, failure.retry_after) == (
        error.status,
        error.code,
        error.retry_after,
    )


async def test_each_waiter_gets_its_own_neutral_copy_of_the_error():
    failure = UpstreamUnavailable(
        "The upstream answered 503: cannot embed 'a secret'", param="a secret", upstream_status=503
    )
    failure.provider, failure.matched_text = "up", "a secret"
    failure.__cause__ = ValueError("a secret")

    got = await ConcurrentRequests(failure).meet(("leader", "ab"), ("one", "b"), ("other", "b"))

    assert failure is got.pop("leader")
    assert got["one"] is not got["other"]
    for error in got.values():
        assert (
            "The provider up failed (answered 503). Send the request again later." == error.message
        )
        assert (503, "up", None, "") == (
            error.upstream_status,
            error.provider,
            error.param,
            error.matched_text,
        )
        assert (None, None) == (error.__cause__, error.__context__)
        frames = []
        trace = error.__traceback__
        while trace is not None:
            frames.append(trace.tb_frame.f_code.co_name)
            assert failure is not getattr(trace.tb_frame.f_locals.get("flight"), "error", None)
            trace = trace.tb_next
        assert ["ask", "run", "follow", "_results"] == frames


@pytest.mark.parametrize(
    ("sharing_key", "computed"), [(TERMS, ["ab", "c"]), ("others", ["ab", "c", "b"])]
)
async def test_the_wait_for_a_leader_with_another_sharing_key_is_bounded(sharing_key, computed):
    """It may be stuck at an endpoint that the waiter does not use."""
    callers, met = ConcurrentRequests(), []

    async def wait():
        met.append(await callers.flights.run(work("bc"), sharing_key, second, (), max_wait=0.05))

    async def second(missing, land):
        callers.computer.computed.append("".join(missing.values()))
        land({key: EmbeddedInput(VECTOR, len(item)) for key, item in missing.items()})

    async with anyio.create_task_group() as group:
        group.start_soon(callers.ask, "leader", "ab")
        await anyio.wait_all_tasks_blocked()
        group.start_soon(wait)
        await anyio.sleep(0.2)
        assert computed == callers.computer.computed
        callers.computer.go.set()

    assert [{b"b", b"c"}] == [set(found) for found, _ in met]
    assert callers.got["leader"] == ("ab", 2)
    assert len(callers.flights) == 0


async def test_finished_keys_are_no_longer_in_flight():
    flights, waiting = SingleFlight(), anyio.Event()

    async def half(missing, land):
        land({b"a": EmbeddedInput(VECTOR, 1)})
        await waiting.wait()
        raise DOWN

    async def lead():
        with pytest.raises(UpstreamUnavailable):
            await flights.run(work("ab"), TERMS, half, ())

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await anyio.wait_all_tasks_blocked()
        computer = Computer()
        computer.go.set()
        found, led = await flights.run(work("a"), TERMS, computer, ())
        waiting.set()

    # By then it is in the cache. Without a cache it is computed again, without waiting for other
    # keys.
    assert (found.keys(), led) == ({b"a"}, 1)


@pytest.mark.parametrize("waiters", [1, 3])
async def test_one_waiter_leads_after_its_leader_is_cancelled(waiters):
    callers = ConcurrentRequests()
    async with anyio.create_task_group() as group:
        leader = anyio.CancelScope()

        async def led():
            with leader:
                await callers.ask("leader", "ab")

        group.start_soon(led)
        await anyio.wait_all_tasks_blocked()
        for at in range(waiters):
            group.start_soon(callers.ask, str(at), "ab")
            await anyio.wait_all_tasks_blocked()
        leader.cancel()
        await anyio.wait_all_tasks_blocked()
        callers.computer.go.set()

    assert ["ab", "ab"] == callers.computer.computed
    assert sorted([("ab", 2), *[("ab", 0)] * (waiters - 1)]) == sorted(callers.got.values())
    assert len(callers.flights) == 0


async def test_a_cancelled_waiter_does_not_affect_the_others():
    callers = ConcurrentRequests()
    async with anyio.create_task_group() as group:
        group.start_soon(callers.ask, "leader", "a")
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.01):
            await callers.ask("waiter", "a")
        callers.computer.go.set()

    assert callers.got == {"leader": ("a", 1)}
    assert ["a"] == callers.computer.computed


# A leader that computes more than a waiter asks for.

SOON = 0.05


async def begin(group, *asks):
    """Start each of ``asks``, a bound function and its arguments, and run it until it waits."""
    for ask, *arguments in asks:
        group.start_soon(lambda ask=ask, arguments=arguments: ask(*arguments))
        await anyio.wait_all_tasks_blocked()


def with_own(callers, name, keys, own, **times):
    return lambda: callers.ask(name, keys, computer=own, **times)


@pytest.mark.parametrize(
    ("leader", "waiter", "computed"),
    [
        # Part of a larger group: not waited for longer than the waiter's own call would take.
        ("abc", "b", ["abc", "b"]),
        ("abc", "bc", ["abc", "bc"]),
        # The leader has no more to compute than the waiter, whose own call would not end sooner.
        ("b", "b", ["b"]),
        ("bc", "bc", ["bc"]),
        ("ab", "bc", ["ab", "c"]),
        ("b", "bc", ["b", "c"]),
    ],
)
async def test_the_wait_for_a_larger_group_is_as_long_as_an_own_call(leader, waiter, computed):
    callers, own = ConcurrentRequests(expect=lambda _: SOON), Computer()
    own.go.set()
    own.computed = callers.computer.computed
    async with anyio.create_task_group() as group:
        await begin(
            group, (callers.ask, "leader", leader), (with_own(callers, "waiter", waiter, own),)
        )
        await anyio.sleep(4 * SOON)
        assert computed == callers.computer.computed
        assert ("waiter" in callers.got) == (len(leader) > len(waiter))
        callers.computer.go.set()

    assert computed == callers.computer.computed
    assert [waiter, leader] == [callers.got[name][0] for name in ("waiter", "leader")]
    assert len(callers.flights) == 0


async def test_the_expected_latency_is_for_the_awaited_inputs():
    missing = []

    def expect(*arguments):
        missing.append(arguments)
        return SOON

    flights, slow, own = SingleFlight(expect), Computer(), Computer()
    own.go.set()

    def compute(of):
        async def computed(_candidates, _order, missing, land):
            await of(missing, land)

        return computed

    async with anyio.create_task_group() as group:
        await begin(
            group, (flights.run, work("abcde"), TERMS, compute(slow), ("candidates", "order"))
        )
        found, led = await flights.run(
            work("dexyz"[:4]), TERMS, compute(own), ("candidates", "order")
        )
        slow.go.set()

    assert [("candidates", "order", 2)] == missing
    assert (4, 4) == (len(found), led)


async def test_patience_bounds_the_wait_for_a_larger_group_too():
    """An endpoint whose own calls take minutes leaves time for a call within the deadline."""
    callers, own = ConcurrentRequests(expect=lambda _: 3600.0), Computer()
    own.go.set()
    async with anyio.create_task_group() as group:
        await begin(
            group,
            (callers.ask, "leader", "abc"),
            (with_own(callers, "waiter", "b", own, max_wait=SOON),),
        )
        await until_on_loop(lambda: "waiter" in callers.got)
        callers.computer.go.set()

    assert ("b", 1) == callers.got["waiter"]


async def test_many_waiters_for_one_text_of_a_large_group_make_one_extra_call():
    callers, own = ConcurrentRequests(expect=lambda _: SOON), Computer()
    async with anyio.create_task_group() as group:
        await begin(
            group,
            (callers.ask, "leader", "abc"),
            *[(with_own(callers, str(at), "b", own),) for at in range(50)],
        )
        await until_on_loop(lambda: own.computed)
        await anyio.sleep(2 * SOON)
        own.go.set()
        await until_on_loop(lambda: len(callers.got) == 50)
        callers.computer.go.set()

    assert (["abc"], ["b"]) == (callers.computer.computed, own.computed)
    assert {"b"} == {found for name, (found, _) in callers.got.items() if name != "leader"}


async def test_a_waiter_gets_the_result_of_another_waiter_that_made_its_own_call():
    """Its own wait would have ended an hour later."""
    bounds = iter([SOON, 3600.0])
    callers, own = ConcurrentRequests(expect=lambda _: next(bounds)), Computer()
    own.go.set()
    async with anyio.create_task_group() as group:
        await begin(group, (callers.ask, "leader", "abc"), (with_own(callers, "first", "b", own),))
        await begin(group, (callers.ask, "second", "b"))
        await until_on_loop(lambda: len(callers.got) == 2)
        callers.computer.go.set()

    assert {"leader": ("abc", 3), "first": ("b", 1), "second": ("b", 0)} == callers.got
    assert (["abc"], ["b"]) == (callers.computer.computed, own.computed)


async def raced(callers, own, *first, second=None):
    """Let a waiter of "b" wait too long for the leader of "abc"; set ``first``, then ``second``."""
    async with anyio.create_task_group() as group:
        await begin(group, (callers.ask, "leader", "abc"), (with_own(callers, "waiter", "b", own),))
        await until_on_loop(lambda: own.computed)
        await begin(group, (callers.ask, "third", "b"))
        for event in first:
            event.set()
            await until_on_loop(lambda: "waiter" in callers.got)
        if second is not None:
            second.set()
    assert len(callers.flights) == 0
    return {name: got[0] if isinstance(got, tuple) else got for name, got in callers.got.items()}


async def test_the_leaders_result_is_used_if_it_is_first():
    """Also by a request that waits for that call, which is cancelled."""
    callers, own = ConcurrentRequests(expect=lambda _: SOON), Computer()

    got = await raced(callers, own, callers.computer.go)

    assert {"leader": "abc", "waiter": "b", "third": "b"} == got
    assert (["abc"], ["b"]) == (callers.computer.computed, own.computed)


async def test_the_own_result_is_used_if_it_is_first_and_the_leader_still_finishes():
    callers, own = ConcurrentRequests(expect=lambda _: SOON), Computer()

    got = await raced(callers, own, own.go, second=callers.computer.go)

    assert {"leader": "abc", "waiter": "b", "third": "b"} == got
    assert (["abc"], ["b"]) == (callers.computer.computed, own.computed)


@pytest.mark.parametrize("failure", [DOWN, DeadlineExceeded("late"), REFUSED])
async def test_a_failing_leader_does_not_end_the_waiters_own_call(failure):
    callers, own = ConcurrentRequests(failure, expect=lambda _: SOON), Computer()
    async with anyio.create_task_group() as group:
        await begin(group, (callers.ask, "leader", "abc"), (with_own(callers, "waiter", "b", own),))
        await until_on_loop(lambda: own.computed)
        callers.computer.go.set()
        await until_on_loop(lambda: "leader" in callers.got)
        await anyio.wait_all_tasks_blocked()
        assert "waiter" not in callers.got
        own.go.set()

    assert failure is callers.got["leader"]
    assert ("b", 1) == callers.got["waiter"]


async def test_the_failure_of_an_own_call_is_raised():
    callers, own = ConcurrentRequests(expect=lambda _: SOON), Computer(DOWN)

    got = await raced(callers, own, own.go, second=callers.computer.go)

    assert got["waiter"] is DOWN
    assert (UpstreamUnavailable, "abc") == (type(got["third"]), got["leader"])


@pytest.mark.parametrize("who", ["leader", "waiter", "both"])
async def test_cancelling_leader_or_waiter_during_an_own_call_does_not_affect_the_other(who):
    callers, own = ConcurrentRequests(expect=lambda _: SOON), Computer()
    scopes = {name: anyio.CancelScope() for name in ("leader", "waiter")}

    async def within(name, *arguments):
        with scopes[name]:
            await callers.ask(name, *arguments)

    async with anyio.create_task_group() as group:
        await begin(group, (within, "leader", "abc"), (within, "waiter", "b", TERMS, own))
        await until_on_loop(lambda: own.computed)
        for name in scopes if who == "both" else [who]:
            scopes[name].cancel()
        await anyio.wait_all_tasks_blocked()
        callers.computer.go.set()
        own.go.set()

    assert {name for name in scopes if who not in {name, "both"}} == callers.got.keys()
    assert all(
        got[0] == {"leader": "abc", "waiter": "b"}[name] for name, got in callers.got.items()
    )
    assert len(callers.flights) == 0


@pytest.mark.parametrize("seed", range(20))
async def test_in_any_order_each_request_gets_all_keys_or_its_own_error(seed):
    """Sixty requests of one to twelve keys; leaders are slow, fail, or are cancelled."""
    rng = random.Random(seed)
    flights, ends = SingleFlight(lambda _: 0.003), []

    async def compute(missing, land):
        for key, item in missing.items():
            await anyio.sleep(rng.random() * 0.003)
            land({key: EmbeddedInput(VECTOR, ord(item))})
        if rng.random() < 0.1:
            raise rng.choice(
                [UpstreamUnavailable("down"), UpstreamRejectedInput("bad"), UpstreamTimeout("slow")]
            )

    async def one():
        await anyio.sleep(rng.random() * 0.03)
        missing = work(rng.sample("abcdefghijklmnop", rng.choice([1, 1, 2, 12])))
        with anyio.move_on_after(rng.choice([0.005, 3600.0])) as time:
            try:
                found, _ = await flights.run(
                    missing, rng.choice([TERMS, TERMS, "others"]), compute, (), 0.01
                )
            except UpstreamError as error:
                ends.append(error)
            else:
                ends.append(
                    {key: result.tokens for key, result in found.items()}
                    == {key: ord(item) for key, item in missing.items()}
                )
        if time.cancelled_caught:
            ends.append(None)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(60):
                group.start_soon(one)

    assert len(ends) == 60
    assert False not in ends
    assert len(flights) == 0
