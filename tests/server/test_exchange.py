"""Tests the HTTP entry points: paths, the order of checks, body limits and response headers."""

import json
import logging
import math
import sys
import threading
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from starlette.exceptions import HTTPException

from embedroute import (
    Caller,
    Config,
    ConfigError,
    EmbeddingsMiddleware,
    Gateway,
    Provider,
    embeddings_app,
)
from embedroute.backend import Backend
from embedroute.errors import (
    NoHealthyEndpoint,
    Overloaded,
    RateLimited,
    UpstreamRejectedInput,
    UpstreamUnavailable,
)
from embedroute.fastapi import embeddings_router
from embedroute.limits import MOST_ACCOUNTS, ByteBudget
from embedroute.routing import RetryPolicy
from embedroute.server import error_headers
from embedroute.testing import ScriptedBackend
from tests.support.asgi_client import call
from tests.support.elapsed import measured
from tests.support.reachable import count_reachable

pytestmark = pytest.mark.anyio

KEY, LIMITED = "sk-er-one", "sk-er-two"
JSON = ("Content-Type", "application/json")
BEARER = ("Authorization", f"Bearer {KEY}")
GOOD = b'{"model":"m","input":"a"}'


def gateway(**settings):
    return Gateway(
        Config(
            gateway={"auth": "keys", "max_body_bytes": 4096, **settings},
            keys={"one": {"key": KEY}, "two": {"key": LIMITED, "models": ["m"], "debug": False}},
            providers={"mock": {"backend": "hashed"}, "other": {"backend": "hashed"}},
            models={
                "m": {"dimensions": 8, "endpoints": [{"provider": "mock", "price": 1}]},
                "org/big": {"dimensions": 8, "endpoints": [{"provider": "mock"}]},
            },
        )
    )


def app(**settings):
    return embeddings_app(gateway(**settings))


async def post(served_app, *headers, body=GOOD, path="/v1/embeddings", **scope):
    return await call(served_app, "POST", path, headers or (JSON, BEARER), [body], **scope)


@pytest.mark.parametrize(
    "name", ["x-api-key", "api-key", "cookie", "proxy-authorization", "x-embedroute-key"]
)
async def test_only_the_authorization_header_is_a_credential(name):
    response = await post(app(), JSON, (name, f"Bearer {KEY}"))

    assert (response.status, response.error["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("authorization", f"Bearer {KEY}", 200),
        ("authorization", f" \tBearer {KEY}\t ", 200),
        ("authorization", f"Bearer {KEY}\xa0", 401),
        ("content-type", " application/json ", 200),
        ("content-type", "\tapplication/json; charset=utf-8\t", 200),
        ("content-encoding", " identity ", 200),
        ("content-length", " 9999999 ", 413),
    ],
)
async def test_spaces_around_the_value_of_a_header_are_ignored(name, value, status):
    """Some servers' parsers leave them in, so a key copied with a space would be refused."""
    headers = dict([("authorization", f"Bearer {KEY}"), JSON, (name, value)])
    headers = {header.lower(): text for header, text in headers.items()} | {name: value}

    repeated = [("x-own", "1"), ("x-own", "2")]
    for others in ([], repeated):
        assert status == (await post(app(), *headers.items(), *others)).status


async def test_a_request_id_is_kept_without_the_spaces_around_it():
    answer = await post(app(), JSON, BEARER, ("x-request-id", " r-1 "))

    assert "r-1" == answer.header("x-request-id")


# Paths


@pytest.mark.parametrize(
    ("path", "root_path", "status"),
    [
        ("/v1/embeddings", "", 200),
        ("/embeddings", "", 200),
        ("/v1/embeddings/", "", 200),
        ("/ai/v1/embeddings", "/ai", 200),  # a Starlette mount, or uvicorn --root-path
        ("/ai/v1/embeddings/", "/ai", 200),  # Litestar appends a slash to what it mounts
        ("/ai/v1/embeddings", "/ai/", 200),
        ("/v1/embeddings", "/ai", 200),  # hypercorn and granian leave the root path out of the path
        ("/outer/inner/embeddings", "/outer/inner", 200),  # nested mounts
        ("/v1/embeddings", "/v1", 200),
        ("/v1/v1/embeddings", "/v1", 200),
        ("/aiv1/embeddings", "/ai", 404),  # not at a slash
        ("/airplane/v1/embeddings", "/ai", 404),
        ("/ai/v1/embeddings", "", 404),  # no tail match
        ("/ai/ai/v1/embeddings", "/ai", 404),
        ("//v1/embeddings", "", 200),  # a base URL with a slash at its end
        ("/v1//embeddings", "", 404),
        ("/ai//v1/embeddings//", "/ai", 200),
        ("/ai//v1///embeddings//", "/ai", 404),
        ("///ai/v1/embeddings", "/ai", 404),
        ("/v1/Embeddings", "", 404),
        ("/v1/embeddings.json", "", 404),
        ("/v1/embeddings/x", "", 404),
        ("/v2/embeddings", "", 404),
        ("/v1%2Fembeddings", "", 404),
        ("/v1%2fembeddings", "", 404),
        ("/v1/embeddings%2F", "", 404),
        ("/v1/embeddings%00", "", 404),
        ("/v1/embeddings?x=%2F%00", "", 200),
        ("/v1/%65mbeddings", "", 200),
        ("/", "", 404),
        ("", "", 404),
        ("/ai", "/ai", 404),
    ],
)
async def test_the_path_below_the_mount_must_be_exact(path, root_path, status):
    assert status == (await post(app(), path=path, root_path=root_path)).status


