"""Credentials that a backend obtains at run time: fetched once, renewed in time, and signed last."""

# A scripted backend does not depend on all that it is given.
# ruff: noqa: ARG002

import math
import threading
from functools import partial

import anyio
import msgspec
import pytest

from embedroute.backend import (
    Batch,
    Credentials,
    HTTPBackend,
    Secret,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
)
from embedroute.errors import UpstreamAuthError, UpstreamTimeout, UpstreamUnavailable
from embedroute.execution import CallResources, CredentialStore, LocalModels, call_backend

pytestmark = pytest.mark.anyio

BATCH = Batch(model="m", texts=["a"], width=2)
ROWS = UpstreamResponse(200, {}, b'{"rows":[[1,2]]}')


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class ScriptedTransport:
    """A transport that answers with one status after the other, then with vectors."""

    name = "scripted"

    def __init__(self, *statuses):
        self.statuses = list(statuses)
        self.requests = []

    async def send(self, request, timeout, limits):
        assert timeout > 0
        assert limits
        self.requests.append(request)
        if request.url.endswith("/token"):
            return UpstreamResponse(200, {}, b'{"token":"from-iam"}')
        status = self.statuses.pop(0) if self.statuses else 200
        return ROWS if status == 200 else UpstreamResponse(status, {}, b"{}")

    async def aclose(self):
        pass

    @property
    def sent(self):
        """The credentials of each request."""
        values = (request.headers.get("authorization") for request in self.requests)
        return [value and value.reveal() for value in values]


class Plain(HTTPBackend, frozen=True, kw_only=True):
    def build(self, batch):
        return UpstreamRequest.json("http://host/embed", {"texts": batch.texts, "user": "u"})

    def parse(self, batch, response):
        return Vectors.from_lists(response.json()["rows"])


class Tokens(Plain, frozen=True, kw_only=True):
    """Each fetch returns the next of ``results``: a lifetime in seconds, or an error."""

    results: list[object]
    fetched: list[str] = msgspec.field(default_factory=list)

    def fetch_credentials(self, send):
        self.fetched.append(threading.current_thread().name)
        result = self.results.pop(0)
        if isinstance(result, BaseException):
            raise result
        if result is None:
            return None
        return Credentials.bearer(Secret(f"token-{len(self.fetched)}"), result)


async def call(backend, transport, store, timeout=5.0, **options):
    resources = CallResources(transport=transport, local=LocalModels(), credentials=store)
    return await call_backend(backend, BATCH, resources, timeout, **options)


async def test_credentials_are_fetched_once_and_kept():
    transport = ScriptedTransport()
    backend = Tokens(results=[math.inf])
    store = CredentialStore()
    for _ in range(3):
        await call(backend, transport, store)

    assert ["Bearer token-1"] * 3 == transport.sent
    assert threading.main_thread().name not in backend.fetched


async def test_concurrent_calls_wait_for_one_fetch():
    transport = ScriptedTransport()
    backend = Tokens(results=[3600.0])
    store = CredentialStore()
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(call, backend, transport, store)

    assert ["Bearer token-1"] * 20 == transport.sent


@pytest.mark.parametrize(
    ("lifetime", "seconds", "fetches"),
    [(3600.0, 3299, 1), (3600.0, 3301, 2), (60.0, 53, 1), (60.0, 55, 2), (math.inf, 1e9, 1)],
)
async def test_credentials_are_renewed_before_they_end(lifetime, seconds, fetches):
    clock = Clock()
    backend = Tokens(results=[lifetime, lifetime])
    store = CredentialStore(clock)
    await call(backend, ScriptedTransport(), store)
    clock.now += seconds
    await call(backend, ScriptedTransport(), store)

    assert fetches == len(backend.fetched)


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_credentials_are_renewed_once_and_the_request_is_sent_again(status):
    clock = Clock()
    transport = ScriptedTransport(200, status, 200)
    backend = Tokens(results=[3600.0, 3600.0])
    store = CredentialStore(clock)
    await call(backend, transport, store)
    clock.now += 60
    await call(backend, transport, store)

    assert ["Bearer token-1", "Bearer token-1", "Bearer token-2"] == transport.sent


@pytest.mark.parametrize(
    ("results", "seconds"),
    [
        pytest.param([3600.0], 5, id="they were fetched 5 s ago"),
        pytest.param([None], 60, id="the backend has none"),
        pytest.param([3600.0, UpstreamUnavailable("no")], 60, id="they cannot be renewed"),
    ],
)
async def test_a_refusal_is_reported_if(results, seconds):
    clock = Clock()
    transport = ScriptedTransport(200, 401)
    store = CredentialStore(clock)
    backend = Tokens(results=[*results])
    await call(backend, transport, store)
    clock.now += seconds
    with pytest.raises(UpstreamAuthError):
        await call(backend, transport, store)

    assert 2 == len(transport.requests)


