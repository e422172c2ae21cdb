"""Equal inputs of concurrent requests: computed once, whoever comes, leaves, or fails."""

# A script plays the same whatever it is asked.
# ruff: noqa: ARG001

import anyio
import pytest

from embedroute.errors import DeadlineExceeded, InputRefused, KeyRefused, RateLimited, TimedOut, Unavailable
from embedroute.flights import Flights
from embedroute.routing.plan import Embedded
from embedroute.vectors import from_lists

pytestmark = pytest.mark.anyio

VECTOR = from_lists([[1.0, 2.0]])[0]
TERMS = ("a:m",)


def work(keys):
    return {key.encode(): key for key in keys}


class Computer:
    """Computes when told to; ``computed`` holds what it was asked, in order."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.computed: list[str] = []
        self.go = anyio.Event()

    async def __call__(self, asked, land):
        self.computed.append("".join(asked.values()))
        failure = self.failures.pop(0) if self.failures else None
        await self.go.wait()
        if failure is not None:
            raise failure
        land({key: Embedded(VECTOR, len(item)) for key, item in asked.items()})


class Party:
    """Requests that share one set of flights."""

    def __init__(self, *failures):
        self.flights, self.computer = Flights(), Computer(*failures)
        self.got: dict[str, object] = {}

    async def ask(self, name, keys, terms=TERMS):
        try:
            found, led = await self.flights.share(work(keys), terms, self.computer, ())
        except Exception as error:  # noqa: BLE001 - what it got
            self.got[name] = error
        else:
            self.got[name] = (b"".join(sorted(found)).decode(), led)

    async def meet(self, *asks):
        """Let each of ``asks`` begin before the next, then compute."""
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
        ([("1", "ab"), ("2", "bc"), ("3", "ca")], ["ab", "c"], {"1": ("ab", 2), "2": ("bc", 1), "3": ("ac", 0)}),
        ([("1", "a"), ("2", "a", ("b:m",))], ["a"], {"1": ("a", 1), "2": ("a", 0)}),
        ([("1", "a"), ("2", "a", None)], ["a", "a"], {"1": ("a", 1), "2": ("a", 1)}),
    ],
)
async def test_a_key_is_computed_once_for_all_who_want_it(asks, computed, got):
    party = Party()

    assert got == await party.meet(*asks)
    assert computed == party.computer.computed


REFUSED = InputRefused("poison")
DOWN = Unavailable("down")


@pytest.mark.parametrize(
    ("failure", "leader", "waiter", "shared"),
    [
        (DOWN, ("ab", TERMS), ("b", TERMS), True),
        (KeyRefused("no"), ("ab", TERMS), ("bc", TERMS), True),
        (DOWN, ("ab", TERMS), ("b", ("b:m",)), False),
        (TimedOut("slow"), ("ab", TERMS), ("b", TERMS), False),
        (DeadlineExceeded("late"), ("ab", TERMS), ("b", TERMS), False),
        (RateLimited("wait", retry_after=0.7), ("ab", TERMS), ("b", TERMS), False),
        (RateLimited("wait"), ("ab", TERMS), ("b", TERMS), False),
        # No rest at all fits into every deadline: the leader's budget was spent, and so is the waiter's.
        (RateLimited("wait", retry_after=0), ("ab", TERMS), ("b", TERMS), True),
        (Unavailable("down", retry_after=0.7), ("ab", TERMS), ("b", TERMS), True),
        (REFUSED, ("ab", TERMS), ("ab", TERMS), True),
        (REFUSED, ("b", TERMS), ("bc", TERMS), True),
        # "a" may be the poison, and the waiter never asked for it.
        (REFUSED, ("ab", TERMS), ("b", TERMS), False),
        (REFUSED, ("ab", TERMS), ("bc", TERMS), False),
    ],
)
async def test_a_waiter_shares_only_an_error_that_would_be_its_own(failure, leader, waiter, shared):
    party = Party(failure)

    got = await party.meet(("leader", *leader), ("waiter", *waiter))

    assert failure is got["leader"]
    assert shared == (got["waiter"] is failure)
    if not shared:
        assert waiter[0] == got["waiter"][0]


@pytest.mark.parametrize(("terms", "computed"), [(TERMS, ["ab", "c"]), ("others", ["ab", "c", "b"])])
async def test_who_computes_on_other_terms_is_waited_for_within_bounds(terms, computed):
    """It may be stuck at an endpoint that the waiter does not even ask; who computes on the same terms is of no other mind."""
    party, met = Party(), []

    async def wait():
        met.append(await party.flights.share(work("bc"), terms, second, (), patience=0.05))

    async def second(asked, land):
        party.computer.computed.append("".join(asked.values()))
        land({key: Embedded(VECTOR, len(item)) for key, item in asked.items()})

    async with anyio.create_task_group() as group:
        group.start_soon(party.ask, "leader", "ab")
        await anyio.wait_all_tasks_blocked()
        group.start_soon(wait)
        await anyio.sleep(0.2)
        assert computed == party.computer.computed
        party.computer.go.set()

    assert [{b"b", b"c"}] == [set(found) for found, _ in met]
    assert party.got["leader"] == ("ab", 2)
    assert len(party.flights) == 0


async def test_what_has_landed_is_in_flight_no_more():
    flights, waiting = Flights(), anyio.Event()

    async def half(asked, land):
        land({b"a": Embedded(VECTOR, 1)})
        await waiting.wait()
        raise DOWN

    async def lead():
        with pytest.raises(Unavailable):
            await flights.share(work("ab"), TERMS, half, ())

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await anyio.wait_all_tasks_blocked()
        computer = Computer()
        computer.go.set()
        found, led = await flights.share(work("a"), TERMS, computer, ())
        waiting.set()

    # The cache has it by then; without one it is computed again, and nobody waits for the leader's other keys.
    assert (found.keys(), led) == ({b"a"}, 1)


@pytest.mark.parametrize("waiters", [1, 3])
async def test_a_cancelled_leader_hands_over_and_one_waiter_leads(waiters):
    party = Party()
    async with anyio.create_task_group() as group:
        leader = anyio.CancelScope()

        async def led():
            with leader:
                await party.ask("leader", "ab")

        group.start_soon(led)
        await anyio.wait_all_tasks_blocked()
        for at in range(waiters):
            group.start_soon(party.ask, str(at), "ab")
            await anyio.wait_all_tasks_blocked()
        leader.cancel()
        await anyio.wait_all_tasks_blocked()
        party.computer.go.set()

    assert ["ab", "ab"] == party.computer.computed
    assert sorted([("ab", 2), *[("ab", 0)] * (waiters - 1)]) == sorted(party.got.values())
    assert len(party.flights) == 0


async def test_a_cancelled_waiter_disturbs_nobody():
    party = Party()
    async with anyio.create_task_group() as group:
        group.start_soon(party.ask, "leader", "a")
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.01):
            await party.ask("waiter", "a")
        party.computer.go.set()

    assert party.got == {"leader": ("a", 1)}
    assert ["a"] == party.computer.computed