@pytest.mark.parametrize(
    ("path", "suggested"),
    [
        ("/v1/v1/embeddings", "/v1/embeddings"),
        ("/openai/v1/embeddings", "/v1/embeddings"),
        ("/api/embeddings/models", "/v1/embeddings/models"),
        ("/v2/models", "/v1/models"),
    ],
)
async def test_a_wrong_base_url_gets_the_path_that_was_meant(path, suggested):
    answer = await post(app(), path=path)

    message = f"No resource at '{path}'. Did you mean '{suggested}'? Check the client's base URL."
    assert (404, message) == (answer.status, answer.error["message"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "/ai/embedding",
            "No resource at '/ai/embedding'. Use POST '/ai/v1/embeddings' or GET '/ai/v1/models'.",
        ),
        (
            "/ai/v2/embed",
            (
                "No resource at '/ai/v2/embed'. It is a path of the protocol cohere, "
                'to be served with [gateway] protocols = ["openai", "cohere"].'
            ),
        ),
        (
            "/ai/tei/m/embed",
            (
                "No resource at '/ai/tei/m/embed'. It is a path of the protocol tei, "
                'to be served with [gateway] protocols = ["openai", "tei"].'
            ),
        ),
        (
            "/ai/v1/v1/embeddings",
            "No resource at '/ai/v1/v1/embeddings'. Did you mean '/ai/v1/embeddings'? Check the client's base URL.",
        ),
    ],
)
async def test_the_paths_of_a_404_begin_with_the_path_of_the_mount(path, message):
    answer = await post(app(), path=path, root_path="/ai")

    assert (404, message) == (answer.status, answer.error["message"])


@pytest.mark.parametrize(
    ("raw_path", "status"),
    [
        (None, 200),
        (b"/v1/embeddings", 200),
        (b"/v1/embeddings?q=%2F", 200),
        (b"/v1%2Fembeddings", 404),
    ],
)
async def test_the_raw_path_is_checked_if_the_server_provides_it(raw_path, status):
    assert status == (await post(app(), raw_path=raw_path)).status


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/models", 200, None),
        ("/v1/models/m", 200, None),
        ("/v1/models/%6D", 200, None),
        ("/v1/models/org/big", 200, None),
        ("//v1/models/org/big", 200, None),
        ("//v1//models/org/big", 404, "not_found"),
        ("/v1/models/org//big", 404, "model_not_found"),
        ("/v1/models?x=%2F%00", 200, None),
        ("/v1%2Fmodels", 404, "not_found"),
        ("/v1/models%2fm", 404, "not_found"),
        ("/v1/models/org%2Fbig", 200, None),
        ("/v1%2Fmodels/org%2Fbig", 404, "not_found"),
        ("/v1/models/m%00", 404, "not_found"),
        ("/v1/embeddings%2fmodels", 404, "not_found"),
        ("/v1%2Fopenapi.json", 404, "not_found"),
    ],
)
async def test_an_encoded_slash_is_not_a_path_separator(path, status, code):
    """Proxies interpret it differently, so it must not allow a client to bypass their rules."""
    answer = await call(app(), "GET", path, [BEARER])

    assert (status, code) == (answer.status, answer.json.get("error", {}).get("code"))


