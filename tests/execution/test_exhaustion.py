"""Failures of the gateway's own process: no file descriptors, no threads, a late event loop.

None of them may count against an upstream.
"""

# The plugin of anyio reads `anyio_backend`.
# ruff: noqa: ARG001

import asyncio
import errno
import json
import logging
import socket
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from embedroute import Config, EmbedrouteError, Gateway, Provider
from embedroute.backend import UpstreamRequest
from embedroute.errors import (
    ConnectError,
    DeadlineExceeded,
    ResourcesExhausted,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.exhaustion import ExhaustionLog, find_exhaustion
from embedroute.routing import RetryPolicy, State
from embedroute.testing import ScriptedBackend
from embedroute.transport import ExchangeLimits, TransportConfig, create_transport
from tests.fault_upstream import Upstream
from tests.support.black_hole import black_hole
from tests.support.slow import thorough_unless
from tests.support.wait import until_on_loop

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]

LOOPS = [
    pytest.param(("asyncio", {"use_uvloop": False}), "http1", id="asyncio-http1"),
    pytest.param(("asyncio", {"use_uvloop": True}), "http1", id="uvloop-http1"),
    pytest.param("asyncio", "httpx2", id="asyncio-httpx2"),
    pytest.param("trio", "httpx2", id="trio-httpx2"),
]
transports = pytest.mark.parametrize(("anyio_backend", "name"), LOOPS)
only_http1 = pytest.mark.parametrize(("anyio_backend", "name"), LOOPS[:2])


def make_gateway(provider, **settings):
    return Gateway(
        Config(
            gateway={"auth": "open", **settings},
            cache={"bytes": 0},
            providers={"one": provider},
            models={"m": {"dimensions": 8, "endpoints": [{"provider": "one"}]}},
        ),
        environ={},
    )


def health_of(gateway):
    return gateway.healths.get(gateway.models.routes["m"].candidates[0])


async def outcome_of(gateway, text="text"):
    try:
        return await gateway.embed(text, model="m")
    except EmbedrouteError as error:
        return error


# Which errors are the process's own.


def caused_by(cause):
    error = OSError("All connection attempts failed")
    error.__cause__ = cause
    return error


TOO_MANY_FILES = OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    ("error", "resource"),
    [
        (TOO_MANY_FILES, "file descriptors"),
        (OSError(errno.ENFILE, "x"), "file descriptors"),
        (OSError(errno.ENOBUFS, "x"), "socket buffers"),
        (OSError(errno.ENOMEM, "x"), "memory"),
        (RuntimeError("can't start new thread"), "threads"),
        (caused_by(TOO_MANY_FILES), "file descriptors"),
        (caused_by(ExceptionGroup("two", [OSError(1, "x"), TOO_MANY_FILES])), "file descriptors"),
        (OSError(errno.ECONNREFUSED, "x"), None),
        (OSError("Multiple exceptions"), None),
        (OSError(errno.EBUSY, "Device or resource busy"), None),
        (socket.gaierror(errno.EMFILE, "a code of the resolver, not of the system"), None),
        (RuntimeError("Event loop is closed"), None),
        (ValueError("x"), None),
    ],
    ids=str,
)
def test_recognises_the_errors_of_its_own_process(error, resource):
    found = find_exhaustion(error)

    assert resource == (found.resource if found else None)


def test_the_context_of_an_error_counts_only_if_the_gateway_made_it():
    """A host may call the gateway while it handles an error of its own."""
    inner = OSError(errno.ECONNREFUSED, "refused")
    inner.__context__ = TOO_MANY_FILES

    assert find_exhaustion(inner) is None
    assert find_exhaustion(inner, with_context=True, outside=TOO_MANY_FILES) is None
    assert find_exhaustion(inner, with_context=True)


@pytest.mark.parametrize(
    "error", [TOO_MANY_FILES, RuntimeError("can't start new thread")], ids=["files", "threads"]
)
async def test_a_backend_without_resources_does_not_count_against_its_endpoint(error, caplog):
    caplog.set_level(logging.ERROR, "embedroute.limits")
    gateway = make_gateway(Provider(backend=ScriptedBackend(script=[error] * 20)))
    failures = [await outcome_of(gateway, f"text {number}") for number in range(20)]

    assert {(503, "overloaded", 1.0)} == {
        (each.status, each.code, each.retry_after) for each in failures
    }
    assert State.CLOSED is health_of(gateway).state(time.monotonic())
    assert 0 == health_of(gateway).failure_share(time.monotonic())
    assert 1 == len(caplog.records)
    assert "Raise its limit" in caplog.messages[0]
    assert not isinstance(await outcome_of(gateway), EmbedrouteError)


