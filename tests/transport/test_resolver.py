"""Tests of the resolver: its cache, its threads, and how transports use it."""

# The plugin of anyio reads `anyio_backend`.
# ruff: noqa: ARG001

import asyncio
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial

import anyio
import pytest

from embedroute.backend import UpstreamRequest
from embedroute.errors import ConnectError
from embedroute.transport import ExchangeLimits, Resolver, TransportConfig, create_transport
from tests.fault_upstream import Upstream
from tests.support.black_hole import black_hole
from tests.support.elapsed import measured
from tests.support.wait import until_on_loop

pytestmark = pytest.mark.anyio

TRANSPORTS = [
    pytest.param(("asyncio", {"use_uvloop": False}), "http1", id="asyncio-http1"),
    pytest.param(("asyncio", {"use_uvloop": True}), "http1", id="uvloop-http1"),
    pytest.param("asyncio", "httpx2", id="asyncio-httpx2"),
    pytest.param("trio", "httpx2", id="trio-httpx2"),
]
transports = pytest.mark.parametrize(("anyio_backend", "name"), TRANSPORTS)


def address(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))


class ScriptedLookup:
    """A lookup that returns the nth of its ``answers`` at the nth call, the last one repeatedly.

    An exception is raised, and ``HANG`` waits until ``release`` is called.
    """

    HANG = "hang"

    def __init__(self, *answers):
        self.answers = list(answers)
        self.calls = []
        self.in_flight = self.most_in_flight = 0
        self.is_released = threading.Event()
        self.lock = threading.Lock()

    def release(self, *answers):
        """Let the hanging lookups return the first of ``answers``, and answer later ones so too."""
        self.answers = list(answers)
        self.is_released.set()

    def __call__(self, host, port):
        del port
        with self.lock:
            self.calls.append(host)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if answer is self.HANG:
            self.is_released.wait(30)
            answer = self.answers[0]
        with self.lock:
            self.in_flight -= 1
        if isinstance(answer, Exception):
            raise answer
        return answer


HANG = ScriptedLookup.HANG
FIRST = [address("127.0.0.1", 81)]
SECOND = [address("127.0.0.2", 82)]


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@contextmanager
def scripted(*answers):
    """A lookup, none of whose threads outlives the test."""
    lookup = ScriptedLookup(*answers)
    try:
        yield lookup
    finally:
        lookup.release([])


# The cache.


async def test_concurrent_lookups_of_a_name_are_shared():
    found = []
    with scripted(HANG) as lookup:
        resolver = Resolver(lookup)

        async def resolve():
            found.append(await resolver.resolve("a.example", 80))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(resolve)
            await until_on_loop(lambda: lookup.in_flight)
            lookup.release(FIRST)

    assert [FIRST] * 20 == found
    assert ["a.example"] == lookup.calls


@pytest.mark.parametrize(
    ("ttl", "seconds", "calls"),
    [(30.0, 29.9, 1), (30.0, 30.1, 2), (0.0, 0.0, 2)],
    ids=["cached", "expired", "off"],
)
async def test_an_answer_is_used_for_its_ttl(ttl, seconds, calls):
    clock = Clock()
    with scripted(FIRST) as lookup:
        resolver = Resolver(lookup, ttl, clock)
        for _ in range(2):
            assert FIRST == await resolver.resolve("a.example", 80)
            clock.now += seconds

    assert calls == len(lookup.calls)


async def test_hosts_and_ports_have_their_own_answers():
    with scripted(FIRST) as lookup:
        resolver = Resolver(lookup)
        for host, port in (("a.example", 80), ("b.example", 80), ("a.example", 81)):
            await resolver.resolve(host, port)

    assert ["a.example", "b.example", "a.example"] == lookup.calls


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_ip_address_needs_no_lookup(host):
    with scripted(FIRST) as lookup:
        found = await Resolver(lookup).resolve(host, 80)

    assert host == found[0][4][0]
    assert [] == lookup.calls


@pytest.mark.parametrize(
    "failure", [socket.gaierror(-3, "again"), [], HANG], ids=["fails", "empty", "hangs"]
)
async def test_an_expired_answer_is_used_if_a_lookup(failure):
    clock = Clock()
    with scripted(FIRST, failure) as lookup:
        resolver = Resolver(lookup, 30.0, clock)
        await resolver.resolve("a.example", 80)
        clock.now += 31
        async with measured() as elapsed:
            assert FIRST == await resolver.resolve("a.example", 80)
        assert elapsed.ticks < 0.45

        lookup.release(SECOND)
        await until_on_loop(lambda: not lookup.in_flight)
        clock.now += 31
        assert SECOND == await resolver.resolve("a.example", 80)