async def passed_on(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(
    ("method", "path", "prefix", "status"),
    [
        ("POST", "/v1/embeddings", "/v1", 200),
        ("POST", "/v1/embeddings/", "/v1", 200),
        ("POST", "//v1/embeddings", "/v1", 200),
        ("GET", "/v1/embeddings", "/v1", 405),
        ("GET", "/v1/models", "/v1", 200),
        ("GET", "/v1/models/m", "/v1", 200),
        ("GET", "/v1/models/org/big", "/v1", 200),
        ("GET", "/v1/models/nope", "/v1", 404),
        ("GET", "/v1/embeddings/models", "/v1", 200),
        ("POST", "/ai/embeddings", "/ai/", 200),
        ("POST", "/embeddings", "", 200),
        ("POST", "/embeddings", "/v1", 299),
        ("POST", "/v1/chat/completions", "/v1", 299),
        ("POST", "/v1embeddings", "/v1", 299),
        ("POST", "/v1/v1/embeddings", "/v1", 299),
        ("GET", "/v1/modelsx", "/v1", 299),
        ("GET", "/v1/openapi.json", "/v1", 299),
        ("GET", "/", "/v1", 299),
    ],
)
async def test_the_middleware_serves_its_paths_and_passes_the_others_through(
    method, path, prefix, status
):
    served_app = EmbeddingsMiddleware(passed_on, gateway(), prefix)

    assert status == (await call(served_app, method, path, [JSON, BEARER], [GOOD])).status


# Errors


@pytest.mark.parametrize(
    ("status", "code", "param", "wrong"),
    [
        (
            404,
            "not_found",
            None,
            {"path": "/nope", "method": "GET", "headers": [("Content-Length", "9999")]},
        ),
        (
            405,
            "method_not_allowed",
            None,
            {"method": "GET", "headers": [("Content-Length", "9999")]},
        ),
        (
            401,
            "invalid_api_key",
            None,
            {"headers": [("Content-Type", "text/plain"), ("Content-Length", "9999")]},
        ),
        (415, "unsupported_content_type", None, {"headers": [BEARER, ("Content-Length", "9999")]}),
        (
            415,
            "unsupported_content_type",
            None,
            {"headers": [BEARER, ("Content-Encoding", "gzip")]},
        ),
        (
            415,
            "unsupported_content_encoding",
            None,
            {"headers": [BEARER, JSON, ("Content-Encoding", "gzip"), ("Content-Length", "9999")]},
        ),
        (413, None, None, {"headers": [BEARER, JSON, ("Content-Length", "4097")], "body": b"{"}),
        (413, None, None, {"body": b"{" * 4097}),
        (408, None, None, {"body": b"{" * 90, "pause": 60.0}),
        (400, None, "input", {"body": b'{"model":"nope","input":[],"debug":{"trace":true}}'}),
        (
            404,
            "model_not_found",
            "model",
            {"body": b'{"model":"nope","input":"a","debug":{"trace":true}}'},
        ),
        (
            403,
            "model_not_allowed",
            "model",
            {"body": b'{"model":"org/big","input":"a","debug":{"trace":true}}'},
        ),
        (
            403,
            "debug_not_allowed",
            "debug",
            {"body": b'{"model":"m","input":"a","debug":{"trace":true},"provider":{"only":[]}}'},
        ),
        (
            404,
            "no_eligible_provider",
            "provider",
            {
                "body": b'{"model":"m","input":"a","provider":{"only":[]},"dimensions":9,"input_type":"query"}'
            },
        ),
        (400, None, "dimensions", {"body": b'{"model":"m","input":"a","dimensions":9}'}),
        (
            404,
            "model_not_found",
            "model",
            {"body": b'{"model":"nope","input":"a","provider":"absent"}'},
        ),
        (
            403,
            "model_not_allowed",
            "model",
            {"body": b'{"model":"org/big","input":"a","provider":"absent"}'},
        ),
        (
            403,
            "model_not_allowed",
            "model",
            {"body": b'{"model":"org/big","input":"a","provider":"other"}'},
        ),
        (
            403,
            "debug_not_allowed",
            "debug",
            {"body": b'{"model":"m","input":"a","debug":{"trace":true},"provider":"absent"}'},
        ),
        (
            403,
            "debug_not_allowed",
            "debug",
            {"body": b'{"model":"m","input":"a","debug":{"trace":true},"provider":"other"}'},
        ),
        (
            400,
            None,
            "provider",
            {"body": b'{"model":"m","input":"a","provider":"absent","dimensions":9}'},
        ),
        (400, None, "provider", {"body": b'{"model":"m","input":"a","provider":""}'}),
    ],
)
async def test_the_first_failed_check_determines_the_error(status, code, param, wrong):
    """Path, method, key, type, encoding, length, JSON, model, debug, preferences, parameters."""
    actual = {
        "path": "/v1/embeddings",
        "method": "POST",
        "headers": [("Authorization", f"Bearer {LIMITED}"), JSON],
        "body": b"",
    }
    actual |= wrong

    # A generous timeout, so that a client that sends its body at once succeeds on a busy machine.
    limits = {"body_timeout": 0.2} if "pause" in actual else {}

    answer = await call(
        app(**limits),
        actual["method"],
        actual["path"],
        actual["headers"],
        [actual["body"]],
        pause=actual.get("pause", 0.0),
    )

    assert (status, code, param) == (answer.status, answer.error["code"], answer.error["param"])


@pytest.mark.parametrize(
    "status_of", [{"path": "/nope"}, {"method": "PUT"}, {"headers": [JSON]}, {"headers": [BEARER]}]
)
async def test_errors_in_the_headers_are_returned_before_the_body_is_read(status_of):
    actual = {"path": "/v1/embeddings", "method": "POST", "headers": [JSON, BEARER], **status_of}

    answer = await call(app(), actual["method"], actual["path"], actual["headers"], [GOOD])

    assert (400 <= answer.status < 500, answer.taken) == (True, 0)


@pytest.mark.parametrize(
    ("actual", "scope", "taken"),
    [
        ([("Content-Length", "25")], {}, True),
        ([("Content-Length", "65536")], {}, True),
        ([("Content-Length", "25")], {"http_version": "1.0"}, True),
        ([("Content-Length", "65537")], {}, False),
        ([("Content-Length", "9" * 5000)], {}, False),
        ([("Content-Length", "0")], {}, False),
        ([("Content-Length", "25"), ("Content-Length", "25")], {}, False),
        ([("Content-Length", "a few")], {}, False),
        (
            [("Content-Length", "25"), ("Expect", "100-continue")],
            {},
            False,
        ),  # it is not sent after a refusal
        ([], {}, False),
        (
            [("Content-Length", "25")],
            {"http_version": "2"},
            False,
        ),  # each request has a stream of its own
    ],
)
async def test_a_small_unread_body_is_drained_after_an_error(actual, scope, taken):
    answer = await call(app(), "POST", "/v1/embeddings", actual, [GOOD], **scope)

    assert (401, len(GOOD) if taken else 0) == (answer.status, answer.taken)


@pytest.mark.parametrize("piece", [b"x" * 4096, b""])
async def test_draining_an_unread_body_has_a_timeout(piece):
    """The client has the complete response before, and a body that does not end is abandoned."""
    sent = []

    async def receive():
        assert sent[-1]["more_body"]
        await anyio.sleep(0.01)
        return {"type": "http.request", "body": piece, "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/embeddings",
        "http_version": "1.1",
        "headers": [(b"content-length", b"9")],
    }
    async with measured() as elapsed:
        await app()(scope, receive, send)

    headers = dict(sent[0]["headers"])
    assert int(headers[b"content-length"]) == len(sent[1]["body"])
    assert sent[2:] == [{"type": "http.response.body", "body": b""}]
    assert elapsed.ticks < 2


@pytest.mark.parametrize(
    ("types", "status"),
    [
        (["application/json"], 200),
        (["APPLICATION/JSON"], 200),
        (["application/json;charset=utf-8"], 200),
        (['application/json ; charset="UTF-8"'], 200),
        (["application/json; charset=utf-16"], 415),
        (["application/json; charset=utf-8; x=y"], 415),
        (["application/json, text/plain"], 415),
        (["application/jsonp"], 415),
        (["text/json"], 415),
        (["multipart/form-data; boundary=application/json"], 415),
        ([""], 415),
        ([], 415),
        (["application/json", "application/json"], 415),
    ],
)
async def test_only_json_content_types_are_accepted(types, status):
    assert (
        status
        == (await post(app(), BEARER, *(("Content-Type", actual) for actual in types))).status
    )


@pytest.mark.parametrize(
    ("encodings", "status"),
    [
        (["identity"], 200),
        (["Identity"], 200),
        ([" identity "], 200),
        (["gzip"], 415),
        (["identity, gzip"], 415),
        (["identity", "gzip"], 415),
        ([""], 415),
    ],
)
async def test_a_body_is_never_decompressed(encodings, status):
    answer = await post(
        app(), BEARER, JSON, *(("Content-Encoding", actual) for actual in encodings)
    )

    assert (status, "identity" if status == 415 else None) == (
        answer.status,
        answer.header("accept-encoding"),
    )


@pytest.mark.parametrize(
    ("length", "status"),
    [
        ("25", 200),
        ("4096", 200),
        ("4097", 413),
        ("9" * 30, 413),
        ("00000000000000000000000000000025", 200),
        ("x", 200),
    ],
)
async def test_a_declared_length_is_used_only_to_reject_large_bodies(length, status):
    answer = await post(app(), BEARER, JSON, ("Content-Length", length))

    assert (status, answer.taken == 0) == (answer.status, status == 413)


@pytest.mark.parametrize("lengths", [("25", "4097"), ("4097", "25"), ("x", "4097")])
async def test_the_largest_of_several_declared_lengths_counts(lengths):
    answer = await post(app(), BEARER, JSON, *(("Content-Length", actual) for actual in lengths))

    assert (413, 0) == (answer.status, answer.taken)


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([GOOD], 200),
        ([bytes([byte]) for byte in GOOD], 200),
        ([b"", GOOD, b""], 200),
        ([GOOD.ljust(4096)], 200),
        ([GOOD.ljust(4096), b" "], 413),
        ([], 400),
    ],
)
async def test_a_body_may_arrive_in_any_number_of_pieces(pieces, status):
    assert status == (await call(app(), "POST", "/v1/embeddings", [JSON, BEARER], pieces)).status