def test_logs_each_resource_once_per_minute(caplog):
    now = 0.0
    exhaustion_log = ExhaustionLog(lambda: now)
    for now in (0.0, 30.0, 59.0, 61.0):  # noqa: B007 - the clock reads it
        for error in (TOO_MANY_FILES, OSError(errno.ENOMEM, "x")):
            exhaustion_log.record(find_exhaustion(error))

    assert ["file descriptors", "memory"] * 2 == [record.resource for record in caplog.records]


# File descriptors and threads, in a process of its own.

SETUP = """
import asyncio, json, logging, os, resource, socket, sys, threading, time
import anyio
from embedroute import Config, EmbedrouteError, Gateway, Provider
from embedroute.exhaustion import find_exhaustion
from embedroute.transport import TransportConfig, create_transport

name, loop, url = sys.argv[1:]
records = []
handler = logging.Handler()
handler.emit = lambda record: records.append(record.getMessage())
logging.getLogger("embedroute.limits").addHandler(handler)

def make_gateway(transport, **provider):
    return Gateway(Config(
        gateway={"auth": "open"}, cache={"bytes": 0},
        providers={"one": Provider(backend="openai", options={"base_url": url}, **provider)},
        models={"m": {"dimensions": 8, "endpoints": [{"provider": "one"}]}},
    ), environ={}, transport=lambda: transport)

async def outcome_of(gateway, text):
    try:
        await gateway.embed(text, model="m")
    except EmbedrouteError as error:
        return [error.status, error.code, error.retry_after is not None]
    return 200

async def outcomes_of(gateway, count):
    found = []
    async def embed(number):
        found.append(await outcome_of(gateway, f"text {number}"))
    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(embed, number)
    return found

def use_all_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    used = []
    try:
        while True:
            used.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return used

async def main():
    # Without a DNS cache, so that a name has to be looked up again.
    config = TransportConfig(dns_ttl=0.0)
    transport = create_transport(name, config, None, on_asyncio=loop != "trio")
    report = await check(transport)
    await transport.aclose()
    print(json.dumps({**report, "records": records}))

def run():
    anyio.run(
        main,
        backend="trio" if loop == "trio" else "asyncio",
        backend_options={"use_uvloop": True} if loop == "uvloop" else {},
    )
"""

FILES = """
async def check(transport):
    gateway = make_gateway(transport)
    before = await outcome_of(gateway, "warm")  # imports what is needed
    await transport.aclose()
    used = use_all_files()
    failed = [await outcomes_of(gateway, 10) for _ in range(2)]
    unclear = [
        found and found.resource
        for found in map(find_exhaustion, (
            socket.gaierror(-2, "Name or service not known"),
            OSError(16, "Device or resource busy"),
            OSError(111, "Connection refused"),
        ))
    ]
    for file in used:
        os.close(file)
    after = await outcomes_of(gateway, 10)
    return {"before": before, "failed": failed, "unclear": unclear, "after": after}

run()
"""


def run_script(script, name, loop, url):
    ran = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-c", SETUP + script, name, loop, url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("host", thorough_unless("localhost".__eq__, ["127.0.0.1", "localhost"]))
@pytest.mark.parametrize(
    ("name", "loop"),
    [("http1", "asyncio"), ("http1", "uvloop"), ("httpx2", "asyncio"), ("httpx2", "trio")],
)
def test_without_file_descriptors_requests_fail_and_the_next_ones_succeed(name, loop, host):
    with Upstream() as upstream:
        url = upstream.url.replace("127.0.0.1", host)
        report = run_script(FILES, name, loop, url)

    assert 200 == report["before"]
    assert [[[503, "overloaded", True]] * 10] * 2 == report["failed"]
    assert ["file descriptors", "file descriptors", None] == report["unclear"]
    assert [200] * 10 == report["after"]
    assert 1 == len(report["records"])
    assert "ulimit -n" in report["records"][0]


IDLE = """
async def check(transport):
    gateway = make_gateway(transport, connection_rest_ms=10_000)
    before = await outcome_of(gateway, "warm")
    use_all_files()
    return {"before": before, "after": await outcome_of(gateway, "text")}

run()
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_without_file_descriptors_idle_connections_are_closed(loop):
    with Upstream() as upstream:
        report = run_script(IDLE, "http1", loop, upstream.url)

    assert {"before": 200, "after": 200, "records": []} == report


THREADS = """
def use_all_threads():
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    threading.stack_size(1 << 30)  # a thread needs more than the limit leaves
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 28), resource.RLIM_INFINITY))

async def check(transport):
    gateway = make_gateway(transport)
    before = await outcome_of(gateway, "warm")
    await transport.aclose()
    use_all_threads()
    failed = await outcomes_of(gateway, 10)
    threading.stack_size(0)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return {"before": before, "failed": failed, "after": await outcomes_of(gateway, 10)}