async def test_requests_do_not_wait_again_for_a_lookup_that_hangs():
    """Only the first one waits, the others get the expired answer at once."""
    clock = Clock()
    with scripted(FIRST, HANG) as lookup:
        resolver = Resolver(lookup, 30.0, clock)
        await resolver.resolve("a.example", 80)
        clock.now += 31
        await resolver.resolve("a.example", 80)
        clock.now += 0.3
        async with measured() as elapsed:
            for _ in range(20):
                assert FIRST == await resolver.resolve("a.example", 80)

    assert elapsed.ticks < 0.2
    assert 2 == len(lookup.calls)


async def test_a_failed_lookup_is_not_repeated_for_each_request_while_an_answer_is_left():
    clock = Clock()
    with scripted(FIRST, OSError("no")) as lookup:
        resolver = Resolver(lookup, 30.0, clock)
        await resolver.resolve("a.example", 80)
        clock.now += 31
        for _ in range(20):
            assert FIRST == await resolver.resolve("a.example", 80)
        assert 2 == len(lookup.calls)
        clock.now += 1.1
        assert FIRST == await resolver.resolve("a.example", 80)
        assert 3 == len(lookup.calls)


async def test_an_expired_answer_is_not_used_forever():
    """The address may belong to another host by then."""
    clock = Clock()
    with scripted(FIRST, OSError("no")) as lookup:
        resolver = Resolver(lookup, 30.0, clock)
        await resolver.resolve("a.example", 80)
        clock.now += 30 + 3601
        with pytest.raises(OSError, match="no"):
            await resolver.resolve("a.example", 80)


async def test_no_answer_is_kept_without_a_ttl():
    with scripted(FIRST, OSError("no")) as lookup:
        resolver = Resolver(lookup, 0.0)
        await resolver.resolve("a.example", 80)
        with pytest.raises(OSError, match="no"):
            await resolver.resolve("a.example", 80)


async def test_a_failure_is_not_cached():
    with scripted(socket.gaierror(-2, "unknown"), FIRST) as lookup:
        resolver = Resolver(lookup)
        with pytest.raises(socket.gaierror, match="unknown"):
            await resolver.resolve("a.example", 80)
        assert FIRST == await resolver.resolve("a.example", 80)


# Threads.


async def resolve_every_three_seconds(lookup, count):
    """Resolve one name ``count`` times, and return what was found. Release two that hang."""
    clock = Clock()
    found = []
    resolver = Resolver(lookup, 30.0, clock)

    async def resolve():
        found.append(await resolver.resolve("a.example", 80))

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(resolve)
            await anyio.sleep(0.01)
            clock.now += 3
        lookup.answers = [SECOND]
        if lookup.in_flight == 2:
            lookup.release(SECOND)
    return found


async def test_at_most_two_lookups_of_a_name_are_in_flight():
    with scripted(HANG, HANG, FIRST) as lookup:
        assert [SECOND] * 6 == await resolve_every_three_seconds(lookup, 6)

    assert 2 == lookup.most_in_flight


async def test_a_second_lookup_serves_those_who_wait_for_one_that_hangs():
    with scripted(HANG, SECOND) as lookup:
        assert [SECOND] * 3 == await resolve_every_three_seconds(lookup, 3)
        assert 1 == lookup.in_flight


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_hanging_lookups_leave_the_default_threads_of_the_loop_alone(anyio_backend):
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    with scripted(HANG) as lookup:
        resolver = Resolver(lookup)
        for number in range(40):
            with pytest.raises(ConnectError):
                await resolver.resolve(f"{number}.example", 80, 0.001)
        assert 40 == lookup.in_flight
        with anyio.fail_after(10):
            assert 1 == await asyncio.to_thread(lambda: 1)
            assert 1 == await anyio.to_thread.run_sync(lambda: 1)