# Request bodies in flight


class Request:
    """A raw request whose body the test sends in pieces; ``sent`` is the response."""

    def __init__(self, *headers, path="/v1/embeddings"):
        self.sent = []
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers]
        self._path = path
        self._in, self._out = anyio.create_memory_object_stream(99)

    def give(self, body=b"", *, more=False):
        self._in.send_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self):
        self._in.send_nowait({"type": "http.disconnect"})

    async def run(self, served_app):
        async def send(message):
            self.sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": self._path,
            "query_string": b"",
            "headers": self._headers,
        }
        with self._in, self._out:
            await served_app(scope, self._out.receive, send)

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def error(self):
        return json.loads(b"".join(message.get("body", b"") for message in self.sent))["error"]


KEYED = {"one": BEARER, "two": ("Authorization", f"Bearer {LIMITED}")}


def bounded(in_flight=16_384, backend=None, **settings):
    """A gateway that allows 16 KiB of bodies, so 4 KiB per caller: one body of the maximum size."""
    return Gateway(
        Config(
            gateway={
                "auth": "keys",
                "max_body_bytes": 4096,
                "max_body_bytes_in_flight": in_flight,
                **settings,
            },
            keys={"one": {"key": KEY}, "two": {"key": LIMITED}},
            providers={"up": Provider(backend=backend or ScriptedBackend(width=8))},
            models={"m": {"dimensions": 8, "endpoints": [{"provider": "up"}]}},
        ),
        retries=RetryPolicy(repeats=0, attempts=1),
    )


def declared(size, name="one", **actual):
    return Request(JSON, KEYED[name], ("Content-Length", str(size)), **actual)


@asynccontextmanager
async def reading(served_app, *requests):
    """Run requests whose bodies have not arrived yet."""
    async with anyio.create_task_group() as group:
        for request in requests:
            group.start_soon(request.run, served_app)
        await anyio.wait_all_tasks_blocked()
        yield
        group.cancel_scope.cancel()