run()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("name", "loop"), [("http1", "asyncio"), ("httpx2", "trio")])
def test_without_threads_requests_fail_and_the_next_ones_succeed(name, loop):
    with Upstream() as upstream:
        url = upstream.url.replace("127.0.0.1", "localhost")
        report = run_script(THREADS, name, loop, url)

    assert [[503, "overloaded", True]] * 10 == report["failed"]
    assert [200] * 10 == report["after"]
    assert 1 == len(report["records"])
    assert "cannot start another thread" in report["records"][0]


LARGE_ANSWER = """
from embedroute.testing import ScriptedBackend

async def check(transport):
    gateway = Gateway(Config(
        gateway={"auth": "open"}, cache={"bytes": 0},
        providers={"one": Provider(backend=ScriptedBackend(width=256))},
        models={"m": {"dimensions": 256, "endpoints": [{"provider": "one"}]}},
    ), environ={})
    texts = [f"text {number}" for number in range(2048)]
    await outcome_of(gateway, "warm")
    use_all_threads()
    failed = await outcome_of(gateway, texts)
    threading.stack_size(0)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return {"failed": failed, "after": await outcome_of(gateway, texts)}

run()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_without_threads_a_large_answer_is_a_503(loop):
    """A worker thread validates it, after the call of the backend has ended."""
    script = THREADS[: THREADS.index("async def check")] + LARGE_ANSWER
    report = run_script(script, "httpx2", loop, "http://127.0.0.1:9")

    assert [503, "overloaded", True] == report["failed"]
    assert 200 == report["after"]
    assert 1 == len(report["records"])
    assert "cannot start another thread" in report["records"][0]


LARGE_ERROR = """
from embedroute.errors import UpstreamRejectedInput
from embedroute.testing import ScriptedBackend

async def check(transport):
    error = UpstreamRejectedInput("The input is invalid.")
    backend = ScriptedBackend(script=[error] * 20)
    gateway = Gateway(Config(
        gateway={"auth": "open"}, cache={"bytes": 0},
        providers={"one": Provider(backend=backend)},
        models={"m": {"endpoints": [{"provider": "one"}]}},
    ), environ={})
    texts = [f"{number} " + "x" * 20_000 for number in range(200)]
    use_all_threads()
    return {"failed": await outcome_of(gateway, texts)}

run()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_without_threads_the_error_of_a_large_request_is_a_503():
    """A worker thread compares it with the inputs."""
    script = THREADS[: THREADS.index("async def check")] + LARGE_ERROR
    report = run_script(script, "httpx2", "asyncio", "http://127.0.0.1:9")

    assert [503, "overloaded", True] == report["failed"]
    assert 1 == len(report["records"])
    assert "cannot start another thread" in report["records"][0]


# A late event loop.


async def block(after, seconds):
    """Block the event loop for ``seconds``, as bad code of a host does."""
    await anyio.sleep(after)
    time.sleep(seconds)  # noqa: ASYNC251 - it must block


async def send_while_blocked(name, url, timeout, inputs=1, blocked=1.5):
    """Send a request to ``url`` while the event loop is blocked, and return its outcome."""
    transport = create_transport(name, TransportConfig(), None, on_asyncio=name == "http1")
    request = UpstreamRequest.json(url, {"input": ["a"] * inputs})
    outcome = None
    async with anyio.create_task_group() as group:
        group.start_soon(block, 0.1, blocked)
        try:
            outcome = (await transport.send(request, timeout)).status
        except EmbedrouteError as error:
            outcome = error
    await transport.aclose()
    return outcome


async def one_of_three(kind, name, url, timeout, blocked):
    """Return whether a request ends with ``kind``: a busy machine is late now and then."""
    for _ in range(3):
        if type(await send_while_blocked(name, url, timeout, blocked=blocked)) is kind:
            return True
    return False


@only_http1
async def test_a_response_that_arrived_while_the_loop_was_blocked_is_used(anyio_backend, name):
    """It is larger than one read, so that reading it takes several iterations of the loop."""
    with Upstream(delay=0.2) as upstream:
        outcome = await send_while_blocked(name, f"{upstream.url}/embeddings", 0.5, inputs=8000)

    assert 200 == outcome


@only_http1
async def test_the_late_timeout_of_a_request_does_not_end_the_next_one(anyio_backend, name):
    """The second request uses the connection of the first."""
    limits = ExchangeLimits(rest=0.0)
    with Upstream(delay=0.2) as upstream:
        url = f"{upstream.url}/embeddings"
        transport = create_transport(name, TransportConfig(), None, on_asyncio=True)
        many = UpstreamRequest.json(url, {"input": ["a"] * 8000})
        one = UpstreamRequest.json(url, {"input": ["a"]})
        async with anyio.create_task_group() as group:
            group.start_soon(block, 0.1, 1.5)
            assert 200 == (await transport.send(many, 0.5, limits)).status
        assert 200 == (await transport.send(one, 8.0, limits)).status
        await transport.aclose()

    assert 1 == upstream.connections