async def test_credentials_that_cannot_be_renewed_are_used_until_they_end():
    clock = Clock()
    transport = ScriptedTransport()
    backend = Tokens(results=[3600.0, ValueError("a bug"), *[UpstreamUnavailable("no route")] * 2])
    store = CredentialStore(clock)
    await call(backend, transport, store)
    for _ in range(2):
        clock.now += 3400 if clock.now == 1000 else 5
        await call(backend, transport, store)
    assert 2 == len(backend.fetched)

    clock.now += 3600
    with pytest.raises(UpstreamUnavailable, match="no route"):
        await call(backend, transport, store)
    assert 3 == len(transport.requests)


async def test_calls_right_after_a_failed_fetch_fail_without_another():
    clock = Clock()
    backend = Tokens(results=[UpstreamAuthError("no keys"), 3600.0])
    transport = ScriptedTransport()
    store = CredentialStore(clock)
    for _ in range(3):
        with pytest.raises(UpstreamAuthError, match="no keys"):
            await call(backend, transport, store)
    assert 1 == len(backend.fetched)

    clock.now += 2
    await call(backend, transport, store)
    assert ["Bearer token-2"] == transport.sent


class Hanging(Plain, frozen=True, kw_only=True):
    released: threading.Event
    started: list[int] = msgspec.field(default_factory=list)

    def fetch_credentials(self, send):
        self.started.append(1)
        assert self.released.wait(20)
        return Credentials.bearer(Secret("late"))


async def test_a_fetch_that_hangs_is_abandoned_at_the_timeout_and_its_result_is_kept():
    backend = Hanging(released=threading.Event())
    transport = ScriptedTransport()
    store = CredentialStore()
    try:
        for _ in range(2):
            with pytest.raises(UpstreamTimeout, match="credentials"):
                await call(backend, transport, store, timeout=0.05)
        with pytest.raises(UpstreamUnavailable, match="have not ended"):
            await call(backend, transport, store, timeout=0.05)
        assert 2 == len(backend.started)
    finally:
        backend.released.set()
    with anyio.fail_after(10):
        while not transport.requests:
            await anyio.sleep(0.01)
            try:
                await call(backend, transport, store)
            except UpstreamUnavailable:
                continue

    assert ["Bearer late"] == transport.sent


class FromIAM(Plain, frozen=True, kw_only=True):
    def fetch_credentials(self, send):
        answer = send(UpstreamRequest.json("http://iam/token", {})).json()
        return Credentials.bearer(Secret(answer["token"]))


async def test_a_token_is_requested_with_the_transport_of_the_gateway():
    transport = ScriptedTransport()
    await call(FromIAM(), transport, CredentialStore())

    assert ["http://iam/token", "http://host/embed"] == [
        request.url for request in transport.requests
    ]
    assert "Bearer from-iam" == transport.sent[1]


class Signing(Plain, frozen=True, kw_only=True):
    def fetch_credentials(self, send):
        return Credentials(values={"key": Secret("k")})

    def authorize(self, request, credentials):
        signature = Secret(f"{credentials.values['key'].reveal()}:{request.content.decode()}")
        return UpstreamRequest(
            url=request.url, content=request.content, headers={"authorization": signature}
        )


async def test_the_bytes_that_are_signed_are_those_that_are_sent():
    transport = ScriptedTransport()
    await call(Signing(), transport, CredentialStore(), omitted={"user"})
    [request] = transport.requests

    assert b'{"texts":["a"]}' == request.content
    assert ['k:{"texts":["a"]}'] == transport.sent


async def test_a_large_body_is_signed_in_a_worker_thread():
    class Large(Signing, frozen=True, kw_only=True):
        threads: list[str] = msgspec.field(default_factory=list)

        def build(self, batch):
            return UpstreamRequest.json("http://host", {"texts": ["a" * 2_000_000]})

        def authorize(self, request, credentials):
            self.threads.append(threading.current_thread().name)
            return request

    backend = Large()
    await call(backend, ScriptedTransport(), CredentialStore())

    assert [threading.main_thread().name] != backend.threads
    assert 1 == len(backend.threads)


async def test_a_backend_without_credentials_sends_what_it_builds():
    transport = ScriptedTransport()
    await call(Plain(), transport, CredentialStore())

    assert [None] == transport.sent


def test_credentials_do_not_show():
    credentials = Credentials.bearer(Secret("s3cret"), 60.0)

    assert "Credentials(values=['authorization'], lifetime=60.0)" == repr(credentials)


def test_the_calls_of_two_event_loops_do_not_share_a_lock():
    backend = Tokens(results=[3600.0, 3600.0])
    transport = ScriptedTransport()
    for _ in range(2):
        anyio.run(partial(call, backend, transport, CredentialStore()))

    assert ["Bearer token-1", "Bearer token-2"] == transport.sent