async def test_a_caller_may_use_a_quarter_of_the_bytes_in_flight():
    served = bounded()
    served_app = embeddings_app(served)
    async with reading(served_app, declared(4000)):
        assert served.bodies.total == 4000
        over, beside, small = declared(97), declared(4096, "two"), declared(96)
        await over.run(served_app)
        async with reading(served_app, beside):
            small.give(GOOD)
            await small.run(served_app)
            accepted = beside.sent == []

    actual = dict(over.sent[0]["headers"])
    assert (over.status, over.error["type"], over.error["code"]) == (
        503,
        "overloaded_error",
        "overloaded",
    )
    assert (actual[b"retry-after"], accepted, small.status) == (b"1", True, 200)
    assert served.bodies.total == 0


async def test_all_callers_together_stay_within_the_limit():
    """For any number of callers that a host names."""

    async def who(scope):
        return Caller(name=scope["path"])

    served = bounded(in_flight=8192, auth="host")
    apps = [EmbeddingsMiddleware(passed_on, served, f"/{at}", authenticate=who) for at in range(5)]
    full = [declared(2000, path=f"/{at}/embeddings") for at in range(4)]
    async with AsyncExitStack() as stack:
        for served_app, request in zip(apps, full, strict=False):
            await stack.enter_async_context(reading(served_app, request))
        over = declared(193, path="/4/embeddings")
        await over.run(apps[4])
        assert served.bodies.total == 8000

    assert (over.status, over.error["code"]) == (503, "overloaded")
    assert "of this caller" not in over.error["message"]
    assert served.bodies.total == 0


async def test_all_entry_points_of_a_gateway_share_one_body_budget():
    served = bounded()
    router = FastAPI()
    router.include_router(embeddings_router(served))
    apps = [embeddings_app(served), EmbeddingsMiddleware(passed_on, served), router]
    for first in apps:
        async with reading(first, declared(4000)):
            for second in apps:
                over = declared(97)
                await over.run(second)
                assert over.status == 503
        assert served.bodies.total == 0


async def test_a_body_without_a_declared_length_is_counted_as_it_arrives():
    served = bounded()
    served_app = embeddings_app(served)
    chunked, beside = Request(JSON, BEARER), Request(JSON, BEARER)
    async with reading(served_app, chunked):
        for at in range(MOST_ACCOUNTS + 1):
            served.bodies.reserve(
                f"caller {at}", 0
            )  # so that accounts that hold nothing are dropped
        chunked.give(b" " * 1000, more=True)
        await anyio.wait_all_tasks_blocked()
        assert served.bodies.total == 1000
        chunked.give(b" " * 2000, more=True)
        await anyio.wait_all_tasks_blocked()
        assert served.bodies.total == 3000
        beside.give(b" " * 1096, more=True)
        beside.give(b" ", more=True)
        await beside.run(served_app)
        assert (beside.status, served.bodies.total) == (503, 3000)
        chunked.give(GOOD)
        await anyio.wait_all_tasks_blocked()

    assert (chunked.status, served.bodies.total) == (200, 0)


@pytest.mark.parametrize("length", ["0", "12", "-5", "a few", "00000000000000000000000000000500"])
async def test_a_body_longer_than_declared_is_counted_in_full(length):
    served = bounded()
    request = Request(JSON, BEARER, ("Content-Length", length))
    request.give(b" " * 2000, more=True)
    async with reading(embeddings_app(served), request):
        assert served.bodies.total == 2000
    assert served.bodies.total == 0


async def test_a_caller_may_always_send_one_body_of_the_maximum_size():
    served = bounded(in_flight=4096)
    served_app = embeddings_app(served)
    alone, over = declared(4096), declared(1)
    alone.give(GOOD.ljust(4096))
    await alone.run(served_app)
    async with reading(served_app, declared(4096)):
        await over.run(served_app)

    assert (alone.status, over.status) == (200, 503)


async def test_a_body_counts_until_its_response_is_sent():
    """The decoded objects live as long; a client that reads slowly uses its own share."""
    sending, done = anyio.Event(), anyio.Event()
    served = bounded()
    request = declared(25)
    request.give(GOOD)

    async def slow(scope, receive, send):
        async def wait(message):
            sending.set()
            await done.wait()
            await send(message)

        await embeddings_app(served)(scope, receive, wait)

    async with anyio.create_task_group() as group:
        group.start_soon(request.run, slow)
        await sending.wait()
        reserved = served.bodies.total
        done.set()

    assert (reserved, served.bodies.total, request.status) == (25, 0, 200)


@pytest.mark.parametrize(
    "headers",
    [
        (JSON,),
        (JSON, ("Authorization", "Bearer absent")),
        (BEARER,),
        (JSON, BEARER, ("Content-Encoding", "gzip")),
    ],
)
async def test_a_request_rejected_by_its_headers_reserves_nothing(headers):
    served = bounded()
    served_app, request = embeddings_app(served), Request(*headers, ("Content-Length", "4000"))
    async with reading(served_app, declared(4096), declared(4096, "two")):
        await request.run(served_app)

        assert request.status in {401, 415}
        assert served.bodies.total == 8192


def failing(error):
    def play(_batch):
        raise error

    return ScriptedBackend(then=play, width=8)


async def never(_batch):
    await anyio.sleep_forever()