HANGING = """
import asyncio, time
from embedroute.errors import ConnectError
from embedroute.transport import Resolver

async def main():
    try:
        await Resolver(lambda host, port: time.sleep(60)).resolve("a.example", 80, 0.1)
    except ConnectError as error:
        print(error)

asyncio.run(main())
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_hanging_lookup_does_not_prevent_the_exit_of_the_process(anyio_backend):
    ran = subprocess.run(  # noqa: ASYNC221, S603 - nothing else runs on this loop
        [sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=30, check=True
    )

    assert "timed out after 0.1 s" in ran.stdout
    assert ran.stderr == ""


async def test_a_lookup_may_end_after_its_event_loop():
    with scripted(HANG) as lookup:

        async def give_up():
            with pytest.raises(ConnectError):
                await Resolver(lookup).resolve("a.example", 80, 0.01)

        await anyio.to_thread.run_sync(lambda: anyio.run(give_up))
        lookup.release(FIRST)
        await until_on_loop(lambda: not lookup.in_flight)


# The time limit of a lookup.


async def test_a_lookup_goes_on_after_its_time_limit_and_fills_the_cache():
    with scripted(HANG) as lookup:
        resolver = Resolver(lookup)
        async with measured() as elapsed:
            with pytest.raises(ConnectError, match=r"DNS lookup timed out after 0\.3 s"):
                await resolver.resolve("a.example", 80, 0.3)
        assert elapsed.seconds >= 0.29
        async with measured() as elapsed:
            with pytest.raises(ConnectError, match="timed out"):
                await resolver.resolve("a.example", 80, 0.3)
        assert elapsed.ticks < 0.2
        lookup.release(FIRST)
        assert FIRST == await resolver.resolve("a.example", 80, 5.0)

    assert ["a.example"] == lookup.calls


# Transports.


async def send(transport, url, timeout=8.0, **limits):
    request = UpstreamRequest.json(url, {"input": ["a"]})
    return await transport.send(request, timeout, ExchangeLimits(rest=0.0, **limits))


def make_transport(name, lookup, config=None, **options):
    on_asyncio = name == "http1"
    return create_transport(
        "auto",
        config or TransportConfig(),
        None,
        on_asyncio=on_asyncio,
        resolver=Resolver(lookup, **options),
    )


@transports
async def test_a_name_is_looked_up_once_for_several_connections(anyio_backend, name):
    with Upstream(delay=0.1) as upstream:
        here = [address("127.0.0.1", upstream.port)]
        with scripted(here) as lookup:
            transport = make_transport(name, lookup)
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(send, transport, "http://a.example/v1/embeddings")
            await transport.aclose()

    assert 5 == upstream.most_in_flight
    assert ["a.example"] == lookup.calls
    assert {"a.example"} == {ask.headers["host"] for ask in upstream.requests}


@transports
async def test_a_host_that_cannot_be_reached_is_looked_up_again(anyio_backend, name):
    with Upstream() as upstream:
        here = [address("127.0.0.1", upstream.port)]
        with scripted([address("127.0.0.1", 9)], here) as lookup:
            transport = make_transport(name, lookup)
            with pytest.raises(ConnectError):
                await send(transport, "http://a.example/v1/embeddings")
            assert 200 == (await send(transport, "http://a.example/v1/embeddings")).status
            await transport.aclose()


@transports
@pytest.mark.parametrize("first", ["127.0.0.1", "::1"])
async def test_the_next_address_is_tried_if_the_first_refuses(anyio_backend, name, first):
    with Upstream() as upstream:
        found = [address(first, 9), address("127.0.0.1", upstream.port)]
        with scripted(found) as lookup:
            transport = make_transport(name, lookup)
            for _ in range(2):
                assert 200 == (await send(transport, "http://a.example/v1/embeddings")).status
            await transport.aclose()


@transports
async def test_a_slow_lookup_is_awaited_if_nothing_limits_it(anyio_backend, name):
    """It may be the request's only endpoint."""
    with Upstream() as upstream, scripted(HANG) as lookup:
        transport = make_transport(name, lookup)
        replies = []

        async def ask():
            replies.append(await send(transport, "http://a.example/v1/embeddings"))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.sleep(0.8)
            lookup.release([address("127.0.0.1", upstream.port)])
        await transport.aclose()

    assert [200] == [reply.status for reply in replies]


@transports
async def test_a_limited_lookup_is_a_connect_error(anyio_backend, name):
    with scripted(HANG) as lookup:
        transport = make_transport(name, lookup)
        async with measured() as elapsed:
            with pytest.raises(ConnectError, match=r"DNS lookup timed out after 0\.1 s"):
                await send(transport, "http://a.example/v1/embeddings", dns_timeout=0.1)
        await transport.aclose()

    assert elapsed.ticks < 0.6