@only_http1
async def test_a_connection_that_was_made_while_the_loop_was_blocked_is_used(anyio_backend, name):
    """The loop is blocked before it learns that the connection is open."""
    with Upstream() as upstream:
        transport = create_transport(name, TransportConfig(), None, on_asyncio=True)
        request = UpstreamRequest.json(f"{upstream.url}/embeddings", {"input": ["a"]})
        call = asyncio.ensure_future(transport.send(request, 0.5))
        await asyncio.sleep(0)
        time.sleep(1.5)  # noqa: ASYNC251 - it must block
        await asyncio.wait([call])
        # On a busy machine the response may come too late.
        assert call.exception() is None or isinstance(call.exception(), ResourcesExhausted)
        await until_on_loop(lambda: upstream.requests)
        await transport.aclose()


@transports
async def test_a_timeout_of_a_late_loop_is_not_the_upstreams(anyio_backend, name):
    with Upstream("stalled") as upstream:
        url = f"{upstream.url}/embeddings"
        outcome = await send_while_blocked(name, url, 0.5)
        on_time = await one_of_three(UpstreamTimeout, name, url, 0.5, blocked=0.0)

    assert isinstance(outcome, ResourcesExhausted)
    assert "event loop was blocked for" in outcome.message
    assert (503, "overloaded", 1.0) == (outcome.status, outcome.code, outcome.retry_after)
    assert on_time


@transports
async def test_a_small_lag_does_not_excuse_a_slow_upstream(anyio_backend, name):
    with Upstream("stalled") as upstream:
        url = f"{upstream.url}/embeddings"
        assert await one_of_three(UpstreamTimeout, name, url, 0.4, blocked=0.4)


@transports
async def test_a_connect_timeout_of_a_late_loop_is_not_the_upstreams(anyio_backend, name):
    with black_hole() as (host, port):
        url = f"http://{host}:{port}/v1"
        outcome = await send_while_blocked(name, url, 0.5)
        on_time = await one_of_three(ConnectError, name, url, 0.5, blocked=0.0)

    assert isinstance(outcome, ResourcesExhausted)
    assert on_time


@pytest.mark.slow
@pytest.mark.parametrize(("anyio_backend", "name"), LOOPS[2:])
async def test_the_connect_timeout_of_httpx2_is_excused_by_a_late_loop(anyio_backend, name):
    """Connecting may take 5 s, so that it ends before the request does."""
    with black_hole() as (host, port):
        url = f"http://{host}:{port}/v1"
        outcome = await send_while_blocked(name, url, 30.0, blocked=7.0)

    assert isinstance(outcome, ResourcesExhausted)


@transports
async def test_a_deadline_of_a_late_loop_does_not_count_against_the_endpoint(anyio_backend, name):
    with Upstream() as upstream:
        gateway = make_gateway(
            Provider(backend="openai", options={"base_url": upstream.url}),
            transport="auto" if name == "http1" else name,
            deadline=1.5,
        )
        # The first call connects, which takes long on a busy machine.
        assert not isinstance(await outcome_of(gateway), EmbedrouteError)
        upstream.mode = "stalled"
        outcomes = []
        for seconds in (2.5, 0.0):
            async with anyio.create_task_group() as group:
                group.start_soon(block, 0.1, seconds)
                outcomes.append(await outcome_of(gateway))
            outcomes.append(health_of(gateway).failure_share(time.monotonic()) > 0)
        await gateway.runtime.close(await gateway.runtime.get())

    late, blamed_when_late, on_time, blamed_on_time = outcomes
    assert isinstance(late, ResourcesExhausted)
    assert not blamed_when_late
    assert isinstance(on_time, DeadlineExceeded | UpstreamError)
    assert blamed_on_time


@pytest.mark.anyio
async def test_a_repeat_that_this_process_could_not_send_says_nothing_about_repeats():
    down, spent = UpstreamUnavailable("reset"), ResourcesExhausted("no file descriptors left")
    backend = ScriptedBackend(script=[down, spent] * 8, width=8)
    config = Config(
        gateway={"auth": "open"},
        providers={"p": Provider(backend=backend)},
        models={"m": {"dimensions": 8, "endpoints": [{"provider": "p"}]}},
    )
    gateway = Gateway(config, retries=RetryPolicy(repeats=0, first_wait=0.0), environ={})
    for _ in range(8):
        with pytest.raises(EmbedrouteError):
            await gateway.embed("a", model="m")

    (health,) = (gateway.healths.get(each) for each in gateway.models.resolve("m").candidates)
    assert health.retries_help(gateway.clock())