OUTCOMES = {
    "an answer": (lambda item: item.give(GOOD), {}, 200),
    "not JSON": (lambda item: item.give(b"{"), {}, 400),
    "an upstream failure": (
        lambda item: item.give(GOOD),
        {"backend": failing(UpstreamUnavailable("reset"))},
        502,
    ),
    "a deadline": (
        lambda item: item.give(GOOD),
        {"backend": ScriptedBackend(then=never), "deadline": 0.05},
        504,
    ),
    "too long": (lambda item: [item.give(b" " * 4000, more=True), item.give(b" " * 97)], {}, 413),
    "too slow": (lambda item: item.give(b"{", more=True), {"body_timeout": 0.05}, 408),
    "gone while it is read": (lambda item: [item.give(b"{", more=True), item.leave()], {}, None),
    "gone while it is worked on": (
        lambda item: [item.give(GOOD), item.leave()],
        {"backend": ScriptedBackend(then=never)},
        None,
    ),
    "a bug": (lambda item: item.give(None), {}, 500),
}


@pytest.mark.parametrize(("act", "made", "status"), OUTCOMES.values(), ids=OUTCOMES)
@pytest.mark.parametrize("length", [[("Content-Length", "600")], []], ids=["declared", "chunked"])
async def test_reserved_bytes_are_released_once_for_every_outcome(act, made, status, length):
    served = bounded(**made)
    served_app, request = embeddings_app(served), Request(JSON, BEARER, *length)
    act(request)
    served.bodies.reserve("two", 700)

    with anyio.fail_after(60):
        await request.run(served_app)

    assert served.bodies.total == 700
    assert status == (request.status if request.sent else None)


@pytest.mark.parametrize("at", ["the body", "the work"])
async def test_reserved_bytes_are_released_when_the_task_is_cancelled(at):
    served = bounded(backend=ScriptedBackend(then=never))
    request = declared(600)
    if at == "the work":
        request.give(GOOD)
    async with reading(embeddings_app(served), request):
        assert served.bodies.total == 600
    assert served.bodies.total == 0


def test_threads_that_share_a_gateway_count_every_byte():
    budget = ByteBudget(1 << 30, 1 << 28, "request bodies")

    def work():
        for _ in range(20_000):
            budget.release(budget.reserve("a", 3), 3)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)

    assert (0, 0) == (budget.total, budget.reserve("a", 0).in_flight)


def test_accounts_without_bytes_in_flight_are_dropped():
    """For any number of callers; accounts with bytes in flight are kept."""
    budget = ByteBudget(1 << 30, 1 << 28, "request bodies")
    budget.reserve("holds", 1 << 28)

    sizes = []
    for at in range(3 * MOST_ACCOUNTS):
        budget.reserve(f"caller {at}", 0)
        if at % MOST_ACCOUNTS == MOST_ACCOUNTS - 1:
            sizes.append(count_reachable(budget))

    assert sizes[-1] < 2 * sizes[0]
    with pytest.raises(Overloaded):
        budget.reserve("holds", 1)


class Stuck(Backend, frozen=True):
    """A backend that never returns."""

    async def embed(self, _batch):
        await anyio.sleep_forever()


async def test_a_body_limit_of_the_host_is_a_413_in_the_dialect():
    """FastAPI limits bodies by raising an exception from ``receive``."""
    sent = []

    async def receive():
        raise HTTPException(413, "Request body too large")

    async def send(message):
        sent.append(message)

    headers = [(name.lower().encode(), value.encode()) for name, value in (JSON, BEARER)]
    await app()(
        {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": headers},
        receive,
        send,
    )

    assert sent[0]["status"] == 413
    assert (
        json.loads(sent[1]["body"])["error"]["message"]
        == "Request body too large; send fewer inputs at a time."
    )


@pytest.mark.parametrize("whole", [False, True])
async def test_nothing_is_sent_to_a_client_that_disconnected(whole):
    """It may disconnect while its body is read or while its response is computed."""
    served_app = embeddings_app(
        Gateway(Config(gateway={"auth": "open"}, providers={"mock": Provider(backend=Stuck())}))
    )
    body = {
        "type": "http.request",
        "body": b'{"model":"mock/m","input":"a"}',
        "more_body": not whole,
    }
    messages, sent = [body, {"type": "http.disconnect"}], []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/embeddings",
        "headers": headers,
        "query_string": b"",
    }
    with anyio.fail_after(60):
        await served_app(scope, receive, send)

    assert sent == []


class Lost(OSError):
    """What a server may raise after its client has disconnected (ASGI 2.4)."""


@pytest.mark.parametrize("body", [GOOD, b"{"])
@pytest.mark.parametrize("lost_at", ["the body", "the start", "the end"])
async def test_oserror_from_the_server_counts_as_a_disconnect(body, lost_at, caplog):
    caplog.set_level(logging.INFO, logger="embedroute")
    sent = []

    async def receive():
        if lost_at == "the body":
            raise Lost
        return {"type": "http.request", "body": body}

    async def send(message):
        if message["type"] == "http.response.start" and lost_at == "the end":
            return sent.append(message)
        raise Lost

    headers = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {KEY}".encode())]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/embeddings",
        "headers": headers,
        "query_string": b"",
    }
    await app()(scope, receive, send)

    actual = [
        (item.event, vars(item).get("status"))
        for item in caplog.records
        if item.name == "embedroute.access"
    ]
    assert actual == [("client disconnected", 499)]
    assert len(sent) == (lost_at == "the end")


async def test_a_time_limit_of_the_host_around_receive_is_a_timeout_of_the_body():
    sent = []

    async def receive():
        raise TimeoutError

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {KEY}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": headers}
    await app()(scope, receive, send)

    assert sent[0]["status"] == 408