@transports
@pytest.mark.parametrize(
    "failure",
    [socket.gaierror(-2, "unknown"), UnicodeError("label too long"), []],
    ids=["gaierror", "unicode", "empty"],
)
async def test_a_failed_lookup_is_a_connect_error(anyio_backend, name, failure):
    with scripted(failure) as lookup:
        transport = make_transport(name, lookup)
        with pytest.raises(ConnectError, match="Cannot connect to the upstream"):
            await send(transport, "http://a.example/v1/embeddings")
        await transport.aclose()


# All addresses of a name.


@contextmanager
def upstreams(count, **options):
    """Run several upstreams, and yield them with their addresses."""
    with ExitStack() as stack:
        running = [stack.enter_context(Upstream(**options)) for _ in range(count)]
        yield running, [address("127.0.0.1", upstream.port) for upstream in running]


def counts(running):
    return [len(upstream.requests) for upstream in running]


A = "http://a.example/v1/embeddings"


@transports
@pytest.mark.parametrize(
    ("all_addresses", "expected"), [(True, [4, 4, 4]), (False, [12, 0, 0])], ids=["all", "one"]
)
async def test_requests_one_after_another_use_each_address_in_turn(
    anyio_backend, name, all_addresses, expected
):
    """A kept connection would pin one of them."""
    with upstreams(3) as (running, addresses), scripted(addresses) as lookup:
        transport = make_transport(name, lookup)
        for _ in range(12):
            await send(transport, A, all_addresses=all_addresses)
        await transport.aclose()

    assert expected == counts(running)
    if name == "http1":
        assert [int(each > 0) for each in expected] == [each.connections for each in running]


@transports
async def test_the_address_with_the_fewest_requests_in_flight_is_used(anyio_backend, name):
    with upstreams(2) as (running, addresses), scripted(addresses) as lookup:
        slow, quick = running
        slow.mode = "stalled"
        transport = make_transport(name, lookup)
        async with anyio.create_task_group() as group:
            group.start_soon(partial(send, transport, A, 60.0, all_addresses=True))
            await until_on_loop(lambda: slow.requests)
            for _ in range(10):
                assert 200 == (await send(transport, A, all_addresses=True)).status
            group.cancel_scope.cancel()
        await transport.aclose()

    assert 1 == len(slow.requests)
    assert 10 == len(quick.requests)


@transports
async def test_a_cancelled_request_is_not_in_flight_any_more(anyio_backend, name):
    with upstreams(2) as (running, addresses), scripted(addresses) as lookup:
        running[0].mode = "stalled"
        transport = make_transport(name, lookup)
        with anyio.move_on_after(0.3):
            await send(transport, A, 60.0, all_addresses=True)
        running[0].mode = "honest"
        for _ in range(4):
            await send(transport, A, all_addresses=True)
        await transport.aclose()

    assert [3, 2] == counts(running)


@transports
async def test_an_address_that_cannot_be_reached_is_replaced_and_then_avoided(anyio_backend, name):
    """Only the first request waits for that address, and its own connection is not used for others."""
    with upstreams(2) as (running, addresses), black_hole() as hole:
        addresses.insert(0, address(*hole))
        with scripted(addresses) as lookup:
            transport = make_transport(name, lookup)
            async with measured() as elapsed:
                for _ in range(9):
                    assert 200 == (await send(transport, A, all_addresses=True)).status
            if name == "http1":
                with anyio.fail_after(10):  # before it is closed for being idle
                    await until_on_loop(lambda: [1, 1] == [len(each.open) for each in running])
            await transport.aclose()

    assert elapsed.ticks < 1.9
    assert max(counts(running)) <= 5


@transports
async def test_an_address_that_the_name_has_lost_is_not_used_any_more(anyio_backend, name):
    with upstreams(2) as (running, addresses), scripted(addresses) as lookup:
        transport = make_transport(name, lookup, ttl=0.0)
        for _ in range(4):
            await send(transport, A, all_addresses=True)
        lookup.answers = [addresses[1:]]
        for _ in range(4):
            await send(transport, A, all_addresses=True)
        with anyio.fail_after(10):
            await until_on_loop(lambda: not running[0].open)
        await transport.aclose()

    assert [2, 6] == counts(running)


@transports
async def test_all_addresses_are_tried_before_a_request_fails(anyio_backend, name):
    dead = [address("127.0.0.1", port) for port in (9, 10, 11)]
    with upstreams(1) as (running, alive), scripted(dead + alive, dead) as lookup:
        transport = make_transport(name, lookup, ttl=0.0)
        assert 200 == (await send(transport, A, all_addresses=True)).status
        with pytest.raises(ConnectError):
            await send(transport, A, all_addresses=True)
        await transport.aclose()

    assert [1] == counts(running)
