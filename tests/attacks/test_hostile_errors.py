"""Hostile error bodies are judged in little time, and do not block the event loop."""

import json
import time

import anyio
import pytest

from embedroute import Config, Gateway, Provider, embeddings_app
from embedroute.backend import UpstreamResponse
from embedroute.upstream_errors import classify_response, refine_with_inputs
from tests.support.asgi_client import call
from tests.support.cpu_time import measured_cpu
from tests.support.slow import thorough_unless


def nested(levels, padding):
    """Return a JSON body with a JSON body as its message, and so on."""
    text = "x" * padding
    for _ in range(levels):
        text = json.dumps({"error": text})
    return text.encode()


BODIES = {
    "nested messages": nested(13, 300_000),
    "nested messages without end": nested(17, 0),
    "nested lists": b"[" * 1_000_000,
    "nested objects": b'{"a":' * 200_000,
    "an opened object": json.dumps({"error": "{" * 20_000 + "}"}).encode(),
    "numbers": b"1,234 " * 3_000,
    "positions": b"1 of 1 " * 3_000,
    "indexes": b"input[2] input 2 index 2 " * 800,
    "waits": b"try again in 1 s 1 s 1 s " * 800,
    "words of payment": b"exceeded " * 2_000,
    "fields": b"unsupported field name value user " * 600,
    "exceptions": b"litellm.aError: " * 1_200,
    "a long word": b"a" * 20_000,
    "spaces": b" " * 20_000,
    "places": json.dumps([{"code": "a", "message": "b", "loc": ["input", 3]}] * 9_000).encode(),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("status", [400, 429])
def test_a_hostile_body_is_judged_in_little_time(name, status):
    with measured_cpu() as spent:
        refine_with_inputs(classify_response(status, {}, BODIES[name], now=0), ["a", "b"])

    assert spent.seconds < 0.4


MANY_INDEXES = json.dumps(
    {"error": {"message": " ".join([f"index {at}" for at in range(2_500)])}}
).encode()


class Refusing:
    """Refuses every call with a message of many indexes, in place of a transport."""

    name = "scripted"

    def __init__(self, content=MANY_INDEXES):
        self.content = content
        self.calls = 0

    async def send(self, _request, _timeout, _limits):
        self.calls += 1
        await anyio.sleep(0.01)
        return UpstreamResponse(400, {}, self.content)

    async def aclose(self):
        pass


def gateway_before(server, **accepts):
    config = Config(
        gateway={"auth": "open"},
        cache={"bytes": 0},
        providers={"acme": Provider(backend="openai", options={"api_key": "sk-1"})},
        models={
            "m": {"dimensions": 8, "endpoints": [{"provider": "acme", "accepts": accepts}]},
        },
    )
    return Gateway(config, environ={}, transport=lambda: server)


async def post(gateway, texts):
    body = json.dumps({"model": "m", "input": texts}, ensure_ascii=False).encode()
    app = embeddings_app(gateway)
    return await call(app, "POST", "/v1/embeddings", [("content-type", "application/json")], [body])


@pytest.mark.parametrize("message", ["index {}", "input #{}", "input[{}]"])
def test_many_numbers_are_compared_with_the_inputs_a_few_times(message):
    texts = [f"text {at} " + "é" * 7_000 for at in range(1_024)]
    content = " ".join(message.format(at) for at in range(1_000)).encode()
    error = classify_response(400, {}, content, now=0)

    with measured_cpu() as spent:
        refine_with_inputs(error, texts)

    assert spent.seconds < 1


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", thorough_unless("asyncio".__eq__, ["asyncio", "trio"]))
async def test_an_error_of_a_large_request_does_not_block_the_event_loop():
    """Comparing the message with 14 M characters takes 0.4 s, in a thread of its own.

    The limit is a part of that time, measured here: both take longer on a slow machine.
    """
    texts = [f"text {at} " + "é" * 14_000 for at in range(1_024)]
    error = classify_response(400, {}, MANY_INDEXES, now=0)
    began = time.thread_time()
    refine_with_inputs(error, texts)
    comparing = time.thread_time() - began
    server = Refusing()
    gateway = gateway_before(server, max_tokens=1 << 30)
    longest = 0.0

    async def measure():
        nonlocal longest
        while True:
            began, calls = time.thread_time(), server.calls
            await anyio.sleep(0.001)
            if calls:
                longest = max(longest, time.thread_time() - began)

    async with anyio.create_task_group() as group:
        group.start_soon(measure)
        answer = await post(gateway, texts)
        group.cancel_scope.cancel()

    assert answer.status == 400
    assert longest < comparing / 2


@pytest.mark.anyio
async def test_the_refusal_is_reported_and_not_the_breaker_that_it_opens():
    """The first chunk of twenty opens it, while others wait for their turn."""
    server = Refusing(json.dumps({"error": {"message": "no"}}).encode())

    answer = await post(gateway_before(server, max_inputs=2), [str(at) for at in range(40)])

    assert (answer.status, answer.error["code"]) == (400, "upstream_refused")