async def test_oserror_while_waiting_for_a_disconnect_counts_as_one(caplog):
    caplog.set_level(logging.INFO, logger="embedroute")
    served_app = embeddings_app(
        Gateway(Config(gateway={"auth": "open"}, providers={"mock": Provider(backend=Stuck())}))
    )
    messages = [{"type": "http.request", "body": b'{"model":"mock/m","input":"a"}'}]

    async def receive():
        if messages:
            return messages.pop()
        raise Lost

    async def send(message):
        raise AssertionError(message)

    headers = [(b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/embeddings",
        "headers": headers,
        "query_string": b"",
    }
    with anyio.fail_after(5):
        await served_app(scope, receive, send)

    assert [item.event for item in caplog.records if item.name == "embedroute.access"] == [
        "client disconnected"
    ]


HELD = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {KEY}".encode())]


@pytest.mark.parametrize(
    "as_iterable",
    [
        list,
        tuple,
        iter,
        lambda pairs: (pair for pair in pairs),
        lambda pairs: map(list, pairs),
        lambda pairs: dict(pairs).items(),
    ],
)
async def test_headers_may_be_any_iterable(as_iterable):
    """ASGI allows any iterable, also one that can be read only once."""
    messages, sent = [{"type": "http.request", "body": GOOD}], []

    async def receive():
        if not messages:
            await anyio.sleep_forever()
        return messages.pop()

    async def send(message):
        sent.append(message)

    await app()(
        {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": as_iterable(HELD)},
        receive,
        send,
    )

    assert sent[0]["status"] == 200


# Responses


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        (["abc"], True),
        (["A_b.c-9"], True),
        (["x" * 128], True),
        (["x" * 129], False),
        (["a b"], False),
        (["é"], False),
        (["a\r\nx: y"], False),
        ([""], False),
        (["a", "b"], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("body", [GOOD, b"{"])
async def test_a_valid_request_id_is_returned(ids, kept, body):
    answer = await post(
        app(), JSON, BEARER, *(("X-Request-Id", actual) for actual in ids), body=body
    )

    actual = answer.header("x-request-id")
    assert (actual in ids) == kept
    assert kept or actual.startswith("req_")


async def test_a_successful_response_names_its_provider():
    served_app = app()
    first, second = await post(served_app), await post(served_app)

    actual = [
        (item.header("x-embedroute-attempts"), item.header("x-embedroute-cache"))
        for item in (first, second)
    ]
    assert actual == [("1", "hits=0 misses=1"), ("0", "hits=1 misses=0")]
    assert [item.header("x-embedroute-provider") for item in (first, second)] == ["mock", None]
    assert first.body == second.body


DOWN, BAD = UpstreamUnavailable("reset"), UpstreamRejectedInput("no")


@pytest.mark.parametrize(
    ("steps", "body", "status", "attempts", "providers"),
    [
        ((DOWN, DOWN), {}, 502, 2, "a,b"),
        ((DOWN, None), {}, 200, 2, "b"),
        ((None, DOWN), {}, 200, 1, "a"),
        ((BAD, None), {}, 400, 1, "a"),
        ((DOWN, BAD), {}, 400, 2, "a,b"),
        ((DOWN, DOWN), {"dimensions": 99}, 400, 0, None),
        ((DOWN, DOWN), {"provider": {"only": []}}, 404, 0, None),
    ],
)
async def test_error_responses_name_the_providers_that_were_called(
    steps, body, status, attempts, providers
):
    """A success names the providers of its vectors; an error names all that were called."""
    slugs = ("a", "b")
    served = Gateway(
        Config(
            gateway={"auth": "open"},
            providers={
                slug: Provider(backend=ScriptedBackend(width=8, **({"then": step} if step else {})))
                for slug, step in zip(slugs, steps, strict=True)
            },
            models={"m": {"dimensions": 8, "endpoints": [{"provider": slug} for slug in slugs]}},
        ),
        retries=RetryPolicy(repeats=0, attempts=1),
    )
    sent_request = {"model": "m", "input": "text", "provider": {"order": list(slugs)}, **body}

    answer = await post(embeddings_app(served), JSON, body=json.dumps(sent_request).encode())

    actual = answer.header("x-embedroute-attempts"), answer.header("x-embedroute-provider")
    assert (status, (str(attempts), providers)) == (answer.status, actual)


@pytest.mark.parametrize("body", [GOOD, b"{"])
async def test_every_response_has_each_header_once(body):
    answer = await post(app(), body=body)

    names = [name for name, _ in answer.headers]
    wanted = {
        b"content-type",
        b"content-length",
        b"x-request-id",
        b"server-timing",
        b"openai-processing-ms",
    }
    assert wanted | {b"x-embedroute-attempts", b"x-embedroute-cache"} <= set(names)
    assert len(names) == len(set(names))
    assert answer.header("content-length") == str(len(answer.body))


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "name", "value"),
    [
        ("POST", "/v1/embeddings", [JSON], 401, "www-authenticate", "Bearer"),
        ("GET", "/v1/embeddings", [], 405, "allow", "POST"),
        ("HEAD", "/v1/embeddings", [], 405, "allow", "POST"),
        ("POST", "/v1/models", [], 405, "allow", "GET, HEAD"),
        ("DELETE", "/v1/models/m", [], 405, "allow", "GET, HEAD"),
        ("POST", "/openapi.json", [], 405, "allow", "GET, HEAD"),
        ("BREW" * 99, "/v1/embeddings", [], 405, "allow", "POST"),
    ],
)
async def test_an_error_has_the_header_that_its_status_requires(
    method, path, headers, status, name, value
):
    answer = await call(app(), method, path, headers)

    assert (status, value) == (answer.status, answer.header(name))
    assert len(answer.body) < 400


@pytest.mark.parametrize(
    "path",
    [
        "/models",
        "/v1/models",
        "/v1/models/m",
        "/models/org/big",
        "/v1/embeddings/models",
        "/embeddings/models",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_model_lists_need_a_key_and_support_head(method, path):
    """HEAD returns the headers of GET without the body."""
    refused = await call(app(), method, path)
    answer, whole = (
        await call(app(), method, path, [BEARER]),
        await call(app(), "GET", path, [BEARER]),
    )

    assert refused.status == 401
    assert (answer.status, answer.header("content-length")) == (200, str(len(whole.body)))
    assert answer.body == (whole.body if method == "GET" else b"")


@pytest.mark.parametrize(
    ("retry_after", "seconds", "milliseconds"),
    [
        (None, "1", "1000"),
        (0, "0", "0"),
        (2.001, "3", "2001"),
        ("7", "7", "7000"),
        (math.inf, "120", "120000"),
        (10**400, "1", "1000"),
        (math.nan, "1", "1000"),
        (-5, "1", "1000"),
        ("soon", "1", "1000"),
        (b"7", "7", "7000"),
        ([], "1", "1000"),
    ],
)
@pytest.mark.parametrize("error", [RateLimited, NoHealthyEndpoint])
async def test_retry_after_is_an_integer_for_every_value_of_a_plugin(
    error, retry_after, seconds, milliseconds
):
    actual = dict(error_headers(error("slow", retry_after=retry_after), error.status))

    assert (seconds, milliseconds) == (
        actual[b"retry-after"].decode(),
        actual[b"retry-after-ms"].decode(),
    )


@pytest.mark.parametrize("path", ["/openapi.json", "/v1/openapi.json"])
async def test_the_document_needs_no_key(path):
    assert (await call(app(), "GET", path)).json["openapi"].startswith("3.1")


@pytest.mark.parametrize(
    ("auth", "sent_request"), [("keys", [{"bearer": []}]), ("open", None), ("host", None)]
)
async def test_the_document_requires_a_key_if_the_gateway_does(auth, sent_request):
    document = (await call(app(auth=auth), "GET", "/openapi.json")).json

    assert sent_request == document.get("security")
    assert (sent_request is not None) == ("securitySchemes" in document["components"])


@pytest.mark.parametrize("dialect", ["openai", "openrouter", "gomodel", "phaseo", "spice"])
async def test_errors_fit_the_document_of_the_mount(dialect):
    served_app = embeddings_app(gateway(), dialect=dialect)
    document = (await call(served_app, "GET", "/openapi.json")).json

    for method, path, headers, status in [
        ("POST", "/v1/embeddings", [JSON], 401),
        ("POST", "/v1/embeddings", [JSON, BEARER], 400),
        ("GET", "/v1/models", [], 401),
        ("GET", "/v1/models/{id}", [BEARER], 404),
    ]:
        answer = await call(served_app, method, path, headers)
        actual = document["paths"][path][method.lower()]["responses"][str(status)]["content"][
            "application/json"
        ]["schema"]
        assert answer.status == status
        Draft202012Validator({**actual, "components": document["components"]}).validate(answer.json)


@pytest.mark.parametrize(
    "make",
    [embeddings_app, lambda gateway, **actual: EmbeddingsMiddleware(passed_on, gateway, **actual)],
)
@pytest.mark.parametrize(
    ("name", "advice"),
    [("openapi", 'did you mean "openai"'), ("nope", "openrouter"), (7, "openrouter")],
)
async def test_an_unknown_dialect_is_a_config_error(make, name, advice):
    with pytest.raises(ConfigError, match=advice):
        make(gateway(), dialect=name)


async def test_a_key_lists_only_its_models():
    limited = [("Authorization", f"Bearer {LIMITED}")]
    served_app = app()

    assert [
        item["id"] for item in (await call(served_app, "GET", "/v1/models", limited)).json["data"]
    ] == ["m"]
    assert (await call(served_app, "GET", "/v1/models/org/big", limited)).status == 404
    assert (await call(served_app, "GET", "/v1/models/org/big", [BEARER])).status == 200


async def test_an_open_gateway_ignores_any_key():
    served_app = embeddings_app(
        Gateway(Config(gateway={"auth": "open"}, providers={"mock": {"backend": "hashed"}}))
    )

    answer = await post(
        served_app, JSON, ("Authorization", "Basic x"), body=b'{"model":"mock/m","input":"a"}'
    )

    assert answer.status == 200


@pytest.mark.parametrize("text", ["\x1b[31m", "a\r\nb", "é" * 200, "x" * 512, "<script>"])
async def test_text_of_the_client_is_escaped_in_errors(text):
    answer = await post(app(), body=json.dumps({"model": text, "input": "a"}).encode())

    assert answer.status == 404
    assert answer.error["message"].isascii()
    assert answer.error["message"].isprintable()
    assert text[:129] not in answer.error["message"] or len(text) <= 128
